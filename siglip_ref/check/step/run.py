"""Taking three steps with the code under test: a torch model in place, or an update function in any framework."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.call.answers import answered
from siglip_ref.check.call.frameworks import describe
from siglip_ref.check.call.held import put_back
from siglip_ref.check.call.in_numpy import as_float64
from siglip_ref.check.step.gradients import Batch
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

STEPS = 3
RESTART_BEFORE = 2  # the step, counted from 0, before which the state is saved and loaded


class Trainer(Protocol):
    """Something that takes steps."""

    def params(self) -> Params:
        """Copies of the parameters as they are now, float64, by our names."""

    def step(self, grads: Mapping[str, Array], batch: Batch | None) -> None:
        """One step; the gradients are known, or follow from the batch."""

    def restart(self) -> None:
        """Save and load."""

    def formats(self) -> dict[str, str]:
        """In what each parameter is stored, by our names."""

    def given(self, grads: Params) -> Params:
        """Gradients as the step has them, where they are handed over in few bits."""


@dataclass
class Update:
    """step_fn(params, grads, state) -> params, state: dicts of arrays by name; state is None before the first step."""

    step_fn: Callable[..., Any]
    restart_fn: Callable[..., Any] | None
    framework: str
    dtype: str
    start: Params
    device: str = "cpu"
    held: Any = field(init=False)
    state: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.held = self._theirs(self.start, leaves=True)

    def params(self) -> Params:
        """Copies of what the last step returned."""
        return {name: self._ours(value) for name, value in self.held.items()}

    def step(self, grads: Mapping[str, Array], batch: Batch | None) -> None:
        """One call."""
        self._keep(self.step_fn(self.held, self._theirs(grads), self.state), self.step_fn, "params, grads, state")

    def restart(self) -> None:
        """Hand both through the user's save and load."""
        assert self.restart_fn is not None  # asked for only where there is one
        self._keep(self.restart_fn(self.held, self.state), self.restart_fn, "params, state")

    def formats(self) -> dict[str, str]:
        """Of what the last step returned."""
        return {name: str(value.dtype).removeprefix("torch.") for name, value in self.held.items()}

    def given(self, grads: Params) -> Params:
        """In the format of the update."""
        return {name: self._ours(value) for name, value in self._theirs(grads).items()}

    def _keep(self, result: Any, fn: Callable[..., Any], given: str) -> None:
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Mapping)):
            raise UsageError(
                expected=f"{describe(fn)}({given}) that returns params, state: a dict of arrays and anything",
                got=f"a {type(result).__name__}" + (f" of {len(result)}" if isinstance(result, tuple | list) else ""),
                cause=_returned(result),
                repair="return params, state",
            )
        params, self.state = result
        found = {name: tuple(np.shape(value)) for name, value in params.items()}
        if found != {name: value.shape for name, value in self.start.items()}:
            wrong = sorted(
                name
                for name in found.keys() | self.start.keys()
                if name not in found or name not in self.start or found[name] != self.start[name].shape
            )
            raise UsageError(
                expected="parameters of the same names and shapes as they were given",
                got=f"other ones: {', '.join(wrong[:4])}",
                cause="",
                repair="return every parameter, also those that do not change",
            )
        self.held = dict(params)

    def _theirs(self, arrays: Mapping[str, Array], leaves: bool = False) -> dict[str, Any]:
        if self.framework == "torch":
            import torch

            kind = getattr(torch, self.dtype)
            wide = {n: torch.tensor(a, dtype=torch.float64, device="cpu") for n, a in arrays.items()}
            return {n: a.to(self.device, kind).requires_grad_(leaves) for n, a in wide.items()}
        if self.framework == "jax":
            import jax.numpy as jnp

            return {n: jnp.asarray(a).astype(self.dtype) for n, a in arrays.items()}
        return {n: np.array(a, self.dtype) for n, a in arrays.items()}

    def _ours(self, value: Any) -> Array:
        if self.framework == "torch":
            return np.array(value.detach().cpu().double().numpy())
        return as_float64(value)


def _returned(result: Any) -> str:
    """What an update gave instead of parameters and a state, where it is plain."""
    if result is None:
        return "nothing came back: the function updates in place"
    return "the parameters came back alone" if isinstance(result, Mapping) else ""


