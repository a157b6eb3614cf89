"""check_step: does a training step do what its optimiser's settings say?"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params, shapes
from siglip_ref.architecture.sizes import config
from siglip_ref.check.call.frameworks import Setting, dtype_name, framework_of, load_framework
from siglip_ref.check.engine.check import check
from siglip_ref.check.engine.expected.probes import WIDE_FORMATS
from siglip_ref.check.model.adapters.find import adapter_for
from siglip_ref.check.model.probe import SHORT, odd_integers, probe_params
from siglip_ref.check.step.arguments import arguments_named, require_arguments, require_rates
from siglip_ref.check.step.arrived import showing
from siglip_ref.check.step.gradients import PAIRS, OfModel, Slopes, drawn
from siglip_ref.check.step.judge import Plan, Rule, Schedule, reach
from siglip_ref.check.step.run import Model, Update, borrowed, take_steps
from siglip_ref.check.step.subject import Done, StepSubject
from siglip_ref.errors import UsageError
from siglip_ref.model.optim import BigVision
from siglip_ref.process.isolated import as_it_was
from siglip_ref.report.data import Report


@np.errstate(all="ignore")  # what overflows in the reference is a result
def check_step(
    step_fn: Callable[..., Any] | str,
    rule: Rule | None = None,
    model: object = None,
    *,
    schedule: Schedule | None = None,
    accumulate: int = 1,
    restart: Callable[..., Any] | None = None,
    weights: str = "probe",
    dtype: object = None,
    framework: str | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Judge a training step: three steps in a row beside the reference's, parameter by parameter.

    Parameters
    ----------
    step_fn : with a model: step_fn(images, tokens) trains it in place, from zeroing gradients to the optimiser's step;
        it is given 8 pairs. Without: step_fn(params, grads, state) -> params, state, the optimiser alone: dicts of
        arrays by name, state None before the first step. A string, "module:name" or "file.py:name", names a function
        without arguments that returns these arguments as a dict: dict(step_fn=..., rule=..., model=...)
    rule : `AdamW(lr=..., decay=..., max_norm=...)` or `BigVision(...)`: what the step is meant to do, with learning
        rates by group or layer: `rates=lambda name: 0.1 if name.startswith("image/") else 1.0`
    model : a transformers SiglipModel, an open_clip SigLIP model, or a `TorchModel` adapter; the smaller, the quicker
    schedule : the factor on lr of step 0, 1, ...; see `siglip_ref.model.optim.cosine`
    accumulate : micro-batches of a step, each with its own negatives only; 1: all pairs see each other, also where
        embeddings are kept (GradCache)
    restart : saves and loads between the second and the third step. With a model: restart(), which may return a new
        step function, or a new model and its step function. Without: restart(params, state) -> params, state
    weights : "probe", the model is given weights on which mistakes show; "own", it keeps its own
    dtype : what gradients are computed in; None: the format of the model's parameters, without a model float32
    framework : of an update function: "torch", "jax" or "numpy"; None: seen from the function
    device : of an update function: where its arrays are, "cpu", "cuda", ...; a model is trained where it is
    progress : called with a line before each long step

    Returns
    -------
    Report; a row is what a parameter was moved by, at the step where it deviates most

    Raises
    ------
    UsageError : a step function that cannot be called this way, a model of an unknown kind

    Notes
    -----
    Weights and gradients of the model are put back at the end. The optimiser has taken three steps, and keeps what it
    learnt in them: make one for the check.

    Examples
    --------
    >>> import siglip_ref as sr
    >>> from siglip_ref.model.optim import State, adamw_step
    >>> rule = sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0)
    >>> def step(params, grads, state):
    ...     return adamw_step(params, grads, state or State(), rule)
    >>> check_step(step, rule, framework="numpy").verdict
    'PASS'
    """
    if isinstance(step_fn, str):
        return check_step(**{"progress": progress} | arguments_named(step_fn))
    kind = None if dtype is None else dtype_name(dtype, "dtype")
    rule = require_arguments(step_fn, rule, model, schedule, accumulate, weights)
    plan = Plan(rule, schedule or (lambda k: 1.0), accumulate, 0.0, None, restart is not None)
    say = progress or (lambda line: None)

    def take() -> Done:
        with as_it_was():
            if model is None:
                return steps_of_update(step_fn, plan, restart, kind or "float32", framework, say, device)
            return _of_model(step_fn, plan, model, restart, weights, kind, say)

    return check(StepSubject(step_fn, plan, take, restart is not None, say))


