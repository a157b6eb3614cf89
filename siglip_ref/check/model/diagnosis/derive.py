"""What the first stage that deviates computes: the edit of its own formulas that gives the program's numbers.

Tried on the program's own input to the stage. Named only where a further run, on other weights, other images and other
captions, is that of the specification with the edit in it: every activation, the loss, and the derivative of the loss
along random directions of every parameter, as the program's gradients give it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import sides_of
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.edits import FITS, Edits, Fitted, search
from siglip_ref.check.engine.findings import FINDING
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.noise import multiplications
from siglip_ref.check.model.placed import Edited, forward_with, stages_of
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import doubled, prepared, readable, stage_of, stage_values
from siglip_ref.mistakes import Reference
from siglip_ref.mistakes.grammar.scope import ROWS
from siglip_ref.mistakes.grammar.switched import edited, made, named, singles
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops import attention as of_attention
from siglip_ref.ops import gelu as of_gelu
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import finding_of

_ROWS = 2  # images or texts on which edits are tried: the first, whose caption is full, and the last, the shortest
_SIZE = 2e7  # multiplications of a forward pass, from which on nothing is derived
_STEP = 1e-5  # of a parameter, along a direction
_TRIED = 12  # edits that are alike at the stage: whether they are so in a whole model
_SURE = 2.0  # times what is allowed: both sides round
_FINEST, _LEAST = 1e-7, 1e-9  # of a derivative by differences, of the loss

_OPS = SPECIFICATION
_ATTENTION = (_OPS.attention.forward, of_attention._split, of_attention._join, _OPS.softmax.forward)
_MLP = (_OPS.mlp.forward, _OPS.gelu.forward, of_gelu._tanh_argument, of_gelu._root_two_over_pi)
_EVERY = (_OPS.layer_norm.forward, _OPS.linear.forward)
_OF_STAGE = {
    "+attn": (_OPS.block.forward, *_ATTENTION, *_EVERY),
    "+mlp": (_OPS.block.forward, *_MLP, *_EVERY),
    "norm": (_OPS.layer_norm.forward,),
    "image/stem": (_OPS.patch_embed.forward, _OPS.position.forward, _OPS.linear.forward),
    "text/stem": (_OPS.token_embed.forward, _OPS.position.forward),
    "image/pool": (_OPS.encoder.forward, _OPS.map_head.forward, *_ATTENTION, *_MLP, *_EVERY),
    "text/pool": (_OPS.encoder.forward, _OPS.pool.forward),
    "head": (_OPS.linear.forward,),
    "embed": (_OPS.normalize.forward,),
}
_BACK = {  # what goes back through a stage
    "+attn": ("block", "attention", "softmax", "layer_norm", "linear"),
    "+mlp": ("block", "mlp", "gelu", "layer_norm", "linear"),
    "norm": ("layer_norm",),
    "stem": ("patch_embed", "position", "token_embed", "linear"),
    "pool": ("map_head", "attention", "mlp", "layer_norm", "linear", "pool"),
    "head": ("linear",),
}


@dataclass(frozen=True)
class Derived:
    """What explains a stage, and the others that it explains as well; unproven : what it does not give in the further
    run, "" where it gives everything."""

    fitted: Fitted
    stages: tuple[str, ...]
    unproven: str

    @property
    def certain(self) -> bool:
        return self.fitted.certain and not self.unproven


def repaired(finding: Finding, derived: Derived) -> Finding:
    """What has no name, with the formula that is to be computed there; in place of a part explanation, a full one of
    several edits: one alone may be the very mistake."""
    if finding.numbers.get("share", 1.0) < FINDING and len(derived.fitted.edits) > 1:
        return finding_of(derived.fitted, derived.stages[0])
    if finding.id != "unknown" or finding.tensor not in derived.stages:
        return finding
    return replace(finding, repair=f"{finding_of(derived.fitted, finding.tensor).repair}; {finding.repair}")


def derive(
    run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions, again: Callable[[Probe], Run]
) -> Derived | str:
    """Of the first wrong stage; a word where nothing was derived.

    Parameters
    ----------
    again : runs the model on another probe
    """
    if multiplications(cfg, len(probe.images)) > _SIZE:
        return "size"
    ground, held = doubled(probe), cache(lambda: (other := _another(doubled(probe)), again(other)))
    shown = readable(run.activations, judge.exact.activations, np.float64)
    found = _of_values(run, shown, frozenset(), judge, ground, cfg, conventions, held)
    halves = frozenset(name for name in shown if name.endswith("/+attn"))
    if halves and found != "size" and not (isinstance(found, Derived) and found.certain):
        whole = {name: value for name, value in shown.items() if name not in halves}  # blocks, each as one stage
        other = _of_values(run, whole, halves, judge, ground, cfg, conventions, held)
        return other if isinstance(other, Derived) and other.certain else found
    return found


def _of_values(
    run: Run, shown: Mapping[str, Array], halves: frozenset[str], judge: Judge, ground: Probe, cfg: Config,
    conventions: Conventions, held: Callable[[], tuple[Probe, Run]],
) -> Derived | str:  # fmt: skip
    """halves : what the program shows inside of blocks, where each block is looked at as one stage."""
    spec = edited(())
    off = {
        name: _off(shown[name], value, judge.of_value[name])
        for tower in sides_of(cfg)
        for name, value in stage_values(spec, tower, shown, ground, cfg, conventions).items()
        if name in shown
    }
    wrong = [name for name, by in off.items() if not by <= 1]
    if not wrong:
        return "stage" if halves else _of_gradients(run, judge, ground, cfg, conventions, held)
    stage, tower = wrong[0], wrong[0].split("/")[0]
    if halves and "/block" not in stage:
        return "stage"
    functions = tuple(map(named, (SPECIFICATION.block.forward,) if halves else _functions(stage)))
    spec, few, room = edited(functions), _rows(ground, shown), judge.of_value[stage]
    given = {name: value[_chosen(value)] for name, value in shown.items() if name.startswith(tower)}
    known = given[stage]

    # one program, in which edits are made and unmade
    of_few = prepared(spec, tower, given, few, cfg, conventions, {stage}, through=True)
    of_all = prepared(spec, tower, shown, ground, cfg, conventions, {stage}, through=True)
    fitted = search(
        singles(functions),
        partial(made, spec=spec),
        lambda _: [_off(known, of_few()[stage], room)],
        lambda _: [_off(shown[stage], of_all()[stage], room)],
        lambda _: of_all()[stage],
        lambda _: np.asarray(known - of_few()[stage]),
    )
    if fitted is None:
        return "stage"
    stages = _explained(fitted.edits, spec, wrong, shown, ground, judge, cfg, conventions)
    return _proven(fitted, stages, spec, *held(), halves, judge, cfg, conventions)


def _proven(
    fitted: Fitted, stages: tuple[str, ...], spec: Reference, held: Probe, run: Run, halves: frozenset[str],
    judge: Judge, cfg: Config, conventions: Conventions,
) -> Derived:  # fmt: skip
    """The first of the edits that are alike which a further run shows, and those that are alike there, too."""
    placed = [Edited(spec, frozenset(stages))]
    run = _without_copies(run, halves, judge, cfg)
    named, alike, unproven, of_named = fitted.edits, list[Edits](), "", np.nan
    for edits in (fitted.edits, *fitted.alike)[:_TRIED]:
        try:
            with made(edits), np.errstate(all="ignore"):
                loss = float(forward_with(placed, held, cfg, conventions)[0])
                if not np.isnan(of_named):
                    alike += [edits] * (abs(loss - of_named) <= _FINEST * abs(of_named))
                elif missing := _unproven(placed, held, run, judge, cfg, conventions):
                    named = edits if missing.startswith("d ") and not unproven.startswith("d ") else named
                    unproven = missing if missing.startswith("d ") else unproven or missing
                else:
                    named, of_named = edits, loss
        except Exception:  # whatever an edit raises: no program in a whole model
            unproven = unproven or "a whole model"
    return Derived(Fitted(named, tuple(alike), fitted.rivals), stages, unproven if np.isnan(of_named) else "")


def _of_gradients(
    run: Run, judge: Judge, ground: Probe, cfg: Config, conventions: Conventions,
    again: Callable[[], tuple[Probe, Run]],
) -> Derived | str:  # fmt: skip
    """Where every value is right: the edit of the first way back that is wrong."""
    wrong = [name for name, grad in judge.exact.grads.items() if not by(name, run.grads[name], grad, judge) <= 1]
    if not wrong or "/" not in wrong[-1] or not all(np.isfinite(grad).all() for grad in run.grads.values()):
        return "stage"
    stage = stage_of(wrong[-1])  # what stands last in the network comes first on the way back
    stage = f"{stage.split('/')[0]}/stem" if stage.split("/")[1] in ("stem", "token") else stage
    functions = tuple(named(getattr(SPECIFICATION, name).backward) for name in _BACK.get(stage.split("/")[-1], ()))
    spec, tower = edited(functions), stage.split("/")[0]
    alike = frozenset(one for one in stages_of(cfg, tower) if one.split("/")[-1] == stage.split("/")[-1])
    usual = {name: _usual(name, judge) for name in judge.exact.grads}
    for stages in dict.fromkeys((frozenset({stage}), alike)):
        placed = [Edited(spec, stages)]
        back = forward_with(placed, ground, cfg, conventions)[2]

        def off(_: Reference, back: Callable[[], dict[str, Array]] = back) -> list[float]:
            scores = list[float]()
            for name, grad in back().items():
                scores.append(_off(run.grads[name], grad, judge.of_grad[name], usual[name]))
                if not scores[-1] <= FITS:  # how far off the others are is not asked: no pairs are tried
                    return [np.inf]
            return scores

        def numbers(_: Reference, back: Callable[[], dict[str, Array]] = back) -> Array:
            return np.concatenate([np.ravel(grad) / (np.max(np.abs(grad)) or 1.0) for grad in back().values()])

        every = singles(functions)
        offers = [one for one in every if one.plain]
        if rows := _rows_astray(run.grads[wrong[-1]], judge.exact.grads[wrong[-1]], judge.of_grad[wrong[-1]]):
            offers += [replace(one, rows=rows) for one in every if ROWS in one.new]
        fitted = search(
            offers, partial(made, spec=spec), off, lambda _: (), numbers, lambda _: np.zeros(0), pairs=False
        )
        if fitted is None:
            continue
        held, got = again()
        with made(fitted.edits):
            loss, activations, way_back = forward_with(placed, held, cfg, conventions)
            grads = way_back()
        unproven = wrong_value(got, activations | {"loss": loss}, judge) or next(
            (f"d {n}" for n in grads if not by(n, got.grads[n], grads[n], judge) <= _SURE), ""
        )
        return Derived(fitted, tuple(one for one in stages_of(cfg, tower) if one in stages), unproven)
    return "stage"


def by(name: str, got: Array, expected: Array, judge: Judge) -> float:
    """How far off a gradient is, in what is allowed."""
    return _off(got, expected, judge.of_grad[name], _usual(name, judge))


def _rows_astray(got: Array, expected: Array, allowed: float) -> tuple[int, ...]:
    """Rows of a table's gradient that are not what they should be, where others are."""
    by = np.abs(np.asarray(got, np.float64) - expected).reshape(len(got), -1).max(-1)
    wrong = ~(by <= allowed * np.max(np.abs(expected), initial=0.0))
    return () if wrong.all() else tuple(np.flatnonzero(wrong).tolist())