@dataclass
class Model:
    """step_fn(images, tokens) trains a torch model in place."""

    step_fn: Callable[..., Any]
    restart_fn: Callable[[], Any] | None
    adapter: Any  # a TorchModel, which cannot be named without torch

    def params(self) -> Params:
        """The model's weights."""
        return {name: np.asarray(value, np.float64) for name, value in self.adapter.parameters("float64").items()}

    def step(self, grads: Mapping[str, Array], batch: Batch | None) -> None:
        """One call, on a batch as the model wants it."""
        assert batch is not None  # a model computes its gradients itself
        self.step_fn(*self.adapter.inputs(*batch))

    def formats(self) -> dict[str, str]:
        """Of the model's own parameters."""
        theirs = dict(self.adapter.model.named_parameters())
        return {entry.ours: str(theirs[entry.theirs].dtype).removeprefix("torch.") for entry in self.adapter.table}

    def given(self, grads: Params) -> Params:
        """A model computes them itself."""
        return grads

    def restart(self) -> None:
        """The user's save and load; it may return another step function, or another model and its step function."""
        assert self.restart_fn is not None
        result = self.restart_fn()
        if isinstance(result, tuple) and len(result) == 2:
            from siglip_ref.check.model.adapters.find import adapter_for

            self.adapter, self.step_fn = adapter_for(result[0]), result[1]
        elif result is not None:
            self.step_fn = result
        if not callable(self.step_fn):
            raise UsageError(
                expected="restart() that returns nothing, a step function, or a model and its step function",
                got=f"a {type(result).__name__}",
                cause="",
                repair="load it in restart(), and return the new step function",
            )


@contextmanager
def borrowed(model: Any) -> Iterator[None]:
    """A torch model that is put back at the end, and so are Torch's random states."""
    import torch

    with put_back(model), torch.random.fork_rng(), torch.inference_mode(False):
        yield


@dataclass(frozen=True)
class Taken:
    """One step as it was taken. grads : what it should have had; given : the same as it had them; noise : by tensor,
    how far a correct program's gradients may lie off; moved : what was added to each parameter; batch : None where
    gradients were given."""

    before: Params
    grads: Params
    given: Params
    noise: dict[str, float]
    moved: Params
    batch: Batch | None


def given(one: Taken, grads: Params) -> Taken:
    """A step with other gradients: what is larger in them has more noise."""
    grown = {n: max(1.0, float(np.max(np.abs(g)) / (np.max(np.abs(one.grads[n])) or 1.0))) for n, g in grads.items()}
    return replace(one, grads=grads, noise={n: x * grown.get(n, 1.0) for n, x in one.noise.items()})


def take_steps(
    trainer: Trainer,
    choose: Callable[[int, Params], tuple[Params, dict[str, float], Batch | None]],
    restart: bool,
    say: Callable[[str], None],
) -> tuple[list[Taken], Params]:
    """Steps until the last, or until a parameter is no number.

    Parameters
    ----------
    choose : gives step k, at these parameters, its gradients, their noise, and its batch
    restart : save and load before the last step

    Returns
    -------
    steps : what happened
    reloaded : what save and load changed in each parameter; empty without a restart
    """
    steps, reloaded = [], Params()
    before = trainer.params()
    for k in range(STEPS):
        if restart and k == RESTART_BEFORE:
            say("save and load")
            loaded = _answer(trainer, "restart", trainer.restart)
            reloaded = {name: loaded[name] - value for name, value in before.items()}
            before = loaded
        if not all(np.isfinite(value).all() for value in before.values()):
            if k:
                break
            raise UsageError(
                expected="a model whose weights are numbers",
                got="NaN or infinity among its own weights, before any step",
                cause="",
                repair='check_step(step_fn, rule, model, weights="probe")',
            )
        say(f"step {k + 1}")
        grads, noise, batch = choose(k, before)
        after = _answer(trainer, f"step {k + 1}", partial(trainer.step, grads, batch))
        moved = {name: after[name] - value for name, value in before.items()}
        steps.append(Taken(before, grads, trainer.given(grads), noise, moved, batch))
        before = after
    return steps, reloaded


def _answer(trainer: Trainer, what: str, call: Callable[[], None]) -> Params:
    """The parameters afterwards."""

    def params() -> Params:
        call()
        return trainer.params()

    return answered(f"{what} that ends, and parameters of real numbers after it", params)
