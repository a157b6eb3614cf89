"""Kernels of attention between projections: each head of each sequence by itself, its scores never leave the cache.

The backward computes the scores again: it keeps two numbers a query instead of one a pair.
"""

from typing import Any

from numba import prange

from siglip_ref.fast.kernels.tiled import fits, some_in_tiles, sum_of
from siglip_ref.fast.machine.blas import NO, YES, gemm
from siglip_ref.fast.machine.compile import FIRST, INDEX, SUMS, ZERO, inner, kernel
from siglip_ref.fast.machine.elementary import exp_nonpositive, number
from siglip_ref.fast.machine.largest import bits_of, largest

# Rows are named by their number, heads by their address: `scores[i]` would be a new array for Numba, whose references
# are counted, and threads that count in the same place wait for one another.


@inner()
def _lower(scores: Any, t: int, i: int, top: Any) -> None:
    for j in range(scores.shape[3]):
        scores[t, 0, i, j] -= top


@inner()
def _exponentiate(tables: Any, t: int) -> None:
    """exp of a whole table at once: rows may be shorter than what a vector loop needs to begin."""
    for j in range(tables.shape[2]):
        tables[t, 0, j] = exp_nonpositive(tables[t, 0, j])


@inner()
def _scale(scores: Any, t: int, i: int, factor: Any) -> None:
    for j in range(scores.shape[3]):
        scores[t, 0, i, j] *= factor


@inner(fastmath=SUMS)
def _dot(scores: Any, t: int, i: int) -> Any:
    total = number(0, scores[t, 0, 0, 0])
    for j in range(scores.shape[3]):
        total += scores[t, 0, i, j] * scores[t, 1, i, j]
    return total


@inner()
def _d_softmax(scores: Any, t: int, i: int, along: Any) -> None:
    for j in range(scores.shape[3]):
        scores[t, 1, i, j] = scores[t, 0, i, j] * (scores[t, 1, i, j] - along)


@inner()
def _hide(scores: Any, t: int, mask: Any, task: int) -> None:
    least = -number(1, scores[t, 0, 0, 0]) / number(0, scores[t, 0, 0, 0])
    for i in range(scores.shape[2]):
        for j in range(scores.shape[3]):
            if not mask[task, i, j]:
                scores[t, 0, i, j] = least


@inner()
def _head(x: Any, b: int, first: int) -> Any:
    """Where a head's features of the sequence `b` begin."""
    return x.ctypes.data + x.itemsize * (b * x.shape[1] * x.shape[2] + first)


@inner()
def _table(scores: Any, t: int, which: int) -> Any:
    """Where a thread's table of scores begins."""
    return scores.ctypes.data + scores.itemsize * (t * scores.shape[1] + which) * scores.shape[2] * scores.shape[3]


@inner()
def _scores(routine: int, query: Any, key: Any, root: Any, b: int, first: int, size: int, scores: Any, t: int) -> None:
    """scores = query @ key.T / root for the `size` features of a head that begin at `first`."""
    width, keys = query.shape[2], key.shape[1]
    gemm(routine, NO, YES, query.shape[1], keys, size, number(1, root) / root, _head(query, b, first), width,
         _head(key, b, first), width, number(0, root), _table(scores, t, 0), keys)  # fmt: skip


@inner()
def _forward(
    routine: int, query: Any, key: Any, value: Any, mask: Any, task: int, root: Any, b: int, first: int, size: int,
    scores: Any, tables: Any, bits: Any, t: int, mixed: Any, stats: Any,
) -> None:  # fmt: skip
    width, tokens, keys = query.shape[2], query.shape[1], key.shape[1]
    _scores(routine, query, key, root, b, first, size, scores, t)
    if len(mask) > 0:
        _hide(scores, t, mask, task)
    for i in range(tokens):
        top = largest(bits, t, i)  # NaN comes back with the sum
        _lower(scores, t, i, top)
        stats[task, i, 0] = top
    _exponentiate(tables, t)
    for i in range(tokens):
        share = number(1, root) / sum_of(scores, t, i)
        _scale(scores, t, i, share)
        stats[task, i, 1] = share
    # mixed = probability @ value
    gemm(routine, NO, NO, tokens, size, keys, number(1, root), _table(scores, t, 0), keys,
         _head(value, b, first), width, number(0, root), _head(mixed, b, first), width)  # fmt: skip


