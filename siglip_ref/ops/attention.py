"""Multi-head attention."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np

from siglip_ref.ops.elementary import Array, number
from siglip_ref.ops.record import Ops

AttentionCache = namedtuple(
    "AttentionCache", "query_cache key_cache value_cache out_cache query key value root probability"
)


def attention_forward(
    x_query: Array, x_key: Array, weights: Mapping[str, Array], heads: int, mask: Array | None = None, *, ops: Ops
) -> tuple[Array, AttentionCache]:
    """Every query token takes a weighted mean of the key tokens' values, in each head by itself.

    Parameters
    ----------
    x_query : array, shape (B, N, C)
    x_key : array, shape (B, M, C), where keys and values come from (self-attention: x_query itself)
    weights : q/kernel, k/kernel, v/kernel, out/kernel, all (C, C), and q/bias, k/bias, v/bias, out/bias, all (C,)
    heads : H; head i owns features i h to (i + 1) h
    mask : array of bool, broadcast to (B, H, N, M), or None: True where the query may see the key

    Returns
    -------
    out : array, shape (B, N, C)

    A key bias moves all scores of a query by the same amount, which softmax does not see: its gradient is zero by
    structure.

    Source: Vaswani et al. 2017, section 3.2; biases everywhere and no dropout, as in big_vision's vit.py.
    """
    query, query_cache = ops.linear.forward(x_query, weights["q/kernel"], weights["q/bias"])
    key, key_cache = ops.linear.forward(x_key, weights["k/kernel"], weights["k/bias"])
    value, value_cache = ops.linear.forward(x_key, weights["v/kernel"], weights["v/bias"])
    query, key, value = _split(query, heads), _split(key, heads), _split(value, heads)  # (B, H, N or M, h)
    root = np.sqrt(number(query.shape[-1], query))
    scores = (query / root) @ key.swapaxes(-1, -2)  # (B, H, N, M)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    probability, _ = ops.softmax.forward(scores)
    mixed = probability @ value  # (B, H, N, h)
    out, out_cache = ops.linear.forward(_join(mixed), weights["out/kernel"], weights["out/bias"])
    return out, AttentionCache(query_cache, key_cache, value_cache, out_cache, query, key, value, root, probability)


def attention_backward(d_out: Array, cache: AttentionCache, *, ops: Ops) -> tuple[Array, Array, dict[str, Array]]:
    """Gradients of `attention_forward`: d_x_query (B, N, C), d_x_key (B, M, C), and a dict with the keys of `weights`.

    In self-attention the two input gradients belong to the same tokens: the caller adds them.
    """
    query_cache, key_cache, value_cache, out_cache, query, key, value, root, probability = cache
    heads = query.shape[1]
    d = {}
    # out = join(mixed) @ out/kernel + out/bias
    d_joined, d["out/kernel"], d["out/bias"] = ops.linear.backward(d_out, out_cache)
    d_mixed = _split(d_joined, heads)
    # mixed = probability @ value
    d_probability = d_mixed @ value.swapaxes(-1, -2)
    d_value = probability.swapaxes(-1, -2) @ d_mixed
    # probability = softmax(scores): a masked score has probability zero, and so gradient zero
    d_scores = ops.softmax.backward(d_probability, probability)
    # scores = (query / root) @ key.T
    d_query = d_scores @ key / root
    d_key = d_scores.swapaxes(-1, -2) @ (query / root)
    # query, key and value are linear in the tokens
    d_x_query, d["q/kernel"], d["q/bias"] = ops.linear.backward(_join(d_query), query_cache)
    d_x_from_key, d["k/kernel"], d["k/bias"] = ops.linear.backward(_join(d_key), key_cache)
    d_x_from_value, d["v/kernel"], d["v/bias"] = ops.linear.backward(_join(d_value), value_cache)
    return d_x_query, d_x_from_key + d_x_from_value, d


def _split(x: Array, heads: int) -> Array:
    """(B, N, C) to (B, H, N, h): head-major features, as Flax's reshape and Torch's view."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _join(x: Array) -> Array:
    """(B, H, N, h) back to (B, N, C)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
