"""Calling a loss written in NumPy, which returns its gradients itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import (
    ARGUMENTS,
    Framework,
    Inputs,
    Outcome,
    Setting,
    Way,
    wanted,
)
from siglip_ref.check.call.results import no_scalar
from siglip_ref.errors import UsageError, need
from siglip_ref.ops.elementary import Array


class Numpy:
    """Nothing to differentiate: the function gives its gradients."""

    name = "numpy"
    ways: tuple[Way, ...] = ("again", "strided")

    def call(self, fn: Callable[..., Any], inputs: Inputs, setting: Setting, way: Way) -> Outcome:
        """Loss and gradients, as fn returns them."""
        kinds = (setting.input_dtype, setting.input_dtype, setting.scalar_dtype, setting.scalar_dtype)
        numbers = (inputs.image_embed, inputs.text_embed, inputs.scale, inputs.bias)
        values = [np.array(x).astype(numpy_dtype(kind)) for x, kind in zip(numbers, kinds, strict=True)]
        if way == "strided":
            values = [np.asfortranarray(values[0]), np.repeat(values[1], 2, 1)[:, ::2], *values[2:]]
        before = [value.copy() for value in values]
        with np.errstate(all="ignore"):
            result = fn(*values)
        require_five(result, "check_loss")
        loss, *gradients = (None if value is None else as_float64(value) for value in result)
        if loss is None or loss.size != 1:
            raise no_scalar(result[0], None if loss is None else loss.shape)
        modified = [name for name, a, b in zip(ARGUMENTS, values, before, strict=True) if not np.array_equal(a, b)]
        named = {name: _number(g) for name, g in zip(ARGUMENTS, gradients, strict=True) if name in wanted(setting, way)}
        return Outcome(loss.reshape(()), named, modified)

    @contextmanager
    def environment(self, fn: Callable[..., Any], setting: Setting) -> Iterator[None]:
        """Nothing of its own: the random states are put back for every framework."""
        if setting.autocast or setting.device != "cpu":
            raise UsageError(
                expected='device="cpu", precision="pure" for a NumPy loss',
                got=f'device="{setting.device}", autocast {setting.autocast}',
                cause="NumPy computes on the CPU, in the dtype of its arrays",
                repair='check_loss(fn, framework="numpy")',
            )
        yield


def _number(gradient: Array | None) -> Array | None:
    """A gradient by a scalar may come with shape (1,)."""
    return gradient.reshape(()) if gradient is not None and gradient.shape == (1,) else gradient


def require_five(result: object, check: str) -> None:
    """What a NumPy loss returns. check: the function that was called."""
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise UsageError(
            expected="a NumPy loss that returns the loss and the four gradients: "
            "loss, d_image_embed, d_text_embed, d_log_scale, d_bias",
            got=f"a {type(result).__name__}" + (f" of {len(result)}" if isinstance(result, tuple | list) else ""),
            cause="NumPy does not differentiate, so the gradients must come from the function",
            repair=f'return all five, or {check}(fn, framework="torch") if it is a Torch function',
        )


def numpy_dtype(name: str) -> Any:
    """Also bfloat16, which NumPy does not have itself."""
    if name != "bfloat16":
        return np.dtype(name)
    return np.dtype(need("ml_dtypes", "which gives NumPy its bfloat16").bfloat16)


def as_float64(values: Array) -> Array:
    """A float64 copy, also of the 16-bit types NumPy does not know itself."""
    array = np.array(values)
    if array.dtype.kind in "cSUmM":
        raise TypeError(f"{array.dtype} in place of real numbers")
    return array.astype(np.float64)


FRAMEWORK: type[Framework] = Numpy
