"""Kernels of the encoder block: one forward, one backward, each step on as many threads as it is told."""

from typing import Any, NamedTuple

from numba import prange

from siglip_ref.fast.gelu import d_gelu_all, gelu_all
from siglip_ref.fast.kernels.heads import d_mix, mix
from siglip_ref.fast.layer_norm import d_norm, norm
from siglip_ref.fast.linear import affine, d_affine_inputs, d_affine_weights
from siglip_ref.fast.machine.compile import COUNT, ONE, inner, kernel
from siglip_ref.fast.machine.elementary import number
from siglip_ref.ops.elementary import Array


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


class Room(NamedTuple):
    """For what passes between the steps of the backward."""

    scores: Array  # (threads, 2, N, N)
    active: Array  # (R, M)
    d_hidden: Array
    d_heads: Array  # (4, B, N, C)
    normed: Array  # (R, C)
    d_normed: Array


@inner(apart=True)
def add_mlp(
    routine: int, turned: Any, x: Any, w: Any, eps: float, form: int, nothing: Any, stats: Any, hidden: Any,
    normed: Any, active: Any, out: Any, parts: int,
) -> None:  # fmt: skip
    """out = x + mlp(norm(x)); turned as in `fit.as_stored`; w : gamma, beta, and kernel and bias of both layers."""
    norm(x, w[0], w[1], eps, normed, stats, parts)
    affine(routine, turned[2], normed, w[2], w[3], nothing, hidden, parts)
    gelu_all(hidden.reshape(hidden.size), form, active.reshape(active.size), parts)
    affine(routine, turned[4], active, w[4], w[5], x, out, parts)


@inner(apart=True)
def d_add_mlp(
    routine: int, turned: Any, d_out: Any, x: Any, w: Any, eps: float, form: int, stats: Any, hidden: Any, keep: Any,
    d: Any, active: Any, d_hidden: Any, normed: Any, d_normed: Any, d_x: Any, parts: int,
) -> None:  # fmt: skip
    """Gradients of `add_mlp`; keep and d as in `backward`."""
    size = hidden.size
    d_affine_inputs(routine, turned[4], d_out, w[4], number(0, keep), d_hidden, parts)
    d_gelu_all(d_hidden.reshape(size), hidden.reshape(size), form, active.reshape(size), parts)
    d_affine_weights(routine, d_out, active, keep, d[3], d[4], parts)
    d_affine_inputs(routine, turned[2], d_hidden, w[2], number(0, keep), d_normed, parts)
    norm(x, w[0], w[1], eps, normed, stats, parts)
    d_affine_weights(routine, d_hidden, normed, keep, d[1], d[2], parts)
    d_norm(d_normed, x, stats, w[0], d_out, keep, d_x, d[0])


@inner(apart=True)
def steps(
    routine: int, turned: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any,
    kept: Any, scores: Any, normed: Any, active: Any, out: Any, parts: int,
) -> None:  # fmt: skip
    """out = after + mlp(norm2(after)), after = x + attention(norm1(x)): each step on `parts` threads."""
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    shape = x.shape
    norm(x, w[0], w[1], eps, normed, stats1, parts)
    affine(routine, turned[2], normed, w[2], w[3], nothing, query.reshape(shape), parts)
    affine(routine, turned[4], normed, w[4], w[5], nothing, key.reshape(shape), parts)
    affine(routine, turned[6], normed, w[6], w[7], nothing, value.reshape(shape), parts)
    mix(routine, query, key, value, mask, heads, root, scores, mixed, head_stats)
    affine(routine, turned[8], mixed.reshape(shape), w[8], w[9], x, after, parts)
    add_mlp(routine, turned[10:], after, w[10:], eps, form, nothing, stats2, hidden, normed, active, out, parts)


