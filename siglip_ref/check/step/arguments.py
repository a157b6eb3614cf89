"""What check_step is given, and what is said of anything else."""

import inspect
from collections.abc import Iterable
from typing import Any

from siglip_ref.check.call.frameworks import describe
from siglip_ref.check.call.target import load_callable
from siglip_ref.check.step.gradients import PAIRS
from siglip_ref.check.step.judge import Rule
from siglip_ref.errors import UsageError
from siglip_ref.model.optim import AdamW, BigVision


def arguments_named(target: str) -> dict[str, Any]:
    """The arguments of check_step that the function of this name returns."""
    arguments = load_callable(target)()
    if not isinstance(arguments, dict):
        raise UsageError(
            expected=f"{target}() that returns the arguments of check_step as a dict",
            got=f"a {type(arguments).__name__}",
            cause="the step itself, or its model, was returned",
            repair="return dict(step_fn=step, rule=sr.AdamW(...), model=model)",
        )
    return arguments


def require_arguments(
    step_fn: object, rule: object, model: object, schedule: object, accumulate: int, weights: str
) -> Rule:
    """Arguments of the right kinds, and a function that takes what it will be given."""
    given = "params, grads, state" if model is None else "images, tokens"
    if isinstance(step_fn, type) or not callable(step_fn):
        raise UsageError(
            expected=f"step_fn({given})",
            got=f"a {type(step_fn).__name__}",
            cause="a class is not yet a step" if isinstance(step_fn, type) else "",
            repair=f"check_step(lambda {given}: ..., rule{'' if model is None else ', model'})",
        )
    try:
        inspect.signature(step_fn).bind(*given.split(", "))
    except TypeError as cause:
        raise UsageError(
            expected=f"step_fn({given})" + (", as there is no model" if model is None else ""),
            got=f"{describe(step_fn)}{inspect.signature(step_fn)}",
            cause=f"another number of arguments ({cause})",
            repair=f"wrap it: lambda {given}: step(...)" + (", or give the model" if model is None else ""),
        ) from None
    except ValueError:  # compiled functions need not tell
        pass
    if not isinstance(rule, AdamW | BigVision):
        raise UsageError(
            expected="what the step is meant to do: an AdamW or a BigVision",
            got=f"a {type(rule).__name__}",
            cause="",
            repair="check_step(step_fn, sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0))",
        )
    if weights not in ("probe", "own") or accumulate < 1 or PAIRS % accumulate or (model is None and accumulate > 1):
        raise UsageError(
            expected=f'accumulate a divisor of {PAIRS}, and 1 without a model; weights "probe" or "own"',
            got=f"accumulate {accumulate}, weights {weights!r}, {'no' * (model is None)} model",
            cause=f"a step is given {PAIRS} pairs; an update function is given gradients, not micro-batches",
            repair="check_step(step_fn, rule, model, accumulate=2)",
        )
    if schedule is not None and not callable(schedule):
        raise UsageError(
            expected="schedule: the factor on lr as a function of the step, counted from 0",
            got=f"a {type(schedule).__name__}",
            cause="",
            repair="schedule=lambda k: cosine(k, total=1000, warmup=100), from siglip_ref.model.optim",
        )
    return rule


def require_rates(rule: Rule, names: Iterable[str]) -> None:
    """A factor on lr for every parameter, 0 for those that the optimiser was not given."""
    for name in names:
        try:
            rate: object = rule.rates(name)
            right = not isinstance(rate, bool) and 0 <= float(rate) < float("inf")  # type: ignore[arg-type]
        except Exception as cause:  # whatever a user's function raises is its answer
            rate, right = f"{type(cause).__name__}: {cause}", False
        if not right:
            raise UsageError(
                expected="rates: a factor on lr, 0 or more, for each parameter by our name",
                got=f"{rate} for {name!r}",
                cause="",
                repair='rates=lambda name: 0.1 if name.startswith("image/") else 1.0',
            )
