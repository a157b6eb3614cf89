"""The encoder block, forward and backward each one kernel: small models spend their time on calls, not on numbers.

A residual is added by the matrix product that makes the step. Kept for the backward: tokens after each norm, query,
key, value, what the heads mixed, the stream, the hidden layer; computed again: scores and activations.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.fast.attention import EVERYTHING, root_of
from siglip_ref.fast.blas import gemm_address
from siglip_ref.fast.compile import kernel
from siglip_ref.fast.fit import NOTHING, same_precision
from siglip_ref.fast.gelu import FORMS, d_gelu_all, gelu_all
from siglip_ref.fast.heads import d_mix, mix
from siglip_ref.fast.layer_norm import d_norm, norm
from siglip_ref.fast.linear import affine, d_affine_inputs, d_affine_weights
from siglip_ref.fast.memory import empty
from siglip_ref.fast.pool import parts_for
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.towers import encoder as plain

ORDER = (
    "norm1/gamma", "norm1/beta",
    "attn/q/kernel", "attn/q/bias", "attn/k/kernel", "attn/k/bias", "attn/v/kernel", "attn/v/bias",
    "attn/out/kernel", "attn/out/bias",
    "norm2/gamma", "norm2/beta", "mlp/in/kernel", "mlp/in/bias", "mlp/out/kernel", "mlp/out/bias",
)  # fmt: skip


class Kept(NamedTuple):
    """What the forward leaves for the backward; (R, ...) rows are tokens of all sequences, R = B N."""

    normed1: Array
    stats1: Array
    query: Array  # (B, N, C), as key, value, mixed
    key: Array
    value: Array
    head_stats: Array
    mixed: Array
    after: Array
    normed2: Array
    stats2: Array
    hidden: Array


class BlockCache(NamedTuple):
    """What the backward needs."""

    x: Array
    weights: tuple[Array, ...]
    mask: Array
    heads: int
    form: int
    kept: Kept


@kernel()
def _forward(
    routine: int, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    scratch: Any, active: Any, out: Any, parts: int,
) -> None:  # fmt: skip
    normed1, stats1, query, key, value, head_stats, mixed, after, normed2, stats2, hidden = kept
    shape = x.shape
    norm(x, w[0], w[1], eps, normed1, stats1, parts)
    affine(routine, normed1, w[2], w[3], nothing, query.reshape(shape), parts)
    affine(routine, normed1, w[4], w[5], nothing, key.reshape(shape), parts)
    affine(routine, normed1, w[6], w[7], nothing, value.reshape(shape), parts)
    mix(routine, query, key, value, mask, heads, root, scratch, mixed, head_stats)
    affine(routine, mixed.reshape(shape), w[8], w[9], x, after, parts)
    norm(after, w[10], w[11], eps, normed2, stats2, parts)
    affine(routine, normed2, w[12], w[13], nothing, hidden, parts)
    gelu_all(hidden.reshape(hidden.size), form, active.reshape(active.size), parts)
    affine(routine, active, w[14], w[15], after, out, parts)


@kernel()
def _backward(
    routine: int, d_out: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, form: int, kept: Any, scratch: Any,
    active: Any, d_hidden: Any, d_heads: Any, d_normed: Any, d_norms: Any, d: Any, d_after: Any, d_x: Any, parts: int,
) -> None:  # fmt: skip
    normed1, stats1, query, key, value, head_stats, mixed, after, normed2, stats2, hidden = kept
    shape, one, zero = x.shape, root / root, root - root
    # out = after + mlp(norm2(after))
    d_affine_inputs(routine, d_out, w[14], zero, d_hidden, parts)
    flat = d_hidden.reshape(d_hidden.size)
    d_gelu_all(flat, hidden.reshape(hidden.size), form, flat, active.reshape(active.size), parts)
    d_affine_weights(routine, d_out, active, d[14], d[15], parts)
    d_affine_inputs(routine, d_hidden, w[12], zero, d_normed, parts)
    d_affine_weights(routine, d_hidden, normed2, d[12], d[13], parts)
    d_norm(d_normed, after, stats2, w[10], d_out, d_after, d_norms[0])
    # after = x + attention(norm1(x)): queries, keys and values are of the same tokens
    d_mixed, d_query, d_key, d_value = d_heads[0], d_heads[1], d_heads[2], d_heads[3]
    d_affine_inputs(routine, d_after, w[8], zero, d_mixed.reshape(shape), parts)
    d_affine_weights(routine, d_after, mixed.reshape(shape), d[8], d[9], parts)
    d_mix(routine, d_mixed, query, key, value, mask, heads, root, scratch, head_stats, d_query, d_key, d_value)
    d_affine_inputs(routine, d_query.reshape(shape), w[2], zero, d_normed, parts)
    d_affine_weights(routine, d_query.reshape(shape), normed1, d[2], d[3], parts)
    d_affine_inputs(routine, d_key.reshape(shape), w[4], one, d_normed, parts)
    d_affine_weights(routine, d_key.reshape(shape), normed1, d[4], d[5], parts)
    d_affine_inputs(routine, d_value.reshape(shape), w[6], one, d_normed, parts)
    d_affine_weights(routine, d_value.reshape(shape), normed1, d[6], d[7], parts)
    d_norm(d_normed, x, stats1, w[0], d_after, d_x, d_norms[1])


def block_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None, ops: ModuleType
) -> tuple[Array, Array, Any]:
    """Twin of `siglip_ref.towers.encoder.block_forward`."""
    w = tuple([weights[name] for name in ORDER])
    if not same_precision(x, *w):
        return plain.block_forward(x, weights, heads, gelu, eps, mask, specification)
    w = tuple([np.ascontiguousarray(weight) for weight in w])
    batch, tokens, width = x.shape
    rows, mlp, seen = batch * tokens, w[13].size, EVERYTHING
    if mask is not None:
        seen = np.ascontiguousarray(np.broadcast_to(mask, (batch, heads, tokens, tokens))).reshape(-1, tokens, tokens)
    flat, inside, two = (rows, width), (batch, tokens, width), (rows, 2)
    shapes = (flat, two, inside, inside, inside, (batch * heads, tokens, 2), inside, flat, flat, two, (rows, mlp))
    kept = Kept(*[empty(shape, x) for shape in shapes])
    x_rows, active, out = np.ascontiguousarray(x).reshape(flat), empty((rows, mlp), x), empty(flat, x)
    with parts_for(rows * width * mlp) as parts:
        scratch = empty((parts, 1, tokens, tokens), x)
        _forward(
            gemm_address(x.dtype), x_rows, w, seen, heads, root_of(x, heads), eps, FORMS[gelu], NOTHING[x.dtype],
            tuple(kept), scratch, active, out, parts,
        )  # fmt: skip
    return out.reshape(inside), kept.after.reshape(inside), BlockCache(x_rows, w, seen, heads, FORMS[gelu], kept)


def block_backward(d_out: Array, cache: Any, ops: ModuleType) -> tuple[Array, Array, dict[str, Array]]:
    """Twin of `siglip_ref.towers.encoder.block_backward`."""
    if not isinstance(cache, BlockCache):
        return plain.block_backward(d_out, cache, specification)
    x, w, mask, heads, form, kept = cache
    inside, flat = kept.query.shape, x.shape
    d = tuple([empty(weight.shape, x) for weight in w])
    active, d_hidden = empty(kept.hidden.shape, x), empty(kept.hidden.shape, x)
    d_heads, d_normed, d_after, d_x = empty((4, *inside), x), empty(flat, x), empty(flat, x), empty(flat, x)
    with parts_for(x.size * kept.hidden.shape[1]) as parts:
        scratch, d_norms = empty((parts, 2, inside[1], inside[1]), x), empty((2, parts, 2, flat[1]), x)
        _backward(
            gemm_address(x.dtype), np.ascontiguousarray(d_out).reshape(flat), x, w, mask, heads, root_of(x, heads),
            form, tuple(kept), scratch, active, d_hidden, d_heads, d_normed, d_norms, d, d_after, d_x, parts,
        )  # fmt: skip
    grads = dict(zip(ORDER, d, strict=True))
    (grads["norm2/gamma"], grads["norm2/beta"]), (grads["norm1/gamma"], grads["norm1/beta"]) = d_norms.sum(1)
    return d_x.reshape(inside), d_after.reshape(inside), grads
