"""Which arrays kernels take, and in which form; everything else is the specification's."""

import numpy as np

from siglip_ref.ops.elementary import Array

KINDS = (np.dtype(np.float32), np.dtype(np.float64))
NOTHING = {kind: np.empty((0, 0), kind) for kind in KINDS}  # stands for "no such argument"


def same_precision(*arrays: Array) -> bool:
    """All plain arrays of float32, or all of float64: no complex steps, balls or rounded numbers, no mixtures.

    Empty arrays are left to the specification too.
    """
    kind = arrays[0].dtype
    for a in arrays:  # a plain loop, as small models feel it
        if type(a) is not np.ndarray or a.dtype != kind or a.size == 0:
            return False
    return kind in KINDS


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Room for a result of the same precision."""
    return np.empty(shape, like.dtype)


def rows_in_memory(x: Array) -> Array:
    """The same numbers one after another in memory, copied only if they are not."""
    return np.ascontiguousarray(x)


def as_rows(x: Array) -> Array:
    """(..., C) as (R, C), one after another in memory."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])
