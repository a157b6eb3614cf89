"""Losses as people write them, called as one of four arguments: what a loss does not take is kept from it, what else it
takes is given to it, and a module's own parameters are set to scale and bias."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import describe
from siglip_ref.ops.elementary import Array

Extra = Callable[[int], Array]  # of the number of pairs


def takes(fn: Callable[..., Any], count: int) -> bool | None:
    """Whether a function can be called with so many arguments by position; None where it does not tell."""
    try:
        signature = inspect.signature(getattr(fn, "forward", fn))
    except (TypeError, ValueError):  # compiled functions need not tell
        return None
    try:
        signature.bind(*(None for _ in range(count)))
    except TypeError:
        return False
    return True


def of_four(fn: Callable[..., Any], bias: bool, extras: Sequence[Extra], framework: str) -> Callable[..., Any]:
    """The loss as one of four arguments.

    Parameters
    ----------
    bias : whether it takes one; in NumPy three gradients are then followed by none
    extras : what it takes besides, whole numbers or numbers, of the embeddings' kind
    """

    def called(image_embed: Any, text_embed: Any, log_scale: Any, given_bias: Any) -> Any:
        more = [_like(extra(len(image_embed)), image_embed, framework) for extra in extras]
        result = fn(image_embed, text_embed, log_scale, *((given_bias,) if bias else ()), *more)
        return result if bias else of_no_bias(result)

    return _named_as(fn, called)


def of_no_bias(result: Any) -> Any:
    """Of a loss without a bias: a loss and three gradients, as a NumPy function returns them, are followed by none."""
    return (*result, None) if isinstance(result, tuple | list) and len(result) == 4 else result


def of_module(fn: Any, parameters: Mapping[str, str]) -> Callable[..., Any]:
    """A Torch module that holds scale and bias itself, as a loss that is given them: `parameters` says what each of its
    own is. What it returns besides the loss is dropped."""
    from siglip_ref.check.call.module_in_torch import differentiated

    shapes = {name: parameter.shape for name, parameter in fn.named_parameters()}
    leaves = 4 if "bias" in parameters.values() else 3  # of the inputs; what else it takes comes after

    def own(image_embed: Any, text_embed: Any, scale: Any, bias: Any = None) -> dict[str, Any]:
        values = {"log_scale": scale, "scale": scale, "temperature": 1 / scale, "bias": bias}
        return {name: values[what].reshape(shapes[name]) for name, what in parameters.items()}

    def called(*inputs: Any) -> Any:
        return differentiated(fn, own, inputs[:leaves], inputs[leaves:])

    return _named_as(fn, called)


def _like(values: Array, rows: Any, framework: str) -> Any:
    """An array of the kind of the embeddings; whole numbers stay whole."""
    whole = values.dtype.kind == "i"
    if framework == "torch":
        import torch

        return torch.as_tensor(np.array(values), device=rows.device).to(torch.int64 if whole else rows.dtype)
    if framework == "jax":
        import jax.numpy as jnp

        return jnp.asarray(values, jnp.int32 if whole else rows.dtype)
    return values.copy() if whole else values.astype(rows.dtype)


def _named_as(fn: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The other one under the name of the first, which reports show."""
    other.__qualname__ = describe(fn)
    other.__module__ = "builtins"
    return other
