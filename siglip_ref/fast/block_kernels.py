"""Kernels of the encoder block: one forward, one backward, and each of them sequence by sequence.

A wide block shares every product between the threads. A narrow one does better with whole sequences: each thread takes
its own from the first step to the last, a few at a time, and what passes between the steps stays in its cache.
"""

from typing import Any, NamedTuple

from numba import prange

from siglip_ref.fast.compile import kernel
from siglip_ref.fast.gelu import d_gelu_all, gelu_all
from siglip_ref.fast.heads import d_mix, mix
from siglip_ref.fast.layer_norm import d_norm, norm
from siglip_ref.fast.linear import affine, d_affine_inputs, d_affine_weights
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


class Gradients(NamedTuple):
    """Of the weights, one set a team (all threads, or a single one with sequences of its own); the first is the sum."""

    squares: Array  # (teams, 4, C, C): kernels of query, key, value, out
    vectors: Array  # (teams, 5, C): their biases, and the MLP's last
    into: Array  # (teams, C, M): the MLP's first kernel, and its bias
    into_bias: Array
    out_of: Array  # (teams, M, C): its second
    norms: Array  # (teams, 2, parts of a team, 2, C): gamma and beta of both norms


class Room(NamedTuple):
    """For what passes between steps, one set a team."""

    scores: Array  # (teams, parts of a team, 2, N, N)
    active: Array  # (teams, R, M)
    d_hidden: Array
    d_heads: Array  # (teams, 4, B, N, C)
    normed: Array  # (teams, R, C)
    d_normed: Array


@kernel()
def forward(
    routine: int, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    scores: Any, normed: Any, active: Any, out: Any, parts: int,
) -> None:  # fmt: skip
    """out = after + mlp(norm2(after)), after = x + attention(norm1(x)): each step on `parts` threads."""
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    shape = x.shape
    norm(x, w[0], w[1], eps, normed, stats1, parts)
    affine(routine, normed, w[2], w[3], nothing, query.reshape(shape), parts)
    affine(routine, normed, w[4], w[5], nothing, key.reshape(shape), parts)
    affine(routine, normed, w[6], w[7], nothing, value.reshape(shape), parts)
    mix(routine, query, key, value, mask, heads, root, scores, mixed, head_stats)
    affine(routine, mixed.reshape(shape), w[8], w[9], x, after, parts)
    norm(after, w[10], w[11], eps, normed, stats2, parts)
    affine(routine, normed, w[12], w[13], nothing, hidden, parts)
    gelu_all(hidden.reshape(hidden.size), form, active.reshape(active.size), parts)
    affine(routine, active, w[14], w[15], after, out, parts)


@kernel()
def backward(
    routine: int, d_out: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, form: int, eps: float, kept: Any,
    keep: Any, d: Any, room: Any, d_after: Any, d_x: Any, parts: int,
) -> None:  # fmt: skip
    """Gradients of `forward`; with keep = 1 those of the weights are added to `d`, with keep = 0 only written."""
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    squares, vectors, into, into_bias, out_of, norms = d
    scores, active, d_hidden, d_heads, normed, d_normed = room
    shape, size, one, zero = x.shape, hidden.size, root / root, root - root
    # out = after + mlp(norm2(after))
    d_affine_inputs(routine, d_out, w[14], zero, d_hidden, parts)
    d_gelu_all(d_hidden.reshape(size), hidden.reshape(size), form, active.reshape(size), parts)
    d_affine_weights(routine, d_out, active, keep, out_of, vectors[4], parts)
    d_affine_inputs(routine, d_hidden, w[12], zero, d_normed, parts)
    norm(after, w[10], w[11], eps, normed, stats2, parts)
    d_affine_weights(routine, d_hidden, normed, keep, into, into_bias, parts)
    d_norm(d_normed, after, stats2, w[10], d_out, keep, d_after, norms[1])
    # after = x + attention(norm1(x)): queries, keys and values are of the same tokens
    few = len(query)
    d_mixed, d_query, d_key, d_value = d_heads[0][:few], d_heads[1][:few], d_heads[2][:few], d_heads[3][:few]
    d_affine_inputs(routine, d_after, w[8], zero, d_mixed.reshape(shape), parts)
    d_affine_weights(routine, d_after, mixed.reshape(shape), keep, squares[3], vectors[3], parts)
    d_mix(routine, d_mixed, query, key, value, mask, heads, root, scores, head_stats, d_query, d_key, d_value)
    norm(x, w[0], w[1], eps, normed, stats1, parts)
    d_affine_inputs(routine, d_query.reshape(shape), w[2], zero, d_normed, parts)
    d_affine_weights(routine, d_query.reshape(shape), normed, keep, squares[0], vectors[0], parts)
    d_affine_inputs(routine, d_key.reshape(shape), w[4], one, d_normed, parts)
    d_affine_weights(routine, d_key.reshape(shape), normed, keep, squares[1], vectors[1], parts)
    d_affine_inputs(routine, d_value.reshape(shape), w[6], one, d_normed, parts)
    d_affine_weights(routine, d_value.reshape(shape), normed, keep, squares[2], vectors[2], parts)
    d_norm(d_normed, x, stats1, w[0], d_after, keep, d_x, norms[0])


