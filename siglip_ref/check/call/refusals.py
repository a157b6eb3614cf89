"""What is said of a loss that cannot be called, from what it raised and what it is."""

import inspect
from collections.abc import Sequence
from typing import Any

from siglip_ref.check.call.answers import in_a_line
from siglip_ref.check.call.as_written import takes
from siglip_ref.check.call.frameworks import describe
from siglip_ref.errors import UsageError

# what a machine without the device can do
ELSEWHERE = (
    "siglip-ref vectors export FOLDER, compute its answers where the device is, siglip-ref check dump ANSWERS here"
)
_SCALES = ("scale", "temp", "tau", "t_prime")  # parts of a parameter's name that speak of the scale


def own_parameters(fn: object) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters that a Torch module holds itself; none of anything else."""
    named = getattr(fn, "named_parameters", None)
    if named is None or not callable(getattr(fn, "forward", None)):
        return []
    return [(name, tuple(parameter.shape)) for name, parameter in named()]


def holds_its_own(fn: Any, arguments: int = 4) -> UsageError | None:
    """The error for a module whose scale and bias are its own parameters, so that it takes fewer arguments; None where
    it is no such module."""
    parameters = own_parameters(fn)
    if not parameters or takes(fn, arguments):
        return None
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in parameters)
    call = f"torch.func.functional_call(fn, {_given(parameters)}, (image, text))"
    return UsageError(
        expected="a loss with four arguments by position: image_embed, text_embed, log_scale, bias",
        got=f"{describe(fn)}.forward{inspect.signature(fn.forward)}, a module with parameters of its own: {listed}",
        cause="scale and bias are not among its arguments",
        repair=f"lambda image, text, log_scale, bias: {call}; look at which is which, and whether it stores the scale "
        f"or its logarithm; or check_loss(fn, parameters={_declared(parameters)})",
    )


def refuses_everything(error: Exception | None, device: str) -> UsageError:
    """The error for a loss that raised at every probe."""
    words = in_a_line(error)
    wrap = "wrap it: lambda image, text, log_scale, bias: fn(...)"
    cause, repair = "", f"give the shapes it needs, dims=dict(batch=16, dim=32); another dtype=; or {wrap}"
    if "cuda" in words.lower() and device == "cpu":
        cause = "it asks for a GPU, and was given tensors on the CPU"
        repair = f'device="cuda"; where there is none: {ELSEWHERE}'
    elif isinstance(error, TypeError) and "argument" in words:
        cause, repair = "it takes other arguments", wrap
    return UsageError(
        expected="a loss that can be called with (image_embed, text_embed, log_scale, bias)",
        got=f"{words} at every probe",
        cause=cause,
        repair=repair,
    )


def _given(parameters: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """The dict that gives them."""
    shaped = {name: f".reshape({list(shape)})" * bool(shape) for name, shape in parameters}
    return "{" + ", ".join(f'"{name}": {what}{shaped[name]}' for name, what in _roles(parameters).items()) + "}"


def _declared(parameters: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """The dict that says which is which."""
    return "{" + ", ".join(f'"{name}": "{what}"' for name, what in _roles(parameters).items()) + "}"


def _roles(parameters: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """The one that sounds like a scale is it, else the first that does not sound like a bias; another one the bias."""
    names = [name for name, _ in parameters]
    likely = [name for name in names if any(part in name.lower() for part in _SCALES)]
    scale = next(iter(likely), next((name for name in names if "bias" not in name.lower()), None))
    bias = next((name for name in names if name != scale), None)
    return ({scale: "log_scale"} if scale else {}) | ({bias: "bias"} if bias else {})
