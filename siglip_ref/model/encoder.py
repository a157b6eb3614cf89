"""The encoder both towers share: pre-norm blocks, then a final norm."""

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

from siglip_ref.architecture.sizes import Tower
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.record import Ops

BlockCache = namedtuple("BlockCache", "norm1_cache attn_cache norm2_cache mlp_cache")
EncoderCache = namedtuple("EncoderCache", "block_caches norm_cache")


def block_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None, *, ops: Ops
) -> tuple[Array, Array, BlockCache]:
    """x + attention(norm1(x)), then that + mlp(norm2(that)).

    Parameters
    ----------
    x : array, shape (B, N, C)
    weights : norm1/..., attn/..., norm2/..., mlp/...
    heads, gelu, eps, mask : see attention, gelu, layer_norm

    Returns
    -------
    out : array, shape (B, N, C)
    after_attention : array, shape (B, N, C), the stream between the two halves

    Source: big_vision models/vit.py, Encoder1DBlock.
    """
    normed, norm1_cache = ops.layer_norm.forward(x, weights["norm1/gamma"], weights["norm1/beta"], eps)
    attended, attn_cache = ops.attention.forward(normed, normed, subtree(weights, "attn"), heads, mask)
    after_attention = x + attended
    normed, norm2_cache = ops.layer_norm.forward(after_attention, weights["norm2/gamma"], weights["norm2/beta"], eps)
    step, mlp_cache = ops.mlp.forward(normed, subtree(weights, "mlp"), gelu)
    return after_attention + step, after_attention, BlockCache(norm1_cache, attn_cache, norm2_cache, mlp_cache)


def block_backward(d_out: Array, cache: BlockCache, *, ops: Ops) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of `block_forward`: d_x and d_after_attention (B, N, C), and a dict with the keys of `weights`."""
    norm1_cache, attn_cache, norm2_cache, mlp_cache = cache
    # out = after_attention + mlp(norm2(after_attention))
    d_normed, d_mlp = ops.mlp.backward(d_out, mlp_cache)
    d_step, d_gamma2, d_beta2 = ops.layer_norm.backward(d_normed, norm2_cache)
    d_after = d_out + d_step
    # after_attention = x + attention(norm1(x), norm1(x))
    d_query, d_key, d_attn = ops.attention.backward(d_after, attn_cache)
    d_step, d_gamma1, d_beta1 = ops.layer_norm.backward(d_query + d_key, norm1_cache)
    norms = {"norm1/gamma": d_gamma1, "norm1/beta": d_beta1, "norm2/gamma": d_gamma2, "norm2/beta": d_beta2}
    return d_after + d_step, d_after, norms | prefixed("attn", d_attn) | prefixed("mlp", d_mlp)


def blocks_forward(
    x: Array, weights: Mapping[str, Array], tower: Tower, gelu: GeluForm, eps: float, mask: Array | None, *, ops: Ops
) -> tuple[Array, list[Any], dict[str, Array]]:
    """All blocks, one after another: what `encoder_forward` does before its norm."""
    activations, block_caches = {}, []
    for layer in range(tower.depth):
        name = f"block{layer:02d}"
        x, after_attention, cache = ops.block.forward(x, subtree(weights, name), tower.heads, gelu, eps, mask)
        activations[f"{name}/+attn"], activations[f"{name}/+mlp"] = after_attention, x
        block_caches.append(cache)
    return x, block_caches, activations


def blocks_backward(
    d_x: Array, block_caches: list[Any], *, ops: Ops
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Gradients of `blocks_forward`, as `encoder_backward` gives its own."""
    d: dict[str, Array] = {}
    d_activations: dict[str, Array] = {}
    for layer in reversed(range(len(block_caches))):
        name = f"block{layer:02d}"
        d_activations[f"{name}/+mlp"] = d_x
        d_x, d_activations[f"{name}/+attn"], d_block = ops.block.backward(d_x, block_caches[layer])
        d |= prefixed(name, d_block)
    return d_x, d, d_activations


def encoder_forward(
    x: Array, weights: Mapping[str, Array], tower: Tower, gelu: GeluForm, eps: float, mask: Array | None, *, ops: Ops
) -> tuple[Array, EncoderCache, dict[str, Array]]:
    """All blocks and the final norm.

    Returns
    -------
    out : array, shape (B, N, C)
    activations : blockII/+attn, blockII/+mlp (the stream after each half), norm
    """
    x, block_caches, activations = blocks_forward(x, weights, tower, gelu, eps, mask, ops=ops)
    out, norm_cache = ops.layer_norm.forward(x, weights["norm/gamma"], weights["norm/beta"], eps)
    activations["norm"] = out
    return out, EncoderCache(block_caches, norm_cache), activations


def encoder_states(
    x: Array, weights: Mapping[str, Array], tower: Tower, gelu: GeluForm, eps: float, mask: Array | None, *, ops: Ops
) -> tuple[Array, None, dict[str, Array]]:
    """`encoder_forward` for those who want no gradients: every block's cache is dropped as soon as it is made."""
    for layer in range(tower.depth):
        x = ops.block.forward(x, subtree(weights, f"block{layer:02d}"), tower.heads, gelu, eps, mask)[0]
    return ops.layer_norm.forward(x, weights["norm/gamma"], weights["norm/beta"], eps)[0], None, {}


def encoder_backward(
    d_out: Array, cache: EncoderCache, *, ops: Ops
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Gradients of `encoder_forward`: d_x, a dict with the keys of `weights`, a dict with those of `activations`."""
    block_caches, norm_cache = cache
    d: dict[str, Array] = {}
    # out = layer_norm(x)
    d_x, d["norm/gamma"], d["norm/beta"] = ops.layer_norm.backward(d_out, norm_cache)
    # x = blocks(x)
    d_x, d_blocks, d_activations = blocks_backward(d_x, block_caches, ops=ops)
    return d_x, d | d_blocks, {"norm": d_out} | d_activations