_MORE_OF_THE_SAME = ("block01", "/k/", "/v/", "norm2")
# Adafactor keeps means over both axes where they are long, of one long axis not
_FACTORED = {"wide/kernel": (33, 37), "long/kernel": (7, 41)}
_FAR = {"far/kernel": (5, 6)}  # numbers up to 64: a clamp of weights shows


def steps_of_update(
    step_fn: Callable[..., Any],
    plan: Plan,
    restart: Callable[..., Any] | None,
    dtype: str,
    framework: str | None,
    say: Callable[[str], None],
    device: str = "cpu",
) -> Done:
    """Steps with gradients of ours, on the parameters of the smallest model."""
    name, rule = framework or framework_of(step_fn), plan.rule
    loaded = load_framework(name)
    probe = showing(probe_params(config("tiny"), PAIRS, "float32", SHORT), reach(plan), dtype, np.inf)
    start = {n: np.asarray(p, np.float64) for n, p in probe.items() if not any(part in n for part in _MORE_OF_THE_SAME)}
    if isinstance(rule, BigVision):
        start |= {n: odd_integers(shape, 0.25, [9, *shape]).astype(np.float64) for n, shape in _FACTORED.items()}
    if dtype in WIDE_FORMATS:
        start |= {n: odd_integers(shape, 64.0, [9, *shape]).astype(np.float64) for n, shape in _FAR.items()}
    require_rates(rule, start)
    with loaded.environment(step_fn, Setting(dtype, dtype, device, False)):
        trainer = Update(step_fn, restart, name, dtype, start, device)
        taken, reloaded = take_steps(trainer, drawn(start, rule.max_norm, rule.frozen), restart is not None, say)
    return Done(dtype, taken, trainer.formats(), reloaded, None)


def _of_model(
    step_fn: Callable[..., Any],
    plan: Plan,
    model: Any,
    restart: Callable[..., Any] | None,
    weights: str,
    dtype: str | None,
    say: Callable[[str], None],
) -> Done:
    """Steps of a model, with the gradients that the reference finds at its weights."""
    adapter: Any = adapter_for(model)
    if not hasattr(adapter, "write"):
        raise UsageError(
            expected="a torch model, which a step function trains in place",
            got=adapter.name,
            cause="JAX and NumPy have no parameters in place",
            repair="give the update alone: check_step(lambda params, grads, state: ..., rule)",
        )
    kind, rule = dtype or adapter.dtype, plan.rule
    require_rates(rule, shapes(adapter.config))
    source = OfModel(adapter.config, adapter.config.conventions, plan.parts, rule.max_norm, rule.frozen, kind)
    with borrowed(adapter.model):
        if weights == "probe":
            say("probe weights")
            adapter.write(source.start(lambda params: showing(params, reach(plan), adapter.dtype)))
        trainer = Model(step_fn, restart, adapter)
        taken, reloaded = take_steps(trainer, source.choose, restart is not None, say)

    @lru_cache(maxsize=16)
    def micro(k: int, parts: int) -> list[Params]:
        batch = taken[k].batch
        assert batch is not None  # a model's steps have one
        cut = zip(*(np.split(part, parts) for part in batch), strict=True)
        return [source.gradients(taken[k].before, one, 1)[0] for one in cut]

    def slopes(k: int, params: Params, of: Slopes) -> Params:
        batch = taken[k].batch
        assert batch is not None  # as above
        return source.of_slopes(params, batch, of)

    return Done(adapter.dtype, taken, trainer.formats(), reloaded, micro, slopes)