@inner()
def _backward(
    routine: int, d_mixed: Any, query: Any, key: Any, value: Any, mask: Any, task: int, stats: Any, root: Any, b: int,
    first: int, size: int, scores: Any, tables: Any, t: int, d_query: Any, d_key: Any, d_value: Any,
) -> None:  # fmt: skip
    width, tokens, keys = query.shape[2], query.shape[1], key.shape[1]
    one, zero, inverse = number(1, root), number(0, root), number(1, root) / root
    probability, d_scores = _table(scores, t, 0), _table(scores, t, 1)
    # probability, as in the forward
    _scores(routine, query, key, root, b, first, size, scores, t)
    if len(mask) > 0:
        _hide(scores, t, mask, task)
    for i in range(tokens):
        _lower(scores, t, i, stats[task, i, 0])
    _exponentiate(tables, t)
    for i in range(tokens):
        _scale(scores, t, i, stats[task, i, 1])
    # mixed = probability @ value
    gemm(routine, NO, YES, tokens, keys, size, one, _head(d_mixed, b, first), width,
         _head(value, b, first), width, zero, d_scores, keys)  # fmt: skip
    gemm(routine, YES, NO, keys, size, tokens, one, probability, keys, _head(d_mixed, b, first), width,
         zero, _head(d_value, b, first), width)  # fmt: skip
    # probability = softmax(scores)
    for i in range(tokens):
        _d_softmax(scores, t, i, _dot(scores, t, i))
    # scores = query @ key.T / root
    gemm(routine, NO, NO, tokens, size, keys, inverse, d_scores, keys, _head(key, b, first), width,
         zero, _head(d_query, b, first), width)  # fmt: skip
    gemm(routine, YES, NO, keys, size, tokens, inverse, d_scores, keys, _head(query, b, first), width,
         zero, _head(d_key, b, first), width)  # fmt: skip


@inner()
def _flat(scores: Any) -> Any:
    return scores.reshape(scores.shape[0], scores.shape[1], scores.shape[2] * scores.shape[3])


@inner(apart=True)
def _some(
    routine: int, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any, t: int, mixed: Any,
    stats: Any, begin: int, end: int,
) -> None:  # fmt: skip
    size, tables, bits = query.shape[2] // heads, _flat(scratch), bits_of(scratch)
    if fits(size, query.itemsize, query.shape[1]):
        some_in_tiles(query, key, value, mask, heads, root, mixed, stats, begin, end)
        return
    for task in range(begin, end):
        _forward(routine, query, key, value, mask, task, root, task // heads, task % heads * size, size, scratch,
                 tables, bits, t, mixed, stats)  # fmt: skip


@kernel(parallel=True)
def mix(
    routine: int, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any, mixed: Any,
    stats: Any,
) -> None:  # fmt: skip
    """mixed = softmax(query @ key.T / root) @ value in each head.

    Parameters
    ----------
    query, mixed : array, shape (B, N, C)
    key, value : array, shape (B, M, C)
    mask : array of bool, shape (B H, N, M), or (0, 0, 0): everything is seen
    scratch : array, shape (threads, at least 1, N, M)
    stats : array, shape (B H, N, 2), takes each query's largest score and 1 / sum, which the backward needs
    """
    tasks, parts = len(stats), len(scratch)
    if parts == 1:
        _some(routine, query, key, value, mask, heads, root, scratch, FIRST, mixed, stats, ZERO, tasks)
    else:
        for thread in prange(parts):
            begin, end = tasks * thread // parts, tasks * (thread + 1) // parts
            _some(routine, query, key, value, mask, heads, root, scratch, INDEX(thread), mixed, stats, begin, end)


@inner(apart=True)
def _d_some(
    routine: int, d_mixed: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any,
    t: int, stats: Any, d_query: Any, d_key: Any, d_value: Any, begin: int, end: int,
) -> None:  # fmt: skip
    size, tables = query.shape[2] // heads, _flat(scratch)
    for task in range(begin, end):
        _backward(routine, d_mixed, query, key, value, mask, task, stats, root, task // heads, task % heads * size,
                  size, scratch, tables, t, d_query, d_key, d_value)  # fmt: skip


@kernel(parallel=True)
def d_mix(
    routine: int, d_mixed: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any,
    stats: Any, d_query: Any, d_key: Any, d_value: Any,
) -> None:  # fmt: skip
    """Gradients of `mix`, of the shapes of query, key and value; scratch (threads, 2, N, M)."""
    tasks, parts = len(stats), len(scratch)
    if parts == 1:
        _d_some(routine, d_mixed, query, key, value, mask, heads, root, scratch, FIRST, stats, d_query, d_key, d_value,
                ZERO, tasks)  # fmt: skip
    else:
        for thread in prange(parts):
            begin, end = tasks * thread // parts, tasks * (thread + 1) // parts
            _d_some(routine, d_mixed, query, key, value, mask, heads, root, scratch, INDEX(thread), stats,
                    d_query, d_key, d_value, begin, end)  # fmt: skip
