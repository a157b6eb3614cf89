"""Patches, tokens (through a bottleneck, too) and positions become vectors; a table of positions fits another grid."""

from collections import namedtuple

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

PatchCache = namedtuple("PatchCache", "linear_cache shape patch")
TokenCache = namedtuple("TokenCache", "tokens table")
BottleneckCache = namedtuple("BottleneckCache", "token widen")
ResizeCache = namedtuple("ResizeCache", "down down_sum across across_sum")


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


def bottleneck_forward(tokens: Array, table: Array, widen: Array, *, ops: Ops) -> tuple[Array, BottleneckCache]:
    """out = table[tokens] @ widen.

    Parameters
    ----------
    tokens : int array, shape (B, N)
    table : array, shape (V, K); K = 96 for the width 768 of B
    widen : array, shape (K, C)

    Returns
    -------
    out : array, shape (B, N, C); that of the one table `table @ widen`, of rank K

    Source: arXiv 2303.15343, section 4.3; no bias and no norm: the paper speaks of neither.

    Examples
    --------
    >>> from siglip_ref import ops
    >>> table, widen = np.array([[1.0], [2.0]]), np.array([[3.0, 4.0]])
    >>> ops.bottleneck_forward(np.array([[1]]), table, widen)[0]
    array([[[6., 8.]]])
    """
    rows, token_cache = ops.token_embed.forward(tokens, table)
    out, widen_cache = ops.linear.forward(rows, widen, np.zeros_like(widen[0]))
    return out, BottleneckCache(token_cache, widen_cache)


def bottleneck_backward(d_out: Array, cache: BottleneckCache, *, ops: Ops) -> tuple[Array, Array]:
    """Gradients of `bottleneck_forward`: d_table (V, K), d_widen (K, C)."""
    # out = rows @ widen
    d_rows, d_widen, _ = ops.linear.backward(d_out, cache.widen)
    # rows = table[tokens]
    return ops.token_embed.backward(d_rows, cache.token), d_widen


def position_forward(x: Array, table: Array) -> tuple[Array, Array]:
    """Add to each token the vector of its place: x (B, N, C), table (at least N, C)."""
    return x + table[: x.shape[1]], table


def position_backward(d_out: Array, cache: Array) -> tuple[Array, Array]:
    """Gradients of `position_forward`: d_x (B, N, C) and d_table (of table's shape; unused places stay zero)."""
    table = cache
    # out = x + table
    unused = table.shape[0] - d_out.shape[1]
    return d_out, np.pad(d_out.sum(0), ((0, unused), (0, 0)))


def position_resize_forward(table: Array, height: int, width: int) -> tuple[Array, ResizeCache]:
    """Draw out or shrink a table to another grid: bilinear with antialias and half-pixel centres, rows and columns
    apart.

    Parameters
    ----------
    table : array, shape (rows, columns, C)
    height, width : the grid wanted

    Returns
    -------
    out : array, shape (height * width, C), row by row

    Source: torch's interpolate(mode="bilinear", antialias=True), jax.image.resize; transformers' modeling_siglip2.py.
    """
    down, down_sum = _weights(table.shape[0], height, table)
    across, across_sum = _weights(table.shape[1], width, table)
    tall = (down @ table.reshape(table.shape[0], -1) / down_sum).reshape(height, *table.shape[1:])
    out = across @ tall / across_sum  # (height, width, C)
    return out.reshape(height * width, -1), ResizeCache(down, down_sum, across, across_sum)


def position_resize_backward(d_out: Array, cache: ResizeCache) -> Array:
    """Gradient of `position_resize_forward`: d_table (rows, columns, C)."""
    down, down_sum, across, across_sum = cache
    d_grid = d_out.reshape(len(down), len(across), -1)
    # out = across @ tall / across_sum
    d_tall = across.T @ (d_grid / across_sum)  # (height, columns, C)
    # tall = down @ table / down_sum
    d_table = down.T @ (d_tall.reshape(len(down), -1) / down_sum)
    return d_table.reshape(down.shape[1], *d_tall.shape[1:])


def _weights(old: int, new: int, like: Array) -> tuple[Array, Array]:
    """Triangles (new, old) and their sums (new, 1), as whole numbers: exact in every arithmetic.

    Source place j weighs 1 - |(j + 1/2) - (i + 1/2) old / new| / support, with support = max(1, old / new); here times
    2 new support = 2 max(new, old).
    """
    i, j = np.arange(new)[:, None], np.arange(old)
    weights = np.maximum(2 * max(old, new) - np.abs((2 * j + 1) * new - (2 * i + 1) * old), 0).astype(like.dtype)
    return weights, weights.sum(-1, keepdims=True)