@inner(apart=True)
def _some(
    routine: int, turned: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any,
    kept: Any, scores: Any, normed: Any, active: Any, out: Any, parts: int, a: int, b: int,
) -> None:  # fmt: skip
    """The `steps` of the sequences from `a` to `b`."""
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    tokens = query.shape[1]
    top, bottom, rows = a * tokens, b * tokens, (b - a) * tokens
    of_these = (
        stats1[top:bottom], query[a:b], key[a:b], value[a:b], head_stats[a * heads : b * heads], mixed[a:b],
        after[top:bottom], stats2[top:bottom], hidden[top:bottom],
    )  # fmt: skip
    steps(routine, turned, x[top:bottom], w, mask[a * heads : b * heads], heads, root, eps, form, nothing, of_these,
          scores, normed[:rows], active[:rows], out[top:bottom], parts)  # fmt: skip


@kernel(parallel=True)
def forward(
    routine: int, turned: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any,
    kept: Any, scores: Any, normed: Any, active: Any, out: Any, few: int, parts: int,
) -> None:  # fmt: skip
    """The `steps` for all sequences: each thread takes its own, `few` at a time, so that what passes between the steps
    stays in the caches; what is left over is done together.

    normed, active : for few * parts sequences
    """
    sequences, rows = len(kept[1]), few * kept[1].shape[1]
    each = sequences // (few * parts) * few
    for thread in prange(parts):
        first = thread * rows
        for a in range(each * thread, each * (thread + 1), few):
            _some(routine, turned, x, w, mask, heads, root, eps, form, nothing, kept, scores[thread : thread + 1],
                  normed[first:], active[first:], out, ONE, a, a + few)  # fmt: skip
    if each * parts < sequences:
        _some(routine, turned, x, w, mask, heads, root, eps, form, nothing, kept, scores, normed, active, out, parts,
              COUNT(each * parts), COUNT(sequences))  # fmt: skip


@kernel()
def backward(
    routine: int, turned: Any, d_out: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, form: int, eps: float,
    kept: Any, keep: Any, d: Any, room: Any, d_after: Any, d_x: Any, parts: int,
) -> None:  # fmt: skip
    """Gradients of `steps`; with keep = 1 those of the weights are added to `d`, with keep = 0 only written.

    d : in the order of `w`, but gamma and beta of a norm are one array (threads, 2, C)
    """
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    scores, active, d_hidden, d_heads, normed, d_normed = room
    shape, one, zero = x.shape, root / root, root - root
    # out = after + mlp(norm2(after))
    d_add_mlp(routine, turned[10:], d_out, after, w[10:], eps, form, stats2, hidden, keep, d[9:], active, d_hidden,
              normed, d_normed, d_after, parts)  # fmt: skip
    # after = x + attention(norm1(x)): queries, keys and values are of the same tokens
    few = len(query)
    d_mixed, d_query, d_key, d_value = d_heads[0][:few], d_heads[1][:few], d_heads[2][:few], d_heads[3][:few]
    d_affine_inputs(routine, turned[8], d_after, w[8], zero, d_mixed.reshape(shape), parts)
    d_affine_weights(routine, d_after, mixed.reshape(shape), keep, d[7], d[8], parts)
    d_mix(routine, d_mixed, query, key, value, mask, heads, root, scores, head_stats, d_query, d_key, d_value)
    norm(x, w[0], w[1], eps, normed, stats1, parts)
    d_affine_inputs(routine, turned[2], d_query.reshape(shape), w[2], zero, d_normed, parts)
    d_affine_weights(routine, d_query.reshape(shape), normed, keep, d[1], d[2], parts)
    d_affine_inputs(routine, turned[4], d_key.reshape(shape), w[4], one, d_normed, parts)
    d_affine_weights(routine, d_key.reshape(shape), normed, keep, d[3], d[4], parts)
    d_affine_inputs(routine, turned[6], d_value.reshape(shape), w[6], one, d_normed, parts)
    d_affine_weights(routine, d_value.reshape(shape), normed, keep, d[5], d[6], parts)
    d_norm(d_normed, x, stats1, w[0], d_after, keep, d_x, d[0])
