"""A table of positions drawn out or shrunk to another grid: what lets SigLIP 2 see images of any shape."""

from collections import namedtuple

import numpy as np

from siglip_ref.ops.elementary import Array

ResizeCache = namedtuple("ResizeCache", "down down_sum across across_sum")


def position_resize_forward(table: Array, height: int, width: int) -> tuple[Array, ResizeCache]:
    """Bilinear resize with antialias and half-pixel centres, rows and columns by themselves.

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
