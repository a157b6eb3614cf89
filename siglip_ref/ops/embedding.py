"""Patches, tokens and positions become vectors."""

from collections import namedtuple

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.record import Ops

PatchCache = namedtuple("PatchCache", "linear_cache shape patch")
TokenCache = namedtuple("TokenCache", "tokens table")


def patch_embed_forward(images: Array, kernel: Array, bias: Array, patch: int, *, ops: Ops) -> tuple[Array, PatchCache]:
    """Cut images into square patches, row by row, and map each linearly.

    Parameters
    ----------
    images : array, shape (B, height, width, 3), in [-1, 1]
    kernel : array, shape (P, C); a patch's numbers in the order row, column, channel
    bias : array, shape (C,)
    patch : side of a patch in pixels

    Returns
    -------
    out : array, shape (B, N, C)

    Rows and columns beyond the last whole patch are ignored (384 px with patch 14 uses 378).

    Source: big_vision models/vit.py, a convolution with stride = size and padding VALID.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    whole = images[:, : rows * patch, : columns * patch]
    grid = whole.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
    flat = grid.reshape(batch, rows * columns, patch * patch * channels)  # (B, N, P)
    out, cache = ops.linear.forward(flat, kernel, bias)
    return out, PatchCache(cache, images.shape, patch)


def patch_embed_backward(d_out: Array, cache: PatchCache, *, ops: Ops) -> tuple[Array, Array, Array]:
    """Gradients of `patch_embed_forward`: d_images (B, height, width, 3), d_kernel (P, C), d_bias (C,)."""
    linear_cache, (batch, height, width, channels), patch = cache
    rows, columns = height // patch, width // patch
    # out = flat @ kernel + bias
    d_flat, d_kernel, d_bias = ops.linear.backward(d_out, linear_cache)
    # flat = patches of the whole part of the images; the ignored rim has gradient zero
    d_grid = d_flat.reshape(batch, rows, columns, patch, patch, channels).swapaxes(2, 3)
    d_whole = d_grid.reshape(batch, rows * patch, columns * patch, channels)
    rim = ((0, 0), (0, height - rows * patch), (0, width - columns * patch), (0, 0))
    return np.pad(d_whole, rim), d_kernel, d_bias


def token_embed_forward(tokens: Array, table: Array) -> tuple[Array, TokenCache]:
    """Look each token up: tokens int (B, N), table (V, C), out (B, N, C)."""
    return table[tokens], TokenCache(tokens, table)


def token_embed_backward(d_out: Array, cache: TokenCache) -> Array:
    """Gradient of `token_embed_forward`: d_table (V, C); a token used twice collects both."""
    tokens, table = cache
    # out[i, n] = table[tokens[i, n]]
    d_table = np.zeros_like(table)
    np.add.at(d_table, tokens, d_out)
    return d_table


def position_forward(x: Array, table: Array) -> tuple[Array, Array]:
    """Add to each token the vector of its place: x (B, N, C), table (at least N, C)."""
    return x + table[: x.shape[1]], table


def position_backward(d_out: Array, cache: Array) -> tuple[Array, Array]:
    """Gradients of `position_forward`: d_x (B, N, C) and d_table (of table's shape; unused places stay zero)."""
    table = cache
    # out = x + table
    unused = table.shape[0] - d_out.shape[1]
    return d_out, np.pad(d_out.sum(0), ((0, unused), (0, 0)))
