"""Attention, the MLP and the MAP head: projections, and what happens in each head."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.fast.kernels.heads import d_mix, mix
from siglip_ref.fast.linear import LinearCache, linear_backward, linear_forward
from siglip_ref.fast.machine.blas import gemm_address
from siglip_ref.fast.machine.fit import empty, linear_fits, same_precision
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.ops.elementary import Array

HEAD = 1 << 15  # multiplications that take as long as the calls for one head
EVERYTHING = np.empty((0, 0, 0), bool)  # the mask that hides nothing


class AttentionCache(NamedTuple):
    """What the backward needs: no scores, they are computed again."""

    query_cache: LinearCache
    key_cache: LinearCache
    value_cache: LinearCache
    out_cache: LinearCache
    query: Array
    key: Array
    value: Array
    mask: Array
    heads: int
    stats: Array  # (B H, N, 2): each query's largest score, and 1 / sum of its weights


def attention_forward(
    x_query: Array,
    x_key: Array,
    weights: Mapping[str, Array],
    heads: int,
    mask: Array | None = None,
    add: Array | None = None,
) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.attention_forward`; `add`, if given, is added to the result."""
    if not same_precision(x_query, x_key, *weights.values()) or not _fits(x_query, x_key, weights, heads):
        return specification.attention_forward(x_query, x_key, weights, heads, mask)
    query, query_cache = linear_forward(x_query, weights["q/kernel"], weights["q/bias"])
    key, key_cache = linear_forward(x_key, weights["k/kernel"], weights["k/bias"])
    value, value_cache = linear_forward(x_key, weights["v/kernel"], weights["v/bias"])
    batch, tokens, width = query.shape
    keys = key.shape[1]
    seen = seen_by_head(mask, batch, heads, tokens, keys)
    stats = empty((batch * heads, tokens, 2), query)
    mixed = empty(query.shape, query)
    with parts_for(batch * (tokens * keys * width + heads * HEAD)) as parts:
        scratch = empty((parts, 1, tokens, keys), query)
        mix(gemm_address(query.dtype), query, key, value, seen, heads, root_of(query, heads), scratch, mixed, stats)
    out, out_cache = linear_forward(mixed, weights["out/kernel"], weights["out/bias"], add)
    return out, AttentionCache(query_cache, key_cache, value_cache, out_cache, query, key, value, seen, heads, stats)


def _fits(x_query: Array, x_key: Array, weights: Mapping[str, Array], heads: int) -> bool:
    """Three projections to one width, which the heads divide, and one from there; as many sequences of both kinds."""
    kernels, biases = ([weights[f"{part}/{kind}"] for part in ("q", "k", "v", "out")] for kind in ("kernel", "bias"))
    width = kernels[0].shape[-1]
    inputs = (x_query.shape[-1], x_key.shape[-1], x_key.shape[-1], width)
    alike = all(kernel.shape[-1] == width for kernel in kernels[:3]) and len(x_query) == len(x_key)
    split = x_query.ndim == x_key.ndim == 3 and width % heads == 0
    return alike and split and all(map(linear_fits, inputs, kernels, biases))


def attention_backward(d_out: Array, cache: Any) -> tuple[Array, Array, dict[str, Array]]:
    """Twin of `siglip_ref.ops.attention_backward`."""
    if not isinstance(cache, AttentionCache):
        return specification.attention_backward(d_out, cache)
    d_query, d_key, d_value, d = _inside(d_out, cache)
    d_x_query, d["q/kernel"], d["q/bias"] = linear_backward(d_query, cache.query_cache)
    d_x_key, d["k/kernel"], d["k/bias"] = linear_backward(d_key, cache.key_cache)
    d_x_key, d["v/kernel"], d["v/bias"] = linear_backward(d_value, cache.value_cache, d_x_key)
    return d_x_query, d_x_key, d


def _inside(d_out: Array, cache: AttentionCache) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Back through the last projection and the heads."""
    query, key, value = cache.query, cache.key, cache.value
    d: dict[str, Array] = {}
    d_mixed, d["out/kernel"], d["out/bias"] = linear_backward(d_out, cache.out_cache)
    d_query, d_key, d_value = (empty(x.shape, x) for x in (query, key, value))
    batch, tokens, width = query.shape
    keys = key.shape[1]
    with parts_for(batch * (tokens * keys * width + cache.heads * HEAD)) as parts:
        scratch = empty((parts, 2, tokens, keys), query)
        d_mix(
            gemm_address(query.dtype), d_mixed, query, key, value, cache.mask, cache.heads,
            root_of(query, cache.heads), scratch, cache.stats, d_query, d_key, d_value,
        )  # fmt: skip
    return d_query, d_key, d_value, d


def root_of(query: Array, heads: int) -> Array:
    """The square root of the head size."""
    return np.sqrt(query.dtype.type(query.shape[-1] // heads))


def seen_by_head(mask: Array | None, batch: int, heads: int, tokens: int, keys: int) -> Array:
    """The mask for each head of each sequence (B H, N, M), or `EVERYTHING`."""
    if mask is None:
        return EVERYTHING
    return np.ascontiguousarray(np.broadcast_to(mask, (batch, heads, tokens, keys))).reshape(-1, tokens, keys)
