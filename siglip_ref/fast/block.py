"""The encoder block, forward and backward each one kernel: small models spend their time on calls, not on numbers.

A residual is added by the matrix product that makes the step. Kept for the backward: query, key, value, what the heads
mixed, the stream, the hidden layer; computed again: tokens after each norm, scores, activations. The backward gives up
what was kept, so that the gradients of a deep model can take its place in memory.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.errors import UsageError
from siglip_ref.fast.attention import EVERYTHING, root_of
from siglip_ref.fast.blas import gemm_address
from siglip_ref.fast.compile import kernel
from siglip_ref.fast.fit import NOTHING, empty, same_precision
from siglip_ref.fast.gelu import FORMS, d_gelu_all, gelu_all
from siglip_ref.fast.heads import d_mix, mix
from siglip_ref.fast.layer_norm import d_norm, norm
from siglip_ref.fast.linear import affine, d_affine_inputs, d_affine_weights
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

    stats1: Array
    query: Array  # (B, N, C), as key, value, mixed
    key: Array
    value: Array
    head_stats: Array
    mixed: Array
    after: Array
    stats2: Array
    hidden: Array


class BlockCache:
    """What the backward needs: x, weights, mask, heads, GELU's form, eps, and what is `Kept`. It can be taken once."""

    __slots__ = ("_all",)

    def __init__(self, *everything: Any) -> None:
        self._all = everything

    def take(self) -> tuple[Any, ...]:
        """All of it, for the last time.

        Raises
        ------
        UsageError : it was taken before
        """
        everything, self._all = self._all, ()
        if not everything:
            raise UsageError(
                expected="one backward for each forward",
                got="a second backward with the same cache",
                cause="compiled blocks give up what they kept as soon as they have used it, which halves the memory",
                repair="call the forward again, or use siglip_ref.ops, whose caches last",
            )
        return everything


@kernel()
def _forward(
    routine: int, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    scratch: Any, normed: Any, active: Any, out: Any, parts: int,
) -> None:  # fmt: skip
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    shape = x.shape
    norm(x, w[0], w[1], eps, normed, stats1, parts)
    affine(routine, normed, w[2], w[3], nothing, query.reshape(shape), parts)
    affine(routine, normed, w[4], w[5], nothing, key.reshape(shape), parts)
    affine(routine, normed, w[6], w[7], nothing, value.reshape(shape), parts)
    mix(routine, query, key, value, mask, heads, root, scratch, mixed, head_stats)
    affine(routine, mixed.reshape(shape), w[8], w[9], x, after, parts)
    norm(after, w[10], w[11], eps, normed, stats2, parts)
    affine(routine, normed, w[12], w[13], nothing, hidden, parts)
    gelu_all(hidden.reshape(hidden.size), form, active.reshape(active.size), parts)
    affine(routine, active, w[14], w[15], after, out, parts)


@kernel()
def _backward(
    routine: int, d_out: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, form: int, eps: float, kept: Any,
    scratch: Any, active: Any, d_hidden: Any, d_heads: Any, normed: Any, d_normed: Any, d_norms: Any, d: Any,
    d_after: Any, d_x: Any, parts: int,
) -> None:  # fmt: skip
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    shape, one, zero = x.shape, root / root, root - root
    # out = after + mlp(norm2(after))
    d_affine_inputs(routine, d_out, w[14], zero, d_hidden, parts)
    d_gelu_all(d_hidden.reshape(hidden.size), hidden.reshape(hidden.size), form, active.reshape(hidden.size), parts)
    d_affine_weights(routine, d_out, active, d[14], d[15], parts)
    d_affine_inputs(routine, d_hidden, w[12], zero, d_normed, parts)
    norm(after, w[10], w[11], eps, normed, stats2, parts)
    d_affine_weights(routine, d_hidden, normed, d[12], d[13], parts)
    d_norm(d_normed, after, stats2, w[10], d_out, d_after, d_norms[0])
    # after = x + attention(norm1(x)): queries, keys and values are of the same tokens
    d_mixed, d_query, d_key, d_value = d_heads[0], d_heads[1], d_heads[2], d_heads[3]
    d_affine_inputs(routine, d_after, w[8], zero, d_mixed.reshape(shape), parts)
    d_affine_weights(routine, d_after, mixed.reshape(shape), d[8], d[9], parts)
    d_mix(routine, d_mixed, query, key, value, mask, heads, root, scratch, head_stats, d_query, d_key, d_value)
    norm(x, w[0], w[1], eps, normed, stats1, parts)
    d_affine_inputs(routine, d_query.reshape(shape), w[2], zero, d_normed, parts)
    d_affine_weights(routine, d_query.reshape(shape), normed, d[2], d[3], parts)
    d_affine_inputs(routine, d_key.reshape(shape), w[4], one, d_normed, parts)
    d_affine_weights(routine, d_key.reshape(shape), normed, d[4], d[5], parts)
    d_affine_inputs(routine, d_value.reshape(shape), w[6], one, d_normed, parts)
    d_affine_weights(routine, d_value.reshape(shape), normed, d[6], d[7], parts)
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
    shapes = (two, inside, inside, inside, (batch * heads, tokens, 2), inside, flat, two, (rows, mlp))
    kept = Kept(*[empty(shape, x) for shape in shapes])
    x_rows, active = np.ascontiguousarray(x).reshape(flat), empty((rows, mlp), x)
    normed, out = empty(flat, x), empty(flat, x)
    with parts_for(rows * width * mlp) as parts:
        scratch = empty((parts, 1, tokens, tokens), x)
        _forward(
            gemm_address(x.dtype), x_rows, w, seen, heads, root_of(x, heads), eps, FORMS[gelu], NOTHING[x.dtype],
            tuple(kept), scratch, normed, active, out, parts,
        )  # fmt: skip
    return out.reshape(inside), kept.after.reshape(inside), BlockCache(x_rows, w, seen, heads, FORMS[gelu], eps, kept)


def block_backward(d_out: Array, cache: Any, ops: ModuleType) -> tuple[Array, Array, dict[str, Array]]:
    """Twin of `siglip_ref.towers.encoder.block_backward`."""
    if not isinstance(cache, BlockCache):
        return plain.block_backward(d_out, cache, specification)
    x, w, mask, heads, form, eps, kept = cache.take()
    inside, flat = kept.query.shape, x.shape
    d = tuple([empty(weight.shape, x) for weight in w])
    active, d_hidden = empty(kept.hidden.shape, x), empty(kept.hidden.shape, x)
    d_heads, normed, d_normed = empty((4, *inside), x), empty(flat, x), empty(flat, x)
    d_after, d_x = empty(flat, x), empty(flat, x)
    with parts_for(x.size * kept.hidden.shape[1]) as parts:
        scratch, d_norms = empty((parts, 2, inside[1], inside[1]), x), empty((2, parts, 2, flat[1]), x)
        _backward(
            gemm_address(x.dtype), np.ascontiguousarray(d_out).reshape(flat), x, w, mask, heads, root_of(x, heads),
            form, eps, tuple(kept), scratch, active, d_hidden, d_heads, normed, d_normed, d_norms, d, d_after, d_x,
            parts,
        )  # fmt: skip
    grads = dict(zip(ORDER, d, strict=True))
    (grads["norm2/gamma"], grads["norm2/beta"]), (grads["norm1/gamma"], grads["norm1/beta"]) = d_norms.sum(1)
    return d_x.reshape(inside), d_after.reshape(inside), grads
