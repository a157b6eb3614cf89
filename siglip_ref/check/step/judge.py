"""What three steps should have done, and how far a correct program may lie off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.engine.seen import Seen
from siglip_ref.check.model.reference import KEY_BIAS
from siglip_ref.check.step.gradients import Slopes
from siglip_ref.check.step.run import STEPS, Taken
from siglip_ref.mistakes import Mistake, Reference, reference
from siglip_ref.model.optim import AdamW, BigVision, alike, nothing
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Row, compare, not_checked, out_of_range

LABELS = tuple(f"step {k + 1}" for k in range(STEPS))
Rule = AdamW | BigVision
Schedule = Callable[[int], float]
Moves = dict[tuple[str, str], Array]  # by ("step 1", parameter)

ROUNDINGS = 6.0  # of a parameter in one step, in units of its own roundoff
IN_STEP = 48.0  # of what is added to it
BEYOND_CORNERS = 1.25  # noise that is large beside its gradient may do more between the corners
SATURATED = 0.05  # of lr: from here on noise counts as large beside Adam's eps
NOISE = 8.0  # how many times the reference's own gradient noise a correct program's may reach

# What accumulation does wrong, made here in the gradients; the catalogue makes it in the loss.
ACCUMULATION = ("accum-loss-not-divided", "accum-cached-not-divided", "accum-changes-negatives")


@dataclass(frozen=True)
class Plan:
    """What the steps were to be. micro(k, parts): the gradients of each of step k's micro-batches; slopes(k, params,
    of): of step k's batch, at any weights, of any loss of the logits; None where gradients were given.

    unit : the roundoff of the parameters; restarted : the state was saved and loaded before the last step
    """

    rule: Rule
    schedule: Schedule
    parts: int
    unit: float
    micro: Callable[[int, int], list[Params]] | None
    restarted: bool = False
    slopes: Callable[[int, Params, Slopes], Params] | None = None


@dataclass(frozen=True)
class Judged:
    """Every parameter at every step: rows, and the same for diagnosis."""

    rows: list[Row]
    seen: list[Seen]

    @property
    def right(self) -> bool:
        return all(row.right for row in self.rows)

    @property
    def first_wrong(self) -> str:
        """The first parameter that deviates."""
        return next(row.name for row in self.rows if not row.right)


def reach(plan: Plan) -> list[float]:
    """How far each step moves a number, about: decay and small gradients aside."""
    rule = plan.rule
    starts = [1.0] * STEPS if isinstance(rule, AdamW) else [1 - rule.momentum ** (k + 1) for k in range(STEPS)]
    return [rule.lr * abs(float(plan.schedule(k))) * start for k, start in enumerate(starts)]


def predict(
    taken: Sequence[Taken],
    plan: Plan,
    grads: Sequence[Params],
    mistakes: Sequence[Mistake] = (),
    spec: Reference | None = None,
    each: Callable[[str, Params], None] = lambda step, moves: None,
) -> Moves:
    """What each step adds to each parameter, with these mistakes made in the optimiser, or by another reference.

    each : is told of a step's moves at once, and may raise
    """
    spec = spec or reference(tuple(edit for m in mistakes if m.id not in ACCUMULATION for edit in m.edits))
    step = spec.optim.adamw_step if isinstance(plan.rule, AdamW) else spec.optim.big_vision_step
    history: list[Params] = []

    def recorded(params: Params, grads: Params, state: Any, rule: Rule, factor: float) -> Any:
        moved, after = step(params, grads, state, rule, factor)
        history.append({name: moved[name] - value for name, value in params.items()})
        if len(history) <= len(LABELS):
            each(LABELS[len(history) - 1], history[-1])
        return moved, after

    with np.errstate(all="ignore"):
        spec.procedures.several_steps(
            taken[0].before, lambda k, _: grads[k], len(taken), recorded, plan.rule, plan.schedule
        )
    return {(step, name): move for step, moves in zip(LABELS, history, strict=False) for name, move in moves.items()}


def judge(taken: Sequence[Taken], plan: Plan, spec: Reference | None = None) -> Judged:
    """Each parameter's moves beside the right ones, or those of another reference."""
    grads = [one.grads for one in taken]
    exact = predict(taken, plan, grads, spec=spec)
    allowed = _allowed(taken, plan, grads, exact, spec)
    # for diagnosis: a mistake that moves what should have stayed, or moves it far, rounds and has noise, too
    loose = allowed
    if any(plan.rule.frozen(name) or not plan.rule.rates(name) for name in taken[0].before):
        thawed = replace(plan, rule=replace(plan.rule, frozen=nothing, rates=alike))
        loose = _allowed(taken, thawed, grads, predict(taken, thawed, grads))
    rows, seen = [], []
    for (step, name), right in exact.items():
        one = taken[_number(step)]
        got = one.moved[name]
        unit = float(np.max(np.abs(right), initial=0.0))
        noisy = only_noise(one, name) and allowed[step, name].any()
        scale = plan.rule.lr * plan.rule.rates(name) if noisy else unit
        tolerance = allowed[step, name] / scale if scale else 0.0
        note = "" if unit or noisy else "must not move in this step"
        zero_scale = scale if noisy else None
        if np.isfinite(right).all() and np.isfinite(allowed[step, name]).all():
            row = compare(name, got, right, tolerance, kind="value", zero_scale=zero_scale, note=note, probe=step)
        else:
            row = out_of_range(name, "value", "its gradient overflows in the reference, too", step)
        rows.append(row)
        rounding = _rounding(plan, (step, name), one.before[name], got)
        seen.append(Seen(step, name, got, right, np.maximum((allowed if unit else loose)[step, name], rounding)))
    for k in range(len(taken), STEPS):
        rows += [not_checked(name, "value", "parameters are no numbers", LABELS[k]) for name in taken[0].before]
    return Judged(rows, seen)


