"""Memory for results."""

import numpy as np

from siglip_ref.ops.elementary import Array


def empty(shape: tuple[int, ...], like: Array) -> Array:
    return np.empty(shape, like.dtype)
