"""Losses as people write them, called as one of four arguments: those that a loss does not take are kept from it."""

import inspect
from collections.abc import Callable
from typing import Any

from siglip_ref.check.call.frameworks import describe


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


def without_bias(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss as one that is given a bias; in NumPy its three gradients are followed by none."""

    def of_four(image_embed: Any, text_embed: Any, log_scale: Any, bias: Any) -> Any:
        result = fn(image_embed, text_embed, log_scale)
        return (*result, None) if isinstance(result, tuple | list) and len(result) == 4 else result

    return named_as(fn, of_four)


def named_as(fn: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """The other one under the name of the first, which reports show."""
    other.__qualname__ = describe(fn)
    other.__module__ = "builtins"
    return other
