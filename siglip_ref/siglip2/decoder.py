"""The captioning decoder: it reads its own words so far, and the tokens of the image."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np

from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.siglip2.record import Recipe

DecoderBlockCache = namedtuple("DecoderBlockCache", "norm1 attn norm2 cross norm3 mlp names")
DecoderCache = namedtuple("DecoderCache", "token position blocks norm has_beta")


def decoder_block_forward(
    x: Array, context: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float,
    mask: Array | None, seen: Array | None, *, ops: Recipe,
) -> tuple[Array, DecoderBlockCache]:  # fmt: skip
    """u = x + self(norm1(x)); y = u + cross(norm2(u), context); out = y + mlp(norm3(y)).

    Parameters
    ----------
    x : array, shape (B, T, E)
    context : array, shape (B, N, C): keys and values as they come, no norm of their own
    weights : norm1/..., self/..., norm2/..., cross/... (k/kernel and v/kernel are (C, E)), norm3/..., mlp/...
    heads, gelu, eps : see attention, gelu, layer_norm
    mask : array of bool, broadcast to (B, H, T, T), or None: True where a place may see another
    seen : array of bool, broadcast to (B, H, T, N), or None: True where a place may see a token of the image

    Returns
    -------
    out : array, shape (B, T, E)

    A bias or a norm's beta that `weights` does not have is zero, and has no gradient.

    Source: big_vision models/proj/cappa/cappa.py, EncoderDecoderBlock.
    """
    w = with_zeros(weights)
    normed, norm1_cache = ops.layer_norm.forward(x, w["norm1/gamma"], w["norm1/beta"], eps)
    attended, attn_cache = ops.attention.forward(normed, normed, subtree(w, "self"), heads, mask)
    after_self = x + attended
    normed, norm2_cache = ops.layer_norm.forward(after_self, w["norm2/gamma"], w["norm2/beta"], eps)
    read, cross_cache = ops.attention.forward(normed, context, subtree(w, "cross"), heads, seen)
    after_cross = after_self + read
    normed, norm3_cache = ops.layer_norm.forward(after_cross, w["norm3/gamma"], w["norm3/beta"], eps)
    step, mlp_cache = ops.mlp.forward(normed, subtree(w, "mlp"), gelu)
    caches = (norm1_cache, attn_cache, norm2_cache, cross_cache, norm3_cache, mlp_cache)
    return after_cross + step, DecoderBlockCache(*caches, tuple(weights))


def decoder_block_backward(
    d_out: Array, cache: DecoderBlockCache, *, ops: Recipe
) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of `decoder_block_forward`: d_x (B, T, E), d_context (B, N, C), a dict with the keys of `weights`."""
    norm1_cache, attn_cache, norm2_cache, cross_cache, norm3_cache, mlp_cache, names = cache
    d: dict[str, Array] = {}
    # out = after_cross + mlp(norm3(after_cross))
    d_normed, d_mlp = ops.mlp.backward(d_out, mlp_cache)
    d_step, d["norm3/gamma"], d["norm3/beta"] = ops.layer_norm.backward(d_normed, norm3_cache)
    d_after_cross = d_out + d_step
    # after_cross = after_self + cross(norm2(after_self), context)
    d_normed, d_context, d_cross = ops.attention.backward(d_after_cross, cross_cache)
    d_step, d["norm2/gamma"], d["norm2/beta"] = ops.layer_norm.backward(d_normed, norm2_cache)
    d_after_self = d_after_cross + d_step
    # after_self = x + self(norm1(x), norm1(x))
    d_query, d_key, d_self = ops.attention.backward(d_after_self, attn_cache)
    d_step, d["norm1/gamma"], d["norm1/beta"] = ops.layer_norm.backward(d_query + d_key, norm1_cache)
    d |= prefixed("self", d_self) | prefixed("cross", d_cross) | prefixed("mlp", d_mlp)
    return d_after_self + d_step, d_context, {name: d[name] for name in names}


def decoder_forward(
    inputs: Array, context: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float,
    mask: Array | None, seen: Array | None, *, ops: Recipe,
) -> tuple[Array, DecoderCache]:  # fmt: skip
    """states = norm(blocks(token[inputs] + position, context)); the output layer belongs to the loss.

    Parameters
    ----------
    inputs : int array, shape (B, T), see `caption_inputs`
    weights : token (V + 1, E), position (T, E), blockII/..., norm/...
    context, heads, gelu, eps, mask, seen : as in a block

    Returns
    -------
    states : array, shape (B, T, E)

    Source: big_vision models/proj/cappa/cappa.py, Decoder: no scale, no norm and no dropout after the embedding.
    """
    embedded, token_cache = ops.token_embed.forward(inputs, weights["token"])
    x, position_cache = ops.position.forward(embedded, weights["position"])
    blocks = []
    for layer in range(_depth(weights)):
        own = subtree(weights, f"block{layer:02d}")
        x, cache = ops.decoder_block.forward(x, context, own, heads, gelu, eps, mask, seen)
        blocks.append(cache)
    w = with_zeros(subtree(weights, "norm"))
    states, norm_cache = ops.layer_norm.forward(x, w["gamma"], w["beta"], eps)
    return states, DecoderCache(token_cache, position_cache, blocks, norm_cache, "norm/beta" in weights)


def decoder_backward(d_states: Array, cache: DecoderCache, *, ops: Recipe) -> tuple[Array, dict[str, Array]]:
    """Gradients of `decoder_forward`: d_context (B, N, C), summed over blocks, a dict with the keys of `weights`."""
    token_cache, position_cache, blocks, norm_cache, has_beta = cache
    d: dict[str, Array] = {}
    # states = norm(x)
    d_x, d["norm/gamma"], d_beta = ops.layer_norm.backward(d_states, norm_cache)
    d |= {"norm/beta": d_beta} if has_beta else {}
    d_context = 0
    for layer in reversed(range(len(blocks))):
        # x = block(x, context)
        d_x, d_read, d_block = ops.decoder_block.backward(d_x, blocks[layer])
        d_context = d_context + d_read
        d |= prefixed(f"block{layer:02d}", d_block)
    # x = embedded + position
    d_embedded, d["position"] = ops.position.backward(d_x, position_cache)
    # embedded = token[inputs]
    d["token"] = ops.token_embed.backward(d_embedded, token_cache)
    return d_context, d


def with_zeros(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same weights, and a zero for each bias or beta that is not among them.

    >>> sorted(with_zeros({"q/kernel": np.ones((2, 3)), "norm1/gamma": np.ones(2)}))
    ['norm1/beta', 'norm1/gamma', 'q/bias', 'q/kernel']
    """
    shifts = {
        name.replace("kernel", "bias").replace("gamma", "beta"): np.zeros_like(value[0] if value.ndim > 1 else value)
        for name, value in weights.items()
        if name.endswith(("kernel", "gamma"))
    }
    return shifts | dict(weights)


def _depth(weights: Mapping[str, Array]) -> int:
    """How many blocks there are weights for."""
    return len({name.split("/")[0] for name in weights if name.startswith("block")})
