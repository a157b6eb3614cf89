"""The arguments of a check of a loss, refused with a reason before anything runs."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from siglip_ref.check.call.frameworks import ARGUMENTS, Setting, describe, dtype_name
from siglip_ref.check.call.refusals import holds_its_own, own_parameters
from siglip_ref.check.diagnosis.product_findings import DECLARED
from siglip_ref.check.engine.expected.convention import SIGMOID, SOFTMAX, Objective
from siglip_ref.check.engine.expected.expected import Convention, conventions_of
from siglip_ref.check.engine.expected.probes import Dims, read_dims
from siglip_ref.errors import UsageError

SIZES = {"small": "up to 1,151 pairs", "real": "4,100 pairs besides"}  # of the largest batch
LOSSES = {"sigmoid": "SigLIP's, every pair by itself", "softmax": "CLIP's, cross-entropy of rows and of columns"}
REDUCTIONS = {"batch": "the sum over all pairs, divided by B", "mean": "divided by B * B"}
POSITIVES = {
    "own": "row i of both",
    "ids": "rows of equal ids, which fn is given",
    "captions": "an image and every text that equals its own, which fn finds",
}
WEIGHTS = {"pairs": "(B, B), which fn is given", "rows": "(B,), of images", "columns": "(B,), of texts"}
PARAMETERS = {"log_scale": "log", "scale": "linear", "temperature": "linear", "bias": ""}  # and the scale they are
_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}


def require_instance(fn: object) -> None:
    """Something to call; a class is not yet a loss."""
    if isinstance(fn, type) or not callable(fn):
        raise UsageError(
            expected="a function, or an object that can be called",
            got=f"the class {describe(fn)}" if isinstance(fn, type) else f"a {type(fn).__name__}",
            cause="a class is not yet a loss" if isinstance(fn, type) else "",
            repair=f"give an instance: {fn.__name__}(...)" if isinstance(fn, type) else "check the name",
        )


def require_arguments(fn: Callable[..., Any], arguments: Sequence[str] = ARGUMENTS, **by_name: str) -> None:
    """A function that can be called with these arguments by position, and these by name."""
    own = holds_its_own(fn, len(arguments))
    if own:
        raise own
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # compiled functions need not tell
        return
    try:
        signature.bind(*arguments, **by_name)
    except TypeError as cause:
        softmax = "bias" in arguments and _binds(signature, [one for one in arguments if one != "bias"], by_name)
        short = (argument.removesuffix("_embed").removesuffix("_shard") for argument in arguments)
        raise UsageError(
            expected=f"a loss with {_COUNTS[len(arguments)]} arguments by position: {', '.join(arguments)}",
            got=f"{describe(fn)}{signature}",
            cause=f"another number of arguments ({cause})",
            repair=f"wrap it: lambda {', '.join(short)}: fn(...)"
            + ('; CLIP\'s softmax loss has no bias: loss="softmax"' if softmax else ""),
        ) from None


def _binds(signature: inspect.Signature, arguments: Sequence[str], by_name: Mapping[str, str]) -> bool:
    try:
        signature.bind(*arguments, **by_name)
    except TypeError:
        return False
    return True


def takes(fn: Callable[..., Any], name: str) -> bool:
    """Whether a function says that it has a parameter of this name."""
    try:
        return name in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # compiled functions need not tell
        return False


def require_one_of(argument: str, value: object, meanings: Mapping[str, str]) -> None:
    """One of a few words; each has a meaning, by which to choose."""
    if not (isinstance(value, str) and value in meanings):
        raise UsageError(
            expected=f"{argument} one of " + ", ".join(f'"{word}"' for word in meanings),
            got=f"{argument}={value!r}",
            cause="another word, or another type",
            repair="; ".join(f'{argument}="{word}": {meaning}' for word, meaning in meanings.items()),
        )


def require_dims(dims: Dims) -> None:
    """Numbers by themselves are the likeliest slip: one shape where a list of shapes belongs."""
    try:
        read_dims(dims)
    except TypeError:
        alone = isinstance(dims, Sequence) and len(dims) == 2
        raise UsageError(
            expected="dims as multiples, dict(batch=16, dim=32), or as a list of shapes, [(64, 128), (96, 128)]",
            got=repr(dims),
            cause="one shape, not a list of them" * alone,
            repair=f"dims=[{dims!r}]" if alone else "dims=dict(batch=16, dim=32)",
        ) from None


def require_whole(argument: str, value: object, least: int, most: int, cause: str) -> int:
    """A whole number of any kind within a range; no truth value."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= int(value) <= most:  # type: ignore[call-overload]  # looked at just before
        raise UsageError(
            expected=f"{argument}, a whole number from {least} to {most}",
            got=f"{argument}={value!r}" + ("" if whole else f", a {type(value).__name__}"),
            cause=cause if whole else "another type",
            repair=f"{argument}={min(max(4, least), most)}",
        )
    return int(value)  # type: ignore[call-overload, no-any-return]


