"""Patches through the fast linear layer; the token table's gradient without a pass over the whole table."""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.compile import kernel
from siglip_ref.fast.fit import as_rows, empty, same_precision
from siglip_ref.fast.linear import LinearCache, linear_backward, linear_forward, part, weights_backward
from siglip_ref.fast.pool import parts_for_elements
from siglip_ref.ops.elementary import Array


class PatchCache(NamedTuple):
    """What the backward needs."""

    linear: LinearCache
    shape: tuple[int, ...]
    patch: int


def patch_embed_forward(images: Array, kernel: Array, bias: Array, patch: int) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.patch_embed_forward`."""
    if not same_precision(images, kernel, bias):
        return specification.patch_embed_forward(images, kernel, bias, patch)
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    whole = images[:, : rows * patch, : columns * patch]
    grid = whole.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
    out, cache = linear_forward(grid.reshape(batch, rows * columns, -1), kernel, bias)
    return out, PatchCache(cache, images.shape, patch)


def patch_embed_backward(d_out: Array, cache: Any, pixels: bool = True) -> tuple[Any, Array, Array]:
    """Twin of `siglip_ref.ops.patch_embed_backward`."""
    if not isinstance(cache, PatchCache):
        return specification.patch_embed_backward(d_out, cache, pixels)
    if not pixels:
        return None, *weights_backward(d_out, cache.linear.x)
    linear, (batch, height, width, channels), patch = cache
    rows, columns = height // patch, width // patch
    d_flat, d_kernel, d_bias = linear_backward(d_out, linear)
    d_grid = d_flat.reshape(batch, rows, columns, patch, patch, channels).swapaxes(2, 3)
    d_whole = d_grid.reshape(batch, rows * patch, columns * patch, channels)
    if (rows * patch, columns * patch) != (height, width):
        d_whole = np.pad(d_whole, ((0, 0), (0, height - rows * patch), (0, width - columns * patch), (0, 0)))
    return d_whole, d_kernel, d_bias


@kernel()
def _scatter(d_rows: Any, tokens: Any, d_table: Any) -> None:
    for i in range(len(tokens)):
        for j in range(d_table.shape[1]):
            d_table[tokens[i], j] += d_rows[i, j]


def token_embed_backward(d_out: Array, cache: tuple[Array, Array]) -> Array:
    """Twin of `siglip_ref.ops.token_embed_backward`."""
    tokens, table = cache
    if not same_precision(d_out, table):
        return specification.token_embed_backward(d_out, cache)
    d_table = np.zeros_like(table)
    _scatter(as_rows(d_out), tokens.reshape(-1).astype(np.int64), d_table)
    return d_table


@kernel()
def _add_some(x: Any, table: Any, out: Any, begin: int, end: int) -> None:
    tokens = x.shape[1]
    for i in range(begin, end):
        b, n = i // tokens, i % tokens
        for j in range(x.shape[2]):
            out[b, n, j] = x[b, n, j] + table[n, j]


@kernel(parallel=True)
def _add_table(x: Any, table: Any, out: Any, parts: int) -> None:
    rows = len(x) * x.shape[1]
    if parts == 1:
        _add_some(x, table, out, 0, rows)
    else:
        for thread in prange(parts):
            begin, end = part(rows, thread, parts)
            _add_some(x, table, out, begin, end)


def position_forward(x: Array, table: Array) -> tuple[Array, None]:
    """Twin of `siglip_ref.ops.position_forward`."""
    if not same_precision(x, table):
        return specification.position_forward(x, table)
    out = empty(x.shape, x)
    with parts_for_elements(x.size) as parts:
        _add_table(np.ascontiguousarray(x), np.ascontiguousarray(table), out, parts)
    return out, None


@kernel()
def _sum_images(d_out: Any, d_table: Any) -> None:
    for b in range(len(d_out)):
        for n in range(d_out.shape[1]):
            for j in range(d_out.shape[2]):
                d_table[n, j] += d_out[b, n, j]


def position_backward(d_out: Array, table: Array) -> tuple[Array, Array]:
    """Twin of `siglip_ref.ops.position_backward`."""
    if not same_precision(d_out, table):
        return specification.position_backward(d_out, table)
    d_table = np.zeros_like(table)
    _sum_images(np.ascontiguousarray(d_out), d_table)
    return d_out, d_table
