"""The linear layer."""

from collections import namedtuple

from siglip_ref.ops.elementary import Array

LinearCache = namedtuple("LinearCache", "x kernel")


def linear_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, LinearCache]:
    """out = x @ kernel + bias.

    Parameters
    ----------
    x : array, shape (..., C)
    kernel : array, shape (C, D)
    bias : array, shape (D,)

    Returns
    -------
    out : array, shape (..., D)
    """
    rows = x.reshape(-1, x.shape[-1])  # one product of two matrices, whatever stands before C
    out = rows @ kernel + bias
    return out.reshape(*x.shape[:-1], kernel.shape[1]), LinearCache(x, kernel)


def linear_backward(d_out: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Gradients of `linear_forward`: d_x (..., C), d_kernel (C, D), d_bias (D,)."""
    x, kernel = cache
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    # out = rows @ kernel + bias
    d_bias = d_rows.sum(0)
    d_kernel = rows.T @ d_rows
    d_x = d_rows @ kernel.T
    return d_x.reshape(x.shape), d_kernel, d_bias
