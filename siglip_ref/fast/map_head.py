"""The MAP head, from attention, layer norm and MLP."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.fast.attention import attention_backward, attention_forward
from siglip_ref.fast.fit import same_precision
from siglip_ref.fast.layer_norm import layer_norm_backward, layer_norm_forward
from siglip_ref.fast.mlp import mlp_backward, mlp_forward
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.tree import prefixed, subtree


class MapCache(NamedTuple):
    """What the backward needs."""

    attn: Any
    norm: Any
    mlp: Any


def map_head_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None = None
) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.map_head_forward`."""
    if not same_precision(x, *weights.values()):
        return specification.map_head_forward(x, weights, heads, gelu, eps, mask)
    probe = np.repeat(weights["probe"][None, None], len(x), 0)  # (B, 1, C)
    read, attn = attention_forward(probe, x, subtree(weights, "attn"), heads, mask)
    normed, norm = layer_norm_forward(read, weights["norm/gamma"], weights["norm/beta"], eps)
    out, mlp = mlp_forward(normed, subtree(weights, "mlp"), gelu, read)
    return out[:, 0], MapCache(attn, norm, mlp)


def map_head_backward(d_pooled: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
    """Twin of `siglip_ref.ops.map_head_backward`."""
    if not isinstance(cache, MapCache):
        return specification.map_head_backward(d_pooled, cache)
    d_out = d_pooled[:, None]
    d_normed, d_mlp = mlp_backward(d_out, cache.mlp)
    d_read, d_gamma, d_beta = layer_norm_backward(d_normed, cache.norm, d_out)
    d_probe, d_x, d_attn = attention_backward(d_read, cache.attn)
    d = {"probe": d_probe.sum((0, 1)), "norm/gamma": d_gamma, "norm/beta": d_beta}
    return d_x, d | prefixed("attn", d_attn) | prefixed("mlp", d_mlp)
