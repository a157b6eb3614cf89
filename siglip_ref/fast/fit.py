"""Which arrays kernels take; everything else is the specification's."""

import numpy as np

from siglip_ref.ops.elementary import Array


def same_precision(*arrays: Array) -> bool:
    """All plain arrays of float32, or all of float64: no complex steps, balls or rounded numbers, no mixtures."""
    first = arrays[0].dtype
    return first in (np.float32, np.float64) and all(type(a) is np.ndarray and a.dtype == first for a in arrays)


def rows_in_memory(x: Array) -> Array:
    """The same numbers one after another in memory, copied only if they are not."""
    return np.ascontiguousarray(x)
