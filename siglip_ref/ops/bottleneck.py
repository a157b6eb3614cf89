"""mSigLIP's token embedding: a narrow table, widened by one matrix, in place of a wide table."""

from collections import namedtuple

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

BottleneckCache = namedtuple("BottleneckCache", "token widen")


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
