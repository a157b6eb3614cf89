"""The encoder block and the MAP head: the residual is added by the matrix product that makes the step."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.fast.attention import attention_backward, attention_forward, self_attention_backward
from siglip_ref.fast.fit import same_precision
from siglip_ref.fast.layer_norm import layer_norm_backward, layer_norm_forward
from siglip_ref.fast.mlp import mlp_backward, mlp_forward
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.tree import prefixed, subtree
from siglip_ref.towers import encoder as plain


class BlockCache(NamedTuple):
    """What the backward needs."""

    norm1: Any
    attn: Any
    norm2: Any
    mlp: Any


def block_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None, ops: ModuleType
) -> tuple[Array, Array, Any]:
    """Twin of `siglip_ref.towers.encoder.block_forward`."""
    if not same_precision(x, *weights.values()):
        return plain.block_forward(x, weights, heads, gelu, eps, mask, specification)
    normed, norm1 = layer_norm_forward(x, weights["norm1/gamma"], weights["norm1/beta"], eps)
    after, attn = attention_forward(normed, normed, subtree(weights, "attn"), heads, mask, x)
    normed, norm2 = layer_norm_forward(after, weights["norm2/gamma"], weights["norm2/beta"], eps)
    out, mlp = mlp_forward(normed, subtree(weights, "mlp"), gelu, after)
    return out, after, BlockCache(norm1, attn, norm2, mlp)


def block_backward(d_out: Array, cache: Any, ops: ModuleType) -> tuple[Array, Array, dict[str, Array]]:
    """Twin of `siglip_ref.towers.encoder.block_backward`."""
    if not isinstance(cache, BlockCache):
        return plain.block_backward(d_out, cache, specification)
    d_normed, d_mlp = mlp_backward(d_out, cache.mlp)
    d_after, d_gamma2, d_beta2 = layer_norm_backward(d_normed, cache.norm2, d_out)
    d_normed, d_attn = self_attention_backward(d_after, cache.attn)
    d_x, d_gamma1, d_beta1 = layer_norm_backward(d_normed, cache.norm1, d_after)
    norms = {"norm1/gamma": d_gamma1, "norm1/beta": d_beta1, "norm2/gamma": d_gamma2, "norm2/beta": d_beta2}
    return d_x, d_after, norms | prefixed("attn", d_attn) | prefixed("mlp", d_mlp)


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
