"""Calling and differentiating a loss written in JAX. Loaded only when such a loss is checked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siglip_ref.check.call.frameworks import (
    ALONE,
    ARGUMENTS,
    Framework,
    Inputs,
    Outcome,
    Setting,
    Way,
    wanted,
)
from siglip_ref.check.call.in_numpy import as_float64
from siglip_ref.check.call.refusals import ELSEWHERE
from siglip_ref.check.call.results import no_scalar
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array


class Jax:
    """A fresh one for each check: it keeps what jit compiled."""

    name = "jax"
    ways: tuple[Way, ...] = ("again", "upstream", "eager", *ALONE)

    def __init__(self) -> None:
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._scalars: set[tuple[Any, ...]] = set()  # functions and shapes of which it is known that a number comes out

    def call(self, fn: Callable[..., Any], inputs: Inputs, setting: Setting, way: Way) -> Outcome:
        """Loss and gradients: "plain" and "again" under jit, the other ways without."""
        values = _arguments(inputs, setting)
        places = [ARGUMENTS.index(name) for name in wanted(setting, way)]
        if way == "upstream":

            def of_wanted(*given: Any) -> Any:
                return fn(*(given[places.index(k)] if k in places else value for k, value in enumerate(values)))

            loss, pull = jax.vjp(of_wanted, *(values[k] for k in places))
            gradients = pull(jnp.full_like(loss, 3))
        elif way in ("plain", "again"):
            known = (fn, *((value.shape, value.dtype) for value in values))
            if known not in self._scalars:
                _require_scalar(fn, values)
                self._scalars.add(known)
            loss, gradients = self._jitted(fn, places)(*values)
        else:
            loss, gradients = jax.value_and_grad(fn, tuple(places))(*values)
        named = {ARGUMENTS[k]: as_float64(g) for k, g in zip(places, gradients, strict=True)}
        return Outcome(as_float64(loss).reshape(()), dict(named))

    def _jitted(self, fn: Callable[..., Any], places: list[int]) -> Callable[..., Any]:
        if fn not in self._compiled:
            self._compiled[fn] = jax.jit(jax.value_and_grad(fn, tuple(places)))
        return self._compiled[fn]

    @contextmanager
    def environment(self, fn: Callable[..., Any], setting: Setting) -> Iterator[None]:
        """64-bit numbers where they are asked for, on the device asked for; both only for the time of the check."""
        if setting.autocast:
            raise UsageError(
                expected='precision="pure" for a JAX loss',
                got='precision="autocast"',
                cause="JAX has no autocast: a loss casts itself",
                repair='siglip_ref.check_loss(fn, dtype="bfloat16")',
            )
        try:
            kind, _, index = setting.device.partition(":")
            device = jax.devices(kind)[int(index or 0)]
        except (RuntimeError, IndexError, ValueError) as cause:
            raise UsageError(
                expected=f"a device that JAX sees: {', '.join(map(str, jax.devices()))}",
                got=repr(setting.device),
                cause=str(cause).splitlines()[0],
                repair='device="cpu", or install the JAX of your accelerator; where there is none: ' + ELSEWHERE,
            ) from None
        with jax.enable_x64("float64" in (setting.dtype, setting.scalar_dtype)), jax.default_device(device):
            yield


def _arguments(inputs: Inputs, setting: Setting) -> list[Array]:
    # in float32 first: bfloat16 is no NumPy type of its own, and all probes are exact in it
    kinds = (setting.input_dtype, setting.input_dtype, setting.scalar_dtype, setting.scalar_dtype)
    numbers = (inputs.image_embed, inputs.text_embed, inputs.scale, inputs.bias)
    return [jnp.asarray(np.asarray(x, np.float64)).astype(kind) for x, kind in zip(numbers, kinds, strict=True)]


def _require_scalar(fn: Callable[..., Any], values: list[Array]) -> None:
    result = jax.eval_shape(fn, *values)
    if getattr(result, "shape", None) != ():
        raise no_scalar(result, getattr(result, "shape", None))


FRAMEWORK: type[Framework] = Jax
