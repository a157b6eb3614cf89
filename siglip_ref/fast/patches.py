"""Patches of images, mapped linearly: a few at a time are cut out and multiplied while they are in the cache.

All patches together are as large as the images; they are never written down, and the backward cuts them once more.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.linear import affine_part, d_weights_part, inputs_backward, part
from siglip_ref.fast.machine.blas import gemm_address
from siglip_ref.fast.machine.compile import COUNT, ONE, ZERO, inner
from siglip_ref.fast.machine.compile import kernel as compiled
from siglip_ref.fast.machine.elementary import number
from siglip_ref.fast.machine.fit import (
    NOTHING,
    as_rows,
    as_stored,
    empty,
    gradient_of,
    linear_fits,
    rows_in_memory,
    same_precision,
)
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.ops.elementary import Array

MOST = 256  # patches that a thread cuts out at once: as many as the result has columns, but no more than this


class PatchCache(NamedTuple):
    """What the backward needs."""

    images: Array
    kernel: Array
    patch: int


@inner()
def _cut(lines: Any, patch: int, columns: int, first: int, patches: Any) -> None:
    """The patches from number `first` on; lines (B, height, width * channels)."""
    side = patches.shape[1] // patch  # numbers of a patch in one line
    cut = patches.reshape(len(patches), patch, side)
    of_image = lines.shape[1] // patch * columns
    for p in range(len(patches)):
        b, place = (first + p) // of_image, (first + p) % of_image
        top, left = place // columns * patch, np.uintp(place % columns * side)
        for i in range(patch):
            for j in range(np.uintp(side)):  # unsigned: an index that might be below zero stays scalar
                cut[p, i, j] = lines[b, top + i, left + j]


@inner(apart=True)
def embed_some(
    routine: int, turned: int, lines: Any, patch: int, columns: int, weights: Any, bias: Any, nothing: Any,
    patches: Any, out: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """Those from number `begin` to `end`; patches (a few, P) is room for what is cut out."""
    for a in range(begin, end, len(patches)):
        b = min(a + len(patches), end)
        _cut(lines, patch, columns, a, patches[: b - a])
        affine_part(routine, turned, patches[: b - a], weights, bias, nothing, out[a:b], ZERO, ONE)


@compiled(parallel=True)
def _embed(
    routine: int, turned: int, lines: Any, patch: int, columns: int, weights: Any, bias: Any, nothing: Any,
    patches: Any, out: Any,
) -> None:  # fmt: skip
    """out = patches @ weights + bias; patches (threads, a few, P) is room for what is cut out."""
    threads = len(patches)
    if threads == 1:
        embed_some(routine, turned, lines, patch, columns, weights, bias, nothing, patches[0], out, ZERO, len(out))
    else:
        for t in prange(threads):
            begin, end = part(len(out), COUNT(t), threads)
            embed_some(routine, turned, lines, patch, columns, weights, bias, nothing, patches[t], out, begin, end)


@inner(apart=True)
def d_embed_some(
    routine: int, d_out: Any, lines: Any, patch: int, columns: int, patches: Any, d_weights: Any, d_bias: Any,
    begin: int, end: int,
) -> None:  # fmt: skip
    one = number(1, d_out[0, 0])
    d_weights[:] = one - one  # a thread may have nothing to do
    d_bias[:] = one - one
    for a in range(begin, end, len(patches)):
        b = min(a + len(patches), end)
        _cut(lines, patch, columns, a, patches[: b - a])
        d_weights_part(routine, d_out[a:b], patches[: b - a], one, d_weights, d_bias, ZERO, ONE)


@compiled(parallel=True)
def _d_embed(
    routine: int, d_out: Any, lines: Any, patch: int, columns: int, patches: Any, d_weights: Any, d_bias: Any
) -> None:
    """Gradients of `_embed`, one set a thread."""
    threads = len(patches)
    if threads == 1:
        d_embed_some(routine, d_out, lines, patch, columns, patches[0], d_weights[0], d_bias[0], ZERO, len(d_out))
    else:
        for t in prange(threads):
            begin, end = part(len(d_out), COUNT(t), threads)
            d_embed_some(routine, d_out, lines, patch, columns, patches[t], d_weights[t], d_bias[t], begin, end)


@compiled()
def patches_at_once(rows: int, columns: int) -> int:
    """How many of all patches a thread cuts out at once, if the result has so many columns."""
    return min(rows, MOST, (columns + 15) // 16 * 16)


def _room(threads: int, rows: int, kernel: Array) -> Array:
    return empty((threads, patches_at_once(rows, kernel.shape[1]), len(kernel)), kernel)


def patch_embed_forward(images: Array, kernel: Array, bias: Array, patch: int) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.patch_embed_forward`."""
    width = patch * patch * images.shape[-1]
    fits = images.ndim == 4 and min(images.shape[1:3]) >= patch and linear_fits(width, kernel, bias)
    if not fits or not same_precision(images, kernel, bias):
        return specification.patch_embed_forward(images, kernel, bias, patch)
    images = rows_in_memory(images)
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    at_once = patches_at_once(batch * rows * columns, kernel.shape[1])
    (turned, _), (stored, bias) = as_stored((kernel, bias), (at_once, 1))
    out = empty((batch, rows * columns, kernel.shape[1]), images)
    lines = images.reshape(batch, height, width * channels)
    with parts_for(out.size * len(kernel)) as threads:
        _embed(
            gemm_address(images.dtype), turned, lines, patch, columns, stored, bias, NOTHING[images.dtype],
            _room(threads, batch * rows * columns, kernel), as_rows(out),
        )  # fmt: skip
    return out, PatchCache(images, kernel, patch)


