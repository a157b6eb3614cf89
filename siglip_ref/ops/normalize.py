"""L2 normalisation, with the three ways that libraries guard it against a zero vector."""

from collections import namedtuple
from typing import Literal

import numpy as np

from siglip_ref.ops.elementary import Array

NormKind = Literal["additive", "none", "clamp"]

NormalizeCache = namedtuple("NormalizeCache", "x length divisor clamped")


def normalize_forward(x: Array, kind: NormKind, eps: float) -> tuple[Array, NormalizeCache]:
    """Divide each row by its length.

    Parameters
    ----------
    x : array, shape (..., D)
    kind : with n the row's length, "additive" x / (n + eps) (big_vision, eps 1e-8), "none" x / n (Hugging Face),
        "clamp" x / max(n, eps) (open_clip, eps 1e-12)
    eps : float64 number, unused by "none"

    A row of zeros has no direction: its gradient is NaN, and so is its value under "none".
    """
    length = np.sqrt((x * x).sum(-1, keepdims=True))  # (..., 1)
    if kind == "additive":
        divisor = length + eps
    elif kind == "clamp":
        divisor = np.maximum(length, eps)
    else:
        divisor = length
    return x / divisor, NormalizeCache(x, length, divisor, kind == "clamp" and length <= eps)


def normalize_backward(d_out: Array, cache: NormalizeCache) -> Array:
    """Gradient of `normalize_forward`: d_x (..., D)."""
    x, length, divisor, clamped = cache
    # out = x / divisor
    d_divisor = -(d_out * x).sum(-1, keepdims=True) / (divisor * divisor)
    # divisor = length (+ eps), or a constant where the clamp holds; length = sqrt(sum x^2)
    d_length = np.where(clamped, 0, d_divisor)
    return d_out / divisor + d_length * x / length