def require_seconds(argument: str, value: object, usual: float) -> float:
    """A positive, finite number of seconds."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not 0 < float(value) < math.inf:  # type: ignore[arg-type]  # looked at just before
        raise UsageError(
            expected=f"{argument}, a number of seconds above 0",
            got=f"{argument}={value!r}",
            cause="nothing can be done in that time" if real else "another type",
            repair=f"{argument}={usual:g}",
        )
    return float(value)  # type: ignore[arg-type]


def setting_of(
    dtype: object,
    scalar_dtype: object,
    device: str,
    precision: str,
    frozen: str | Sequence[str] = (),
    products: str | None = None,
) -> Setting:
    """In what the loss will be computed; types may be names, or a framework's own."""
    name, scalar = dtype_name(dtype, "dtype"), dtype_name(scalar_dtype, "scalar_dtype")
    if precision not in ("pure", "autocast") or (precision == "autocast" and name not in ("bfloat16", "float16")):
        raise UsageError(
            expected='precision "pure", or "autocast" with dtype "bfloat16" or "float16"',
            got=f'precision {precision!r} with dtype "{name}"',
            cause="autocast computes products in 16 bits",
            repair='check_loss(fn, dtype="bfloat16", precision="autocast")',
        )
    if name == "float64":
        scalar = "float64"
    still = tuple("log_scale" if one == "scale" else one for one in ((frozen,) if isinstance(frozen, str) else frozen))
    if not set(still) < set(ARGUMENTS):
        raise UsageError(
            expected=f"frozen: some of {', '.join(ARGUMENTS)}",
            got=", ".join(map(repr, frozen)),
            cause="another name" if set(still) - set(ARGUMENTS) else "no input is left whose gradient is asked for",
            repair='frozen=("image_embed",)',
        )
    if products is not None and (products not in DECLARED or name != "float32"):
        raise UsageError(
            expected='products "tf32" or "bfloat16", with dtype "float32", or None: products are not rounded',
            got=f'products {products!r} with dtype "{name}"',
            cause="only products of float32 numbers are sped up so",
            repair='check_loss(fn, products="tf32")',
        )
    return Setting(name, scalar, str(device), precision == "autocast", still, products or "")


def declared_objective(
    loss: object,
    reduction: object,
    bias: bool,
    positives: object,
    weights: Any,
    label_smoothing: Any,
    captions_per_image: object = 1,
) -> Objective:
    """What the loss was declared to compute."""
    require_one_of("loss", loss, LOSSES)
    require_one_of("reduction", reduction, REDUCTIONS)
    require_one_of("positives", positives, POSITIVES)
    if isinstance(weights, Sequence) and not isinstance(weights, str):
        weights = tuple(weights)
        if len(weights) != 2 or not all(isinstance(one, Real) and 0 <= float(one) < math.inf for one in weights):
            raise UsageError(
                expected="weights: two numbers, of positives and of negatives",
                got=repr(weights),
                cause="another number of them, or no finite ones from 0 up",
                repair="weights=(3.0, 1.0)",
            )
    elif weights is not None:
        require_one_of("weights", weights, WEIGHTS)
    if not isinstance(label_smoothing, Real) or not 0 <= float(label_smoothing) < 1:
        raise UsageError(
            expected="label_smoothing, a number from 0 up to 1",
            got=repr(label_smoothing),
            cause="labels are 1 - label_smoothing / 2 and label_smoothing / 2",
            repair="label_smoothing=0.1",
        )
    per_image = require_whole("captions_per_image", captions_per_image, 1, 16, "more were never seen")
    found = Objective(loss, bias, reduction, positives, weights, float(label_smoothing), per_image)  # type: ignore[arg-type]  # names, looked at above
    if loss == "softmax" and replace(found, bias=True) != SOFTMAX:
        raise UsageError(
            expected='loss="softmax" as it is: the mean of the cross-entropies of rows and of columns',
            got="a reduction, positives, weights, label_smoothing or captions_per_image besides",
            cause="these are variants of the sigmoid loss",
            repair='check_loss(fn, loss="softmax")',
        )
    return found


