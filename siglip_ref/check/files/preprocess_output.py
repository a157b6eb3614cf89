"""What a preprocessing function may give for an image, and what is said of anything else."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from siglip_ref.check.call.answers import in_a_line
from siglip_ref.check.call.in_numpy import as_float64
from siglip_ref.errors import UsageError
from siglip_ref.use.pictures import Pixels


def called(fn: Callable[[Image.Image], Any], image: Image.Image) -> Any:
    """What fn gives for one image; whatever it raises is told, and whether it takes a list of images instead."""
    try:
        return fn(image)
    except Exception as error:
        try:
            fn([image])  # type: ignore[arg-type]  # what a batched function takes
            batched = True
        except Exception:
            batched = False
        raise UsageError(
            expected="fn(image) that takes one Pillow image and gives its pixels",
            got=in_a_line(error),
            cause="it takes a list of images" if batched else "",
            repair="lambda image: fn([image])"
            if batched
            else "try fn(siglip_ref.check.files.preprocess.picture(301, 487))",
        ) from error


def pixels_of(out: Any) -> Pixels:
    """float64 (S, S, 3) of whatever fn gave."""
    if hasattr(out, "keys"):
        if "pixel_values" not in out:
            raise UsageError(
                expected='pixels, or a dict with "pixel_values"',
                got=f"a {type(out).__name__} with {', '.join(map(repr, out)) or 'nothing in it'}",
                cause="",
                repair='lambda image: fn(image)["..."], with the name of the pixels',
            )
        out = out["pixel_values"]
    try:
        array: Pixels = as_float64(out[0] if isinstance(out, list) and len(out) == 1 else out)
    except (TypeError, ValueError) as error:
        raise UsageError(
            expected="pixels as numbers: an array or tensor (3, S, S), (S, S, 3), or a batch of one",
            got=f"a {type(out).__name__} ({error})",
            cause="",
            repair="lambda image: numpy.asarray(fn(image))",
        ) from error
    array = array.reshape(array.shape[-3:]) if array.ndim > 3 and array.size == np.prod(array.shape[-3:]) else array
    if array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise UsageError(
            expected="one image: (3, S, S), (S, S, 3), or a batch of one",
            got=f"shape {array.shape}",
            cause=_why(array.shape),
            repair="fn takes one image and gives its pixels",
        )
    return array


def _why(shape: tuple[int, ...]) -> str:
    """What such a shape is, where it is plain."""
    if len(shape) == 4 and 3 in (shape[1], shape[3]):
        return f"{shape[0]} images"
    if len(shape) == 3 and {1, 4} & {shape[0], shape[2]}:
        return f"{1 if 1 in (shape[0], shape[2]) else 4} channels, not 3"
    return "one channel, without an axis for it" if len(shape) == 2 else ""
