"""One vector per text: which token speaks for it. SigLIP takes the last; the others are other models' conventions."""

from collections import namedtuple
from typing import Literal

import numpy as np

from siglip_ref.ops.elementary import Array

Pooling = Literal["last", "first", "mean", "argmax"]

PoolCache = namedtuple("PoolCache", "x place")  # place: of the token taken, None for the mean


def pool_forward(x: Array, tokens: Array, kind: Pooling) -> tuple[Array, PoolCache]:
    """Reduce (B, N, C) to (B, C).

    Parameters
    ----------
    x : array, shape (B, N, C)
    tokens : int array, shape (B, N), only looked at by "argmax"
    kind : "last" (SigLIP), "first", "mean", or "argmax": the place of the largest id (CLIP's end of text)

    Source: big_vision text_transformer.py (pool_type); open_clip transformer.py, text_global_pool.
    """
    if kind == "mean":
        return x.mean(1), PoolCache(x, None)
    place = {"last": np.full(len(x), x.shape[1] - 1), "first": np.zeros(len(x), int), "argmax": tokens.argmax(-1)}[kind]
    return x[np.arange(len(x)), place], PoolCache(x, place)


def pool_backward(d_out: Array, cache: PoolCache) -> Array:
    """Gradient of `pool_forward`: d_x (B, N, C)."""
    x, place = cache
    if place is None:
        # out = mean over N
        return np.zeros_like(x) + d_out[:, None] / x.shape[1]
    # out = x[i, place[i]]: all other tokens get nothing
    chosen = np.arange(x.shape[1]) == place[:, None]  # (B, N)
    return np.where(chosen[:, :, None], d_out[:, None], np.zeros_like(x))
