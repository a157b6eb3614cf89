"""What a loss may return, and what is said of anything else."""

from collections.abc import Mapping
from typing import Any

from siglip_ref.errors import UsageError


def no_scalar(result: object, shape: tuple[int, ...] | None) -> UsageError:
    """The error for a result that is no number."""
    got, cause, repair = f"a {type(result).__name__}", "", "return loss.sum() / len(image_embed)"
    if shape is not None:
        got, cause = f"an array of shape {shape}", "a loss that was not summed" if len(shape) else ""
    elif isinstance(result, Mapping):
        key = _loss_of(result)
        got, cause = f"a {type(result).__name__} of {len(result)}: {_listed(result)}", "results by name"
        repair = f"wrap the function: lambda *inputs: fn(*inputs)[{key!r}]"
    elif isinstance(result, tuple | list):
        got, cause = f"a {type(result).__name__} of {len(result)}", "several results" if result else ""
        repair = "wrap the function: lambda *inputs: fn(*inputs)[0]"
    elif result is None:
        got, cause = "nothing (None)", "the function ends without a return"
    return UsageError(
        expected="one number, the loss: the sum over all pairs divided by the number of images",
        got=got,
        cause=cause,
        repair=repair,
    )


def loss_of(result: Any) -> Any:
    """The loss among several results: by its name, or the first."""
    if isinstance(result, Mapping) and result:
        return result[_loss_of(result)]
    return result[0] if isinstance(result, tuple | list) and result else result


def _loss_of(result: Mapping[object, object]) -> object:
    """The key that sounds most like a loss: that word, then one that has it in it, then the first."""
    keys = list(result)
    return next((key for key in keys if key == "loss"), None) or next(
        (key for key in keys if "loss" in str(key)), keys[0] if keys else "loss"
    )


def _listed(result: Mapping[object, object]) -> str:
    return ", ".join(map(repr, list(result)[:6])) + (" ..." if len(result) > 6 else "") if result else "no keys"
