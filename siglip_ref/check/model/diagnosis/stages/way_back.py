"""Where every value of a model is right: the edit of the first way back that is wrong."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.edits import FITS, Fitted, search
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.stages.proof import SURE, by, usual, wrong_value
from siglip_ref.check.model.diagnosis.stages.stage_search import off
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.placed import Edited, forward_with, stages_of
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import stage_of
from siglip_ref.mistakes import Reference
from siglip_ref.mistakes.grammar.scope import ROWS
from siglip_ref.mistakes.grammar.switched import edited, made, named, singles
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array

_BACK = {  # what goes back through a stage
    "+attn": ("block", "attention", "softmax", "layer_norm", "linear"),
    "+mlp": ("block", "mlp", "gelu", "layer_norm", "linear"),
    "norm": ("layer_norm",),
    "stem": ("patch_embed", "position", "token_embed", "linear"),
    "pool": ("map_head", "attention", "mlp", "layer_norm", "linear", "pool"),
    "head": ("linear",),
}


def of_gradients(
    run: Run, judge: Judge, ground: Probe, cfg: Config, conventions: Conventions,
    again: Callable[[], tuple[Probe, Run]],
) -> tuple[Fitted, tuple[str, ...], str] | None:  # fmt: skip
    """The edit, its stages, and what it does not give in a further run; None where none is found."""
    wrong = [name for name, grad in judge.exact.grads.items() if not by(name, run.grads[name], grad, judge) <= 1]
    if not wrong or "/" not in wrong[-1] or not all(np.isfinite(grad).all() for grad in run.grads.values()):
        return None
    stage = stage_of(wrong[-1])  # what stands last in the network comes first on the way back
    stage = f"{stage.split('/')[0]}/stem" if stage.split("/")[1] in ("stem", "token") else stage
    functions = tuple(named(getattr(SPECIFICATION, name).backward) for name in _BACK.get(stage.split("/")[-1], ()))
    spec, tower = edited(functions), stage.split("/")[0]
    alike = frozenset(one for one in stages_of(cfg, tower) if one.split("/")[-1] == stage.split("/")[-1])
    least = {name: usual(name, judge) for name in judge.exact.grads}
    for stages in dict.fromkeys((frozenset({stage}), alike)):
        placed = [Edited(spec, stages)]
        back = forward_with(placed, ground, cfg, conventions)[2]

        def scored(_: Reference, back: Callable[[], dict[str, Array]] = back) -> list[float]:
            scores = list[float]()
            for name, grad in back().items():
                scores.append(off(run.grads[name], grad, judge.of_grad[name], least[name]))
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
            offers, partial(made, spec=spec), scored, lambda _: (), numbers, lambda _: np.zeros(0), pairs=False
        )
        if fitted is None:
            continue
        held, got = again()
        with made(fitted.edits):
            loss, activations, way_back = forward_with(placed, held, cfg, conventions)
            grads = way_back()
        missing = wrong_value(got, activations | {"loss": loss}, judge) or next(
            (f"d {n}" for n in grads if not by(n, got.grads[n], grads[n], judge) <= SURE), ""
        )
        return fitted, tuple(one for one in stages_of(cfg, tower) if one in stages), missing
    return None


def _rows_astray(got: Array, expected: Array, allowed: float) -> tuple[int, ...]:
    """Rows of a table's gradient that are not what they should be, where others are."""
    by = np.abs(np.asarray(got, np.float64) - expected).reshape(len(got), -1).max(-1)
    wrong = ~(by <= allowed * np.max(np.abs(expected), initial=0.0))
    return () if wrong.all() else tuple(np.flatnonzero(wrong).tolist())