def patch_embed_backward(d_out: Array, cache: Any) -> tuple[Array, Array, Array]:
    """Twin of `siglip_ref.ops.patch_embed_backward`."""
    if not isinstance(cache, PatchCache):
        return specification.patch_embed_backward(d_out, cache)
    _, d_kernel, d_bias = patch_embed_weights(d_out, cache)
    return pixels_backward(d_out, cache.images.shape, cache.kernel, cache.patch), d_kernel, d_bias


def patch_embed_weights(d_out: Array, cache: Any) -> tuple[Any, Array, Array]:
    """The same without the gradient of the images, which no training needs."""
    if not isinstance(cache, PatchCache):
        return specification.patch_embed_backward(d_out, cache)
    images, kernel, patch = cache
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    lines = images.reshape(batch, height, width * channels)
    d_out = gradient_of(d_out, (batch, rows * columns, kernel.shape[1]), kernel)
    with parts_for(d_out.size * len(kernel)) as threads:
        d_kernel, d_bias = empty((threads, *kernel.shape), kernel), empty((threads, kernel.shape[1]), kernel)
        _d_embed(
            gemm_address(kernel.dtype), as_rows(d_out), lines, patch, columns,
            _room(threads, batch * rows * columns, kernel), d_kernel, d_bias,
        )  # fmt: skip
    weights = (d_kernel[0], d_bias[0]) if threads == 1 else (d_kernel.sum(0), d_bias.sum(0))
    return None, *weights


def pixels_backward(d_out: Array, shape: tuple[int, ...], kernel: Array, patch: int) -> Array:
    """The gradient of patches @ kernel by the images, which are of this shape."""
    batch, height, width, channels = shape
    rows, columns = height // patch, width // patch
    d_flat = inputs_backward(d_out, empty((batch, rows * columns, len(kernel)), kernel), kernel)
    d_grid = d_flat.reshape(batch, rows, columns, patch, patch, channels).swapaxes(2, 3)
    d_whole = d_grid.reshape(batch, rows * patch, columns * patch, channels)
    rim = ((0, 0), (0, height - rows * patch), (0, width - columns * patch), (0, 0))
    return np.pad(d_whole, rim)
