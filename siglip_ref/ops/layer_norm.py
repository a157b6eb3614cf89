"""Layer norm."""

from collections import namedtuple

import numpy as np

from siglip_ref.ops.elementary import Array

LayerNormCache = namedtuple("LayerNormCache", "xhat rstd gamma")


def layer_norm_forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, LayerNormCache]:
    """Normalise each token over its width, then scale and shift.

    Parameters
    ----------
    x : array, shape (..., C)
    gamma, beta : array, shape (C,)
    eps : the float64 number added to the variance (SigLIP: 1e-6)

    Returns
    -------
    out : array, shape (..., C)

    Source: Ba et al. 2016, eq. 3 and 4; biased variance, as in Flax and Torch.
    """
    mean = x.mean(-1, keepdims=True)  # (..., 1)
    centred = x - mean
    variance = (centred * centred).mean(-1, keepdims=True)
    rstd = 1 / np.sqrt(variance + eps)
    xhat = centred * rstd
    return xhat * gamma + beta, LayerNormCache(xhat, rstd, gamma)


def layer_norm_backward(d_out: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Gradients of `layer_norm_forward`: d_x (..., C), d_gamma (C,), d_beta (C,)."""
    xhat, rstd, gamma = cache
    tokens = tuple(range(d_out.ndim - 1))
    # out = xhat * gamma + beta
    d_beta = d_out.sum(tokens)
    d_gamma = (d_out * xhat).sum(tokens)
    d_xhat = d_out * gamma
    # xhat = centred * rstd: moving x along 1 or along xhat leaves xhat (but for eps) as it is: both parts are taken out
    along_one = d_xhat.mean(-1, keepdims=True)
    along_xhat = (d_xhat * xhat).mean(-1, keepdims=True)
    d_x = (d_xhat - along_one - xhat * along_xhat) * rstd
    return d_x, d_gamma, d_beta