def _usual(name: str, judge: Judge) -> float:
    """The size of a gradient in the specification: what an edit makes zero by structure is judged by it, too."""
    return judge.exact.key_terms.get(name, float(np.max(np.abs(judge.exact.grads[name]), initial=0.0)))


def _functions(stage: str) -> tuple[Callable[..., object], ...]:
    return _OF_STAGE.get(stage) or _OF_STAGE.get(stage.split("/")[-1], ())


def _explained(
    edits: Edits, spec: Reference, wrong: list[str], shown: Mapping[str, Array], ground: Probe, judge: Judge,
    cfg: Config, conventions: Conventions,
) -> tuple[str, ...]:  # fmt: skip
    """All wrong stages that the edited functions are in, and that are right with the edits made."""
    changed, right = {one.function for one in edits}, list[str]()
    for name in wrong:
        if changed <= set(map(named, _functions(name))):
            with made(edits), np.errstate(all="ignore"):
                try:
                    of = name.split("/")[0]
                    value = stage_values(spec, of, shown, ground, cfg, conventions, {name}, through=True)[name]
                except (ValueError, IndexError):  # no program in this stage
                    continue
            right += [name] * (_off(shown[name], value, judge.of_value[name]) <= 1)
    return tuple(right)


def _unproven(placed: list[Edited], held: Probe, run: Run, judge: Judge, cfg: Config, conventions: Conventions) -> str:
    """What a further run shows that the edits do not give."""
    loss, activations, _ = forward_with(placed, held, cfg, conventions)
    if wrong := wrong_value(run, activations | {"loss": loss}, judge):
        return wrong
    rng = np.random.default_rng(7)
    for name, grad in run.grads.items():
        along = rng.standard_normal(np.shape(grad)) * (np.sqrt(np.mean(np.square(held.params[name]))) + 1e-3)

        def at(step: float, name: str = name, along: Array = along) -> float:
            moved = replace(held, params=dict(held.params) | {name: held.params[name] + step * along})
            return float(forward_with(placed, moved, cfg, conventions)[0])

        slope = (8 * (at(_STEP) - at(-_STEP)) - (at(2 * _STEP) - at(-2 * _STEP))) / (12 * _STEP)
        got = float(np.sum(grad * along))
        top = max(float(np.max(np.abs(grad))), _usual(name, judge))
        room = _SURE * judge.of_grad[name] * top * float(np.sqrt(np.sum(np.square(along))))
        if not abs(got - slope) <= room + _FINEST * abs(slope) + _LEAST * abs(float(loss)):
            return f"d {name}"
    return ""


