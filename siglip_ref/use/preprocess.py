"""Images to numbers, as each library does it: bit for bit where the library runs beside us.

Every pipeline resizes to whole bytes first, so the rest is a table of 256 numbers a channel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from siglip_ref.ops.embedding import position_resize_forward
from siglip_ref.use.image_settings import Filter, image_settings
from siglip_ref.use.pictures import SUFFIXES as SUFFIXES
from siglip_ref.use.pictures import Pixels as Pixels
from siglip_ref.use.pictures import open_image as open_image

Levels = Literal["scaled", "divided", "fused"]
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image. The whole of it is squashed to a square, nothing is cropped.

    filter, antialias : of the resize; without antialias: TensorFlow's bilinear, cut (not rounded) to whole bytes
    levels : bytes v to numbers. "scaled": v times 1/255 in float64, then (x - mean) / std; "divided": v / 255, then the
        same; "fused": (v - 255 mean) / (255 std)
    max_patches : of a NaFlex model, which keeps the shape of an image; without antialias: scaled to numbers first, then
        resized as they are (with antialias, here)
    """

    name: str
    filter: Filter = "bicubic"
    antialias: bool = True
    levels: Levels = "scaled"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    max_patches: int = 256


# Source: transformers 5.23 image_processing_pil_siglip.py; open_clip 3.3 transform.py; big_vision
# pp/ops_image.py, pp/ops_general.py. SigLIP 2 on the hub is resized bilinearly.
PREPROCESS = {
    preprocess.name: preprocess
    for preprocess in (
        Preprocess("huggingface"),
        Preprocess("huggingface-2", "bilinear"),
        Preprocess("open_clip", levels="divided"),
        Preprocess("big_vision", "bilinear", antialias=False, levels="divided"),
    )
}


def read_settings(settings: Mapping[str, Any], fallback: Preprocess) -> Preprocess:
    """The content of a preprocessor_config.json as ours; what it does not say, as in `fallback`."""
    return replace(fallback, **image_settings(settings))


def pixels(source: str | Path | Image.Image | Pixels, size: tuple[int, int], how: Preprocess) -> Pixels:
    """One image as the model wants it: float32, shape (height, width, 3), about -1 to 1."""
    return pixels_of(open_image(source), size, how)


def pixels_of(image: Image.Image, size: tuple[int, int], how: Preprocess) -> Pixels:
    """The same of an image that `open_image` gave."""
    return levels(how)[resize(image, size, how), np.arange(3)]


def patches(source: str | Path | Image.Image | Pixels, patch: int, how: Preprocess) -> tuple[Pixels, tuple[int, int]]:
    """One image for a NaFlex model: values (max_patches, patch * patch * 3), zero beyond its own, and its grid."""
    return patches_of(open_image(source), patch, how)


def patches_of(image: Image.Image, patch: int, how: Preprocess) -> tuple[Pixels, tuple[int, int]]:
    """The same of an image that `open_image` gave."""
    rows, columns = grid(image.height, image.width, patch, how.max_patches)
    size = rows * patch, columns * patch
    if how.antialias:
        values = pixels_of(image, size, how)
    else:
        values = position_resize_forward(levels(how)[np.asarray(image), np.arange(3)], *size)[0].reshape(*size, 3)
    cut = values.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(rows * columns, -1)
    return np.pad(cut, ((0, how.max_patches - len(cut)), (0, 0))), (rows, columns)


def grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches: the largest image of about this shape with at most `most` of them.

    Source: bisection as in transformers' image_processing_pil_siglip2.py; big_vision does the same in float32.

    >>> grid(480, 640, 16, 256)
    (14, 18)
    """

    def sides(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch)) for side in (height, width))
        return rows, columns

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(sides(middle)) <= most else (low, middle)
    return sides(low)


def resize(image: Image.Image, size: tuple[int, int], how: Preprocess) -> Pixels:
    """uint8, shape (height, width, 3); size is (height, width)."""
    if how.antialias:
        return np.asarray(image.resize(size[::-1], FILTERS[how.filter]))
    return _resize_without_antialias(np.asarray(image), size)


def levels(how: Preprocess) -> Pixels:
    """What each of the 256 byte values becomes: float32, shape (256, 3)."""
    byte = np.arange(256, dtype=np.float32)[:, None]
    mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
    scaled: Pixels = byte / np.float32(255)
    if how.levels == "scaled":
        scaled = (np.arange(256)[:, None] * (1 / 255)).astype(np.float32)
    elif how.levels == "fused":
        scaled, mean, std = byte, mean * np.float32(255), std * np.float32(255)
    return (scaled - mean) / std


def _resize_without_antialias(image: Pixels, size: tuple[int, int]) -> Pixels:
    """tf.image.resize, bilinear: two rows and two columns per pixel, however far it shrinks; float32 throughout."""
    (top, bottom, down), (left, right, across) = (_neighbours(n, m) for n, m in zip(image.shape, size, strict=False))
    down, across = down[:, None, None], across[:, None]
    values = image.astype(np.float32)
    upper, lower = values[top], values[bottom]
    upper = upper[:, left] + (upper[:, right] - upper[:, left]) * across
    lower = lower[:, left] + (lower[:, right] - lower[:, left]) * across
    return (upper + (lower - upper) * down).clip(0, 255).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[Pixels, Pixels, Pixels]:
    """Half-pixel centres: the two source places of each target place, and the share of the second."""
    place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    floor = np.floor(place)
    first, second = np.maximum(floor, 0).astype(int), np.minimum(np.ceil(place), old - 1).astype(int)
    return first, second, place - floor
