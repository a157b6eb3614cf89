"""What a loss may return, and what is said of anything else."""

from siglip_ref.errors import UsageError


def no_scalar(result: object, shape: tuple[int, ...] | None) -> UsageError:
    """The error for a result that is no number."""
    if shape is not None:
        got, cause = f"an array of shape {shape}", "a loss per pair or per row that was not summed"
    elif isinstance(result, dict | tuple | list):
        got, cause = f"a {type(result).__name__} of {len(result)}", "several results, or losses by name"
    else:
        got, cause = f"{type(result).__name__}", "the function returns another thing, or nothing"
    return UsageError(
        expected="one number, the loss: the sum over all pairs divided by the number of images",
        got=got,
        cause=cause,
        repair="return loss.sum() / len(image_embed), or wrap the function: lambda *inputs: fn(*inputs)[0]",
    )
