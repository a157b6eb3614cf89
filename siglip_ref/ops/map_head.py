"""Multi-head attention pooling: one learned query reads all tokens."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np

from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.record import Ops

MapHeadCache = namedtuple("MapHeadCache", "attn_cache norm_cache mlp_cache")


def map_head_forward(
    x: Array,
    weights: Mapping[str, Array],
    heads: int,
    gelu: GeluForm,
    eps: float,
    mask: Array | None = None,
    *,
    ops: Ops,
) -> tuple[Array, MapHeadCache]:
    """pooled = r + mlp(norm(r)), where r is what the probe reads from the tokens.

    Parameters
    ----------
    x : array, shape (B, N, C), tokens after the tower's final norm
    weights : probe (C,), and attn/..., norm/gamma, norm/beta, mlp/... as in the encoder block
    heads, gelu, eps : as in the encoder block
    mask : array of bool, broadcast to (B, H, 1, N), or None: True where the probe may see the token

    Returns
    -------
    pooled : array, shape (B, C)

    There is no residual from the probe and no norm before the attention.

    Source: big_vision models/vit.py, MAPHead; Lee et al. 2019 (Set Transformer), section 3.2.
    """
    probe = np.broadcast_to(weights["probe"], (x.shape[0], 1, x.shape[-1]), subok=True)  # (B, 1, C)
    read, attn_cache = ops.attention.forward(probe, x, subtree(weights, "attn"), heads, mask)
    normed, norm_cache = ops.layer_norm.forward(read, weights["norm/gamma"], weights["norm/beta"], eps)
    step, mlp_cache = ops.mlp.forward(normed, subtree(weights, "mlp"), gelu)
    return (read + step)[:, 0], MapHeadCache(attn_cache, norm_cache, mlp_cache)


def map_head_backward(d_pooled: Array, cache: MapHeadCache, *, ops: Ops) -> tuple[Array, dict[str, Array]]:
    """Gradients of `map_head_forward`: d_x (B, N, C), and a dict with the keys of `weights`."""
    attn_cache, norm_cache, mlp_cache = cache
    d_out = d_pooled[:, None]  # (B, 1, C)
    # out = read + mlp(norm(read))
    d_normed, d_mlp = ops.mlp.backward(d_out, mlp_cache)
    d_read, d_gamma, d_beta = ops.layer_norm.backward(d_normed, norm_cache)
    # read = attention(probe, x); every image is asked by the same probe
    d_probe, d_x, d_attn = ops.attention.backward(d_out + d_read, attn_cache)
    d = {"probe": d_probe.sum((0, 1)), "norm/gamma": d_gamma, "norm/beta": d_beta}
    return d_x, d | prefixed("attn", d_attn) | prefixed("mlp", d_mlp)
