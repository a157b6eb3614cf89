"""Where every value of a model is right: the edit of the first way back that is wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.edits import FITS, Fitted, search
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.stages.curves import Curve, of_slope
from siglip_ref.check.model.diagnosis.stages.proof import SURE, by, usual, wrong_value
from siglip_ref.check.model.diagnosis.stages.stage_search import off
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.placed import Edited, forward_with, holding, stages_of
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import stage_of
from siglip_ref.mistakes import Reference, reference
from siglip_ref.mistakes.grammar.scope import ROWS
from siglip_ref.mistakes.grammar.switched import Single, edited, made, named, singles
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluCache

_BACK = {  # what goes back through a stage
    "+attn": ("block", "attention", "softmax", "layer_norm", "linear"),
    "+mlp": ("block", "mlp", "gelu", "layer_norm", "linear"),
    "norm": ("layer_norm",),
    "stem": ("patch_embed", "position", "token_embed", "linear"),
    "pool": ("map_head", "attention", "softmax", "mlp", "gelu", "layer_norm", "linear", "pool"),
    "head": ("linear",),
}


Found = tuple[list[tuple[Fitted, tuple[str, ...]]], str]
_FAULTS = 3  # of a tower
_GELU, _NEAR = ":gelu_", 1e-3


def of_gradients(
    run: Run, judge: Judge, ground: Probe, cfg: Config, conventions: Conventions,
    again: Callable[[], tuple[Probe, Run]], curves: Callable[[], dict[str, Curve]],
) -> Found | None:  # fmt: skip
    """Edits, each with its stages, and what they do not give in a further run; None where none is found.

    Values are right, so each tower goes by itself; in each from its end to its beginning.
    """
    wrong = [name for name, grad in judge.exact.grads.items() if not by(name, run.grads[name], grad, judge) <= 1]
    if not wrong or any("/" not in name for name in wrong):
        return None
    if not all(np.isfinite(grad).all() for grad in run.grads.values()):
        return None
    found, placed = list[tuple[Fitted, tuple[str, ...]]](), list[Edited]()
    for tower in dict.fromkeys(name.split("/")[0] for name in wrong):
        one = _Tower(tower, run, judge, ground, cfg, conventions, curves)
        for _ in range(_FAULTS):
            left = one.wrong(placed)
            known = one.next(left, placed) if left else None
            if known is None:
                break
            fitted, edited_ = known
            placed.append(edited_)
            stages = tuple(name for name in stages_of(cfg, tower) if name in edited_.stages)
            same = next((k for k, (other, _) in enumerate(found) if _said(other) == _said(fitted)), None)
            if same is None:
                found.append((fitted, stages))
            else:
                found[same] = found[same][0], found[same][1] + stages
    if not found:
        return None
    held, got = again()
    loss, activations, way_back = forward_with(placed, held, cfg, conventions)
    grads = way_back()
    return found, wrong_value(got, activations | {"loss": loss}, judge) or next(
        (f"d {n}" for n in grads if not by(n, got.grads[n], grads[n], judge) <= SURE), ""
    )


def _said(fitted: Fitted) -> list[str]:
    return [one.now for one in fitted.edits]


@dataclass(frozen=True)
class _Tower:
    """The gradients of one tower."""

    name: str
    run: Run
    judge: Judge
    ground: Probe
    cfg: Config
    conventions: Conventions
    curves: Callable[[], dict[str, Curve]]

    @cached_property
    def order(self) -> tuple[str, ...]:
        return stages_of(self.cfg, self.name)

    def wrong(self, placed: Sequence[Edited]) -> list[str]:
        """Parameters whose gradients are wrong, with what was found before."""
        grads = forward_with(placed, self.ground, self.cfg, self.conventions)[2]()
        mine = [name for name in grads if name.startswith(f"{self.name}/")]
        return [name for name in mine if not by(name, self.run.grads[name], grads[name], self.judge) <= 1]

    def next(self, wrong: Sequence[str], placed: Sequence[Edited]) -> tuple[Fitted, Edited] | None:
        """The edit of what comes first on the way back; one with which all is right, else all that comes before it."""
        at = max(self.order.index(_stage(name)) for name in wrong)
        places = [self.order[k] for k in (at, at + 1) if k < len(self.order)]
        alike = {place: [s for s in self.order if s.split("/")[-1] == place.split("/")[-1]] for place in places}
        scopes = [(p, frozenset(s)) for p in places for s in ([p], alike[p]) if len(s) > 1 or s == [p]]
        with_pool = frozenset(name for name in self.order if name.endswith(("/+mlp", "image/pool")))
        scopes += [(places[0], with_pool)] if places[0] in with_pool else []
        scopes += [(places[0], frozenset(self.order))]
        for everything in (True, False):
            for place, stages in dict.fromkeys(scopes):
                if found := self._in(place, stages, wrong, placed, everything):
                    return found
        return None

    def _in(
        self, place: str, stages: frozenset[str], wrong: Sequence[str], placed: Sequence[Edited], everything: bool
    ) -> tuple[Fitted, Edited] | None:
        run, judge, last = self.run, self.judge, wrong[-1]
        functions = tuple(named(getattr(SPECIFICATION, name).backward) for name in _BACK.get(place.split("/")[-1], ()))
        spec = edited(functions)
        back = forward_with([*placed, Edited(spec, stages)], self.ground, self.cfg, self.conventions)[2]
        first = min(self.order.index(name) for name in stages)
        least = {name: usual(name, judge) for name in judge.exact.grads}

        def asked(name: str) -> bool:
            if everything or not name.startswith(self.name):
                return name.startswith(self.name)
            stage = self.order.index(_stage(name))
            return stage >= first or (stage == first - 1 and name.endswith(("out/bias", "out/kernel")))

        names = [name for name in judge.exact.grads if asked(name)]
        if not everything and not set(names) & set(wrong):
            return None

        def off_of(grads: Mapping[str, Array]) -> list[float]:
            scores = list[float]()
            for name in names:
                scores.append(off(run.grads[name], grads[name], judge.of_grad[name], least[name]))
                if not scores[-1] <= FITS:  # how far off the others are is not asked: no pairs are tried
                    return [np.inf]
            return scores

        def numbers(_: Reference) -> Array:
            grads = back()
            return np.concatenate(
                [np.ravel(grads[n]) / (max(np.max(np.abs(grads[n])), least[n]) or 1.0) for n in names]
            )

        mlp = place.endswith(("/+mlp", "image/pool")) and not self.cfg.naflex
        curve = self.curves().get(place) if mlp else None
        for slope in of_slope(curve) if curve else ():
            plain = reference()
            other = Edited(replace(plain, ops=slope.ops(plain.ops) if slope.ops else plain.ops), stages)
            got = forward_with([*placed, other], self.ground, self.cfg, self.conventions)[2]()
            if all(score <= FITS for score in off_of(got)):
                return Fitted((slope,)), other
        every = singles(functions)
        offers = [one for one in every if one.plain and not one.text.startswith("if ")]
        if curve:
            offers += [one for one in every if _GELU in one.function and self._is_slope(one, spec, curve)]
        if rows := _rows_astray(run.grads[last], judge.exact.grads[last], judge.of_grad[last]):
            offers += [replace(one, rows=rows) for one in every if ROWS in one.new]
        fitted = search(
            offers, partial(made, spec=spec), lambda _: off_of(back()), lambda _: (), numbers, lambda _: np.zeros(0),
            pairs=False,
        )  # fmt: skip
        if fitted is not None:
            return fitted, Edited(holding(spec, fitted.edits), stages)
        return None

    def _is_slope(self, one: Single, spec: Reference, curve: Curve) -> bool:
        """Whether an edit of GELU's way back has the slope that was read off."""
        c = self.conventions
        form = c.image_gelu if self.name == "image" else c.text_gelu
        try:
            with made([one]), np.errstate(all="ignore"):
                slope = spec.ops.gelu.backward(np.ones(len(curve.x)), GeluCache(curve.x, form))
            return bool(np.nanmax(np.abs(slope - curve.slope)) <= _NEAR * np.nanmax(np.abs(curve.slope)))
        except Exception:  # an edit may raise whatever NumPy and Python raise
            return False


def _stage(name: str) -> str:
    stage = stage_of(name)
    return f"{stage.split('/')[0]}/stem" if stage.split("/")[1] in ("stem", "token", "widen") else stage


def _rows_astray(got: Array, expected: Array, allowed: float) -> tuple[int, ...]:
    """Rows of a table's gradient that are not what they should be, where others are."""
    by = np.abs(np.asarray(got, np.float64) - expected).reshape(len(got), -1).max(-1)
    wrong = ~(by <= allowed * np.max(np.abs(expected), initial=0.0))
    return () if wrong.all() else tuple(np.flatnonzero(wrong).tolist())