@kernel()
def _some(kept: Any, a: int, b: int) -> Any:
    """What is kept of the sequences from `a` to `b`."""
    stats1, query, key, value, head_stats, mixed, after, stats2, hidden = kept
    rows, heads = query.shape[1], len(head_stats) // len(query)
    top, bottom = a * rows, b * rows
    return (
        stats1[top:bottom], query[a:b], key[a:b], value[a:b], head_stats[a * heads : b * heads], mixed[a:b],
        after[top:bottom], stats2[top:bottom], hidden[top:bottom],
    )  # fmt: skip


@kernel()
def _forward_of(
    routine: int, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    scores: Any, normed: Any, active: Any, out: Any, begin: int, end: int,
) -> None:  # fmt: skip
    rows = kept[1].shape[1]
    few = len(normed) // rows
    for a in range(begin, end, few):
        b = min(a + few, end)
        top, bottom, some = a * rows, b * rows, (b - a) * rows
        forward(
            routine, x[top:bottom], w, mask[a * heads : b * heads], heads, root, eps, form, nothing, _some(kept, a, b),
            scores, normed[:some], active[:some], out[top:bottom], 1,
        )  # fmt: skip


@kernel(parallel=True)
def forward_by_sequence(
    routine: int, x: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    scores: Any, normed: Any, active: Any, out: Any,
) -> None:  # fmt: skip
    """`forward`, each thread its own sequences: as many at a time as its `normed` has room for."""
    teams, sequences = len(normed), len(kept[1])
    if teams == 1:
        _forward_of(routine, x, w, mask, heads, root, eps, form, nothing, kept, scores[0], normed[0], active[0], out,
                    0, sequences)  # fmt: skip
    else:
        for t in prange(teams):
            begin, end = sequences * t // teams, sequences * (t + 1) // teams
            _forward_of(routine, x, w, mask, heads, root, eps, form, nothing, kept, scores[t], normed[t], active[t],
                        out, begin, end)  # fmt: skip


@kernel()
def _backward_of(
    routine: int, d_out: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, form: int, eps: float, kept: Any,
    d: Any, room: Any, d_after: Any, d_x: Any, t: int, begin: int, end: int,
) -> None:  # fmt: skip
    squares, vectors, into, into_bias, out_of, norms = d
    scores, active, d_hidden, d_heads, normed, d_normed = room
    mine = squares[t], vectors[t], into[t], into_bias[t], out_of[t], norms[t]
    rows, keep = kept[1].shape[1], root - root
    few = normed.shape[1] // rows
    for a in range(begin, end, few):
        b = min(a + few, end)
        top, bottom, some = a * rows, b * rows, (b - a) * rows
        backward(
            routine, d_out[top:bottom], x[top:bottom], w, mask[a * heads : b * heads], heads, root, form, eps,
            _some(kept, a, b), keep, mine,
            (scores[t], active[t, :some], d_hidden[t, :some], d_heads[t], normed[t, :some], d_normed[t, :some]),
            d_after[top:bottom], d_x[top:bottom], 1,
        )  # fmt: skip
        keep = root / root


@kernel(parallel=True)
def backward_by_sequence(
    routine: int, d_out: Any, x: Any, w: Any, mask: Any, heads: int, root: Any, form: int, eps: float, kept: Any,
    d: Any, room: Any, d_after: Any, d_x: Any,
) -> None:  # fmt: skip
    """`backward`, each thread its own sequences, of which it must have one at least; d[...][0] is the sum of all."""
    teams, sequences = len(d[0]), len(kept[1])
    if teams == 1:
        _backward_of(routine, d_out, x, w, mask, heads, root, form, eps, kept, d, room, d_after, d_x, 0, 0, sequences)
    else:
        for t in prange(teams):
            begin, end = sequences * t // teams, sequences * (t + 1) // teams
            _backward_of(routine, d_out, x, w, mask, heads, root, form, eps, kept, d, room, d_after, d_x, t,
                         begin, end)  # fmt: skip
        squares, vectors, into, into_bias, out_of, norms = d
        for t in range(1, teams):
            squares[0] += squares[t]
            vectors[0] += vectors[t]
            into[0] += into[t]
            into_bias[0] += into_bias[t]
            out_of[0] += out_of[t]
            norms[0] += norms[t]
