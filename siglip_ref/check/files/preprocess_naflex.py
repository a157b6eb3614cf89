"""Preprocessing for a NaFlex model: patches, their order, the mask, the grid, and how many there is place for."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from siglip_ref.check.call.in_numpy import as_float64
from siglip_ref.report.compare import Row, RowVerdict
from siglip_ref.report.data import Finding
from siglip_ref.use.pictures import Pixels
from siglip_ref.use.preprocess import Preprocess, levels, patches_of

_ORDERS: dict[str, Callable[[Pixels, tuple[int, int], int], Pixels]] = {
    "patches go column by column, not row by row": lambda x, grid, p: (
        x.reshape(*grid, -1).swapaxes(0, 1).reshape(len(x), -1)
    ),
    "channels come first within a patch, not last": lambda x, grid, p: (
        x.reshape(-1, p, p, 3).transpose(0, 3, 1, 2).reshape(len(x), -1)
    ),
    "pixels go column by column within a patch": lambda x, grid, p: (
        x.reshape(-1, p, p, 3).swapaxes(1, 2).reshape(len(x), -1)
    ),
    "blue comes first": lambda x, grid, p: x.reshape(-1, p, p, 3)[..., ::-1].reshape(len(x), -1),
}


def is_naflex(out: Any) -> bool:
    """Whether a function gave patches with their grid."""
    return hasattr(out, "keys") and "spatial_shapes" in out


def check_patches(
    outs: Sequence[Mapping[str, Any]], images: Sequence[Image.Image], how: Preprocess, same: float
) -> tuple[list[Row], list[Finding]]:
    """What a function gave for each image, as transformers' Siglip2ImageProcessor names it; same: levels of 255."""
    rows, found = [], dict[str, Finding]()
    for out, image in zip(outs, images, strict=True):
        values = as_float64(out["pixel_values"])
        values = values.reshape(values.shape[-2:])
        patch = math.isqrt(values.shape[-1] // 3)
        wanted, grid = patches_of(image, patch, replace(how, max_patches=len(values)))
        unit, own = float(np.ptp(levels(how))), math.prod(grid)
        error = float(np.abs(values - wanted).mean() * len(values) / own / unit)
        problems = list(_problems(out, values, wanted, grid, patch, unit * same / 255, image.size))
        found |= {one.evidence.split(":")[0]: one for one in problems}
        name = f"{image.height} x {image.width} to {grid[0]} x {grid[1]} patches of {patch}"
        verdict: RowVerdict = "FAIL" if problems else "pass"
        rows.append(Row(name, "value", error, same / 255, float("nan"), float("nan"), "", verdict))
    return rows, list(found.values())


def _problems(
    out: Mapping[str, Any], values: Pixels, wanted: Pixels, grid: tuple[int, int], patch: int, most: float,
    size: tuple[int, int],
) -> Iterator[Finding]:  # fmt: skip
    got = tuple(int(n) if np.isfinite(n) else n for n in as_float64(out["spatial_shapes"]).reshape(-1)[:2])
    own, room = math.prod(grid), len(values)
    if got != grid:
        words = "rows and columns exchanged: " if got == grid[::-1] else "another grid: "
        evidence = f"{words}{got[0]} x {got[1]} for an image of {size[1]} x {size[0]}, not {grid[0]} x {grid[1]}"
        repair = f"the largest image of its shape with at most {room} patches, sides rounded up"
        yield Finding("derived", "spatial_shapes", "", evidence, repair)
    if "pixel_attention_mask" not in out:
        yield Finding(
            "derived", "pixel_attention_mask", "", "no mask: nothing tells padding", "1 for own patches, else 0"
        )
    elif not np.array_equal(as_float64(out["pixel_attention_mask"]).reshape(-1), np.arange(room) < own):
        evidence = f"the mask is not the image's own patches: the first {own} of {room}"
        yield Finding("derived", "pixel_attention_mask", "", evidence, "1 for own patches, 0 for padding")
    if got != grid:
        return
    if not np.abs(values[:own] - wanted[:own]).mean() <= most:
        off = {w: np.abs(values[:own] - made(wanted[:own], grid, patch)).mean() for w, made in _ORDERS.items()}
        words = next(
            (w for w, distance in off.items() if distance <= most), "pixels: patches differ, in no order that is known"
        )
        yield Finding("derived", "pixel_values", "", words, "(row, column, channel) within a patch, patches row by row")
    elif np.abs(values[own:]).max(initial=0) != 0:  # a NaN is not 0 either
        yield Finding("derived", "pixel_values", "", "padding is not zero", "zeros beyond the image's own patches")