def _allowed(
    taken: Sequence[Taken], plan: Plan, grads: Sequence[Params], exact: Moves, spec: Reference | None = None
) -> Moves:
    """Deviations of a correct program: gradients off by their noise at every corner, and the rounding of the step."""
    spread: Moves = {key: np.zeros_like(value) for key, value in exact.items()}
    for signs in product((-1, 1), repeat=len(taken)):
        shifted = [
            {name: g + sign * _noise_of(one, name, g, plan.unit) for name, g in one.grads.items()}
            for one, sign in zip(taken, signs, strict=True)
        ]
        for key, value in predict(taken, plan, shifted, spec=spec).items():
            spread[key] = np.maximum(spread[key], BEYOND_CORNERS * np.abs(value - exact[key]))
    for (step, name), value in spread.items():
        move = exact[step, name]
        rounding = _rounding(plan, (step, name), taken[_number(step)].before[name], move)
        spread[step, name] = value + np.where((move == 0) & (spec is None), 0.0, rounding)  # what stays is not rounded
        whole = plan.rule.lr * plan.rule.rates(name) * abs(float(plan.schedule(_number(step))))
        if only_noise(taken[_number(step)], name) and np.max(value) > SATURATED * whole:
            # the optimiser makes steps of full length of any noise, and which ones depends on how it changes
            spread[step, name] = np.maximum(spread[step, name], 2 * whole)
    return spread


def only_noise(one: Taken, name: str) -> bool:
    """A key bias, whose gradient is zero by structure; where gradients are given, it has one."""
    return name.endswith(KEY_BIAS) and name in one.noise


def _rounding(plan: Plan, at: tuple[str, str], before: Array, move: Array) -> Array:
    """Of one parameter and of what is added to it: the optimiser's step and decay, which may cancel each other."""
    step, name = at
    decay = plan.rule.decay * (plan.rule.lr * plan.rule.rates(name) if isinstance(plan.rule, AdamW) else 1.0)
    in_step = ROUNDINGS + IN_STEP + _of_corrections(plan.rule, _number(step) + 1)
    return plan.unit * (ROUNDINGS * np.abs(before) + in_step * (np.abs(move) + decay * np.abs(before)))


def _number(step: str) -> int:
    return LABELS.index(step)


def _of_corrections(rule: Rule, steps: int) -> float:
    """What 1 - beta^steps, computed in the parameters' own format as optax does, magnifies its rounding by."""
    if isinstance(rule, BigVision):
        return 0.0
    return sum(1 / (1 - beta**steps) for beta in (rule.beta1, rule.beta2))


def _noise_of(one: Taken, name: str, g: Array, unit: float) -> Array:
    """None where a gradient is exactly zero, as of a token that does not occur; but a key bias has only noise."""
    noise = np.asarray(NOISE * one.noise.get(name, 0.0) + ROUNDINGS * unit * np.abs(g))
    return noise if only_noise(one, name) else noise * (g != 0)
