"""Softmax over the last axis."""

import numpy as np

from siglip_ref.ops.elementary import Array


def softmax_forward(x: Array) -> tuple[Array, Array]:
    """exp(x) over its sum along the last axis; -inf gives exactly zero.

    The maximum is subtracted only against overflow: any shift gives the same probabilities, so it carries no gradient.
    """
    weight = np.exp(x - x.max(-1, keepdims=True))
    out = weight / weight.sum(-1, keepdims=True)
    return out, out


def softmax_backward(d_out: Array, cache: Array) -> Array:
    """Gradient of `softmax_forward`: d_x, of x's shape."""
    out = cache
    # out_i = exp(x_i) / sum_j exp(x_j), so d out_i / d x_j = out_i (1[i = j] - out_j)
    return out * (d_out - (d_out * out).sum(-1, keepdims=True))