def require_parameters(fn: object, parameters: Mapping[str, str]) -> Any:
    """A Torch module that has these, of which exactly one is the scale; how it is given: as `scale` of check_loss."""
    own = own_parameters(fn)
    cause, repair = _amiss(fn, parameters, {name: math.prod(shape) for name, shape in own})
    if cause:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in own) or "none"
        raise UsageError(
            expected="parameters: of names of the module, each one number, which is its " + ", ".join(PARAMETERS),
            got=f"parameters={dict(parameters)!r} of {describe(fn)}, which has {listed}",
            cause=cause,
            repair=repair,
        )
    return next(PARAMETERS[what] for what in parameters.values() if PARAMETERS[what])


def _amiss(fn: object, parameters: Mapping[str, str], sizes: Mapping[str, int]) -> tuple[str, str]:
    """What is wrong with these, and what to do; "" where nothing is. sizes : of the module's own parameters."""
    if not sizes:
        return f"{describe(fn)} is no Torch module with parameters of its own", "check_loss(fn), without parameters"
    numbers = [name for name, size in sizes.items() if size == 1]
    odd = [name for name in parameters if name not in numbers]
    words = [what for what in parameters.values() if what not in PARAMETERS]
    scales = [name for name, what in parameters.items() if PARAMETERS.get(what)]
    left = [name for name in numbers if name not in parameters]
    declared = ", ".join(f'"{name}": "{what}"' for name, what in parameters.items())
    if odd:
        many = f"{sizes[odd[0]]:,} numbers" if odd[0] in sizes else "no parameter of the module"
        return f"{odd[0]!r} is {many}", f"name one of these: {', '.join(numbers) or 'none is one number'}"
    if words:
        return f"{words[0]!r} is none of these words", f"which it is, of {', '.join(PARAMETERS)}"
    if len(scales) > 1:
        return (
            f"{' and '.join(scales)} are all declared to be the scale",
            "declare the one that is it",
        )
    if not scales and left:
        cause = f"none of the parameters is declared to be the scale, and nothing is said of {', '.join(left)}"
        return cause, f'parameters={{"{left[0]}": "log_scale", {declared}}}, if the scale is its exponential'
    return ("", "") if scales else _fixed(fn, list(parameters))


def _fixed(fn: object, biases: Sequence[str]) -> tuple[str, str]:
    """Of a module in which no parameter is the scale: what it may be, and how it is given all the same."""
    buffers = {name: one for name, one in getattr(fn, "named_buffers", list)() if one.numel() == 1}
    held = {name: one for name, one in vars(fn).items() if isinstance(one, float)} | buffers
    numbers = ", ".join(f"{name} = {float(one):g}" for name, one in held.items())
    cause = (
        f"the module has no parameter that is the scale, none of one number but {' and '.join(biases) or 'the bias'}"
    )
    name = next(iter(held), "NAME")
    given = ", ".join(f'"{one}": bias' for one in biases)
    return cause + (f"; fixed are {numbers}" if held else ""), (
        f"make the scale a parameter; or, if it is fixed, check a function that sets it: def loss(image, text, "
        f"log_scale, bias): fn.{name} = log_scale.exp() (1 / log_scale.exp() where similarities are divided by it); "
        f"return torch.func.functional_call(fn, {{{given}}}, (image, text))"
    )


def declared_conventions(scale: str, embeddings: str, objective: Objective = SIGMOID) -> list[Convention]:
    """The conventions that the arguments allow."""
    every = conventions_of(objective)
    allowed = [c for c in every if scale in (c.scale, "auto") and embeddings in (c.embeddings, "auto")]
    if not allowed:
        raise UsageError(
            expected='scale "log", "linear" or "auto", and embeddings "unit", "raw" or "auto"',
            got=f"scale={scale!r}, embeddings={embeddings!r}",
            cause="there is no such convention",
            repair='scale="log", embeddings="unit"',
        )
    return allowed
