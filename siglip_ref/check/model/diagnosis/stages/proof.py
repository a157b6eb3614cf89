"""Whether changes give a further run of a model, on other numbers: every activation, the loss, and its derivative."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole
from siglip_ref.check.model.diagnosis.stages.stage_search import off
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.placed import Edited, forward_with
from siglip_ref.check.model.probe import Probe
from siglip_ref.ops.elementary import Array

_FURTHER = 16
SURE = 2.0  # times what is allowed: both sides round
_STEP = 1e-5  # of a parameter, along a direction
UNTRIED = "a whole model"  # with changes that are known of a stage alone
FINEST, _LEAST = 1e-7, 1e-9  # of a derivative by differences, of the loss


def unproven(
    placed: Sequence[tuple[Edited, Whole]], held: Probe, run: Run, judge: Judge, cfg: Config, conventions: Conventions
) -> str:
    """What a further run shows that the changes do not give: a value, "d " and a parameter, or "" for nothing."""
    edits = [edit for edit, _ in placed]
    hooks: list[Callable[[Probe], Probe]] = [change.probe for _, change in placed if change.probe]
    if any(change.value for _, change in placed):
        return UNTRIED

    def forward(probe: Probe) -> tuple[Array, dict[str, Array]]:
        changed = reduce(lambda known, hook: hook(known), hooks, probe)
        return forward_with(edits, changed, cfg, conventions)[:2]

    loss, activations = forward(held)
    if wrong := wrong_value(run, activations | {"loss": loss}, judge):
        return wrong
    rng = np.random.default_rng(7)
    for name, grad in run.grads.items():
        along = rng.standard_normal(np.shape(grad)) * (np.sqrt(np.mean(np.square(held.params[name]))) + 1e-3)

        def at(step: float, name: str = name, along: Array = along) -> float:
            moved = replace(held, params=dict(held.params) | {name: held.params[name] + step * along})
            return float(forward(moved)[0])

        slope = (at(_STEP) - at(-_STEP)) / (2 * _STEP)
        got = float(np.sum(grad * along))
        top = max(float(np.max(np.abs(grad))), usual(name, judge))
        room = SURE * judge.of_grad[name] * top * float(np.sqrt(np.sum(np.square(along))))
        if not abs(got - slope) <= room + FINEST * abs(slope) + _LEAST * abs(float(loss)):
            return f"d {name}"
    return ""


def wrong_value(run: Run, expected: Mapping[str, Array], judge: Judge) -> str:
    """The first activation, or the loss, that is not what is expected."""
    got = run.activations | {"loss": np.reshape(run.loss, ())}
    shown = [name for name in expected if name in got and name in judge.of_value]
    return next((n for n in shown if not off(got[n], expected[n], judge.of_value[n]) <= SURE), "")


def by(name: str, got: Array, expected: Array, judge: Judge) -> float:
    """How far off a gradient is, in what is allowed."""
    return off(got, expected, judge.of_grad[name], usual(name, judge))


def usual(name: str, judge: Judge) -> float:
    """The size of a gradient in the specification: what an edit makes zero by structure is judged by it, too."""
    return judge.exact.key_terms.get(name, float(np.max(np.abs(judge.exact.grads[name]), initial=0.0)))


def another(probe: Probe) -> Probe:
    """Other numbers of the same sizes: parameters and images in another order, captions of other pairs. Two
    hidden units of an MLP lie further from zero: limits show that nothing reached before."""
    params = {name: np.array(np.flip(value)) for name, value in probe.params.items()}
    for name in params:
        if name.endswith("mlp/in/bias"):
            params[name][:2] = _FURTHER * np.abs(params[name][:2]) * (1, -1)
    return replace(probe, params=params, images=-probe.images, tokens=probe.tokens[::-1].copy())