def wrong_value(run: Run, expected: Mapping[str, Array], judge: Judge) -> str:
    """The first activation, or the loss, that is not what is expected."""
    got = run.activations | {"loss": np.reshape(run.loss, ())}
    shown = [name for name in expected if name in got and name in judge.of_value]
    return next((n for n in shown if not _off(got[n], expected[n], judge.of_value[n]) <= _SURE), "")


def _without_copies(run: Run, halves: frozenset[str], judge: Judge, cfg: Config) -> Run:
    """Without what a block shows of its middle, where that is nothing but what the block was given."""
    before = {name: one for tower in sides_of(cfg) for one, name in pairwise(stages_of(cfg, tower))}
    got = run.activations
    copies = {n for n in halves if before[n] in got and not _off(got[n], got[before[n]], judge.of_value[n]) > 1}
    return replace(run, activations={name: value for name, value in got.items() if name not in copies})


def _another(probe: Probe) -> Probe:
    """Other numbers of the same sizes: parameters and images in another order, captions of other pairs."""
    params = {name: np.flip(value) for name, value in probe.params.items()}
    return replace(probe, params=params, images=-probe.images, tokens=probe.tokens[::-1].copy())


def _chosen(x: Array) -> list[int]:
    return [0, len(x) - 1][:_ROWS]


def _rows(probe: Probe, shown: Mapping[str, Array]) -> Probe:
    rows = _chosen(probe.images)
    grids = None if probe.grids is None else probe.grids[rows]
    return replace(probe, images=probe.images[rows], tokens=probe.tokens[rows], grids=grids)


def _off(got: Array, expected: Array, allowed: float, usual: float = 0.0) -> float:
    """The largest deviation in what is allowed; usual : the least size of what is expected."""
    if np.shape(got) != np.shape(expected):
        return np.inf
    top = max(float(np.max(np.abs(expected), initial=0.0)), usual)
    by = float(np.max(np.abs(np.asarray(got, np.float64) - expected), initial=0.0))
    return 0.0 if by == 0 else by / (allowed * top) if top else np.inf
