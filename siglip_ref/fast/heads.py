"""Kernels of attention between projections: each head of each sequence by itself, its scores never leave the cache.

The backward computes the scores again: it keeps two numbers a query instead of one a pair.
"""

from typing import Any

from numba import prange

from siglip_ref.fast.blas import NO, YES, gemm
from siglip_ref.fast.compile import SUMS, kernel
from siglip_ref.fast.dot import dot
from siglip_ref.fast.elementary import exp_nonpositive, largest, number


@kernel(fastmath=SUMS)
def _weigh(row: Any, top: Any) -> Any:
    """exp(row - top) in place, and its sum."""
    total = number(0, top)
    for j in range(len(row)):
        row[j] = _weight(row[j], top)
        total += row[j]
    return total


@kernel()
def _weight(score: Any, top: Any) -> Any:
    return exp_nonpositive(score - top)


@kernel()
def _scale(row: Any, factor: Any) -> None:
    for j in range(len(row)):
        row[j] *= factor


@kernel()
def _d_softmax(probability: Any, d_probability: Any, along: Any) -> None:
    for j in range(len(probability)):
        d_probability[j] = probability[j] * (d_probability[j] - along)


@kernel()
def _scores(routine: int, query: Any, key: Any, root: Any, first: int, size: int, scores: Any) -> None:
    """scores = query @ key.T / root for the `size` features of a head that begin at `first`."""
    width = query.shape[1]
    gemm(routine, NO, YES, len(query), len(key), size, number(1, root) / root, query[:, first:].ctypes.data, width,
         key[:, first:].ctypes.data, width, number(0, root), scores.ctypes.data, len(key))  # fmt: skip


@kernel()
def _forward(
    routine: int, query: Any, key: Any, value: Any, mask: Any, task: int, root: Any, first: int, size: int,
    scores: Any, mixed: Any, stats: Any,
) -> None:  # fmt: skip
    width, tokens, keys = query.shape[1], len(query), len(key)
    _scores(routine, query, key, root, first, size, scores)
    for i in range(tokens):
        row = scores[i]
        if len(mask) > 0:
            for j in range(keys):
                if not mask[task, i, j]:
                    row[j] = -number(1, root) / number(0, root)
        stats[i, 0] = largest(row)  # NaN comes back with the sum
        stats[i, 1] = number(1, root) / _weigh(row, stats[i, 0])
        _scale(row, stats[i, 1])
    # mixed = probability @ value
    gemm(routine, NO, NO, tokens, size, keys, number(1, root), scores.ctypes.data, keys,
         value[:, first:].ctypes.data, width, number(0, root), mixed[:, first:].ctypes.data, width)  # fmt: skip


@kernel()
def _backward(
    routine: int, d_mixed: Any, query: Any, key: Any, value: Any, mask: Any, task: int, stats: Any, root: Any,
    first: int, size: int, scores: Any, d_scores: Any, d_query: Any, d_key: Any, d_value: Any,
) -> None:  # fmt: skip
    width, tokens, keys = query.shape[1], len(query), len(key)
    one, zero, inverse = number(1, root), number(0, root), number(1, root) / root
    # probability, as in the forward
    _scores(routine, query, key, root, first, size, scores)
    for i in range(tokens):
        row = scores[i]
        if len(mask) > 0:
            for j in range(keys):
                if not mask[task, i, j]:
                    row[j] = -one / zero
        _weigh(row, stats[i, 0])
        _scale(row, stats[i, 1])
    # mixed = probability @ value
    gemm(routine, NO, YES, tokens, keys, size, one, d_mixed[:, first:].ctypes.data, width,
         value[:, first:].ctypes.data, width, zero, d_scores.ctypes.data, keys)  # fmt: skip
    gemm(routine, YES, NO, keys, size, tokens, one, scores.ctypes.data, keys, d_mixed[:, first:].ctypes.data, width,
         zero, d_value[:, first:].ctypes.data, width)  # fmt: skip
    # probability = softmax(scores)
    for i in range(tokens):
        _d_softmax(scores[i], d_scores[i], dot(scores[i], d_scores[i]))
    # scores = query @ key.T / root
    gemm(routine, NO, NO, tokens, size, keys, inverse, d_scores.ctypes.data, keys, key[:, first:].ctypes.data, width,
         zero, d_query[:, first:].ctypes.data, width)  # fmt: skip
    gemm(routine, YES, NO, keys, size, tokens, inverse, d_scores.ctypes.data, keys,
         query[:, first:].ctypes.data, width, zero, d_key[:, first:].ctypes.data, width)  # fmt: skip


@kernel()
def _some(
    routine: int, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any, mixed: Any,
    stats: Any, begin: int, end: int,
) -> None:  # fmt: skip
    size = query.shape[2] // heads
    for task in range(begin, end):
        b, h = task // heads, task % heads
        _forward(
            routine, query[b], key[b], value[b], mask, task, root, h * size, size, scratch[0], mixed[b], stats[task]
        )


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
        _some(routine, query, key, value, mask, heads, root, scratch[0], mixed, stats, 0, tasks)
    else:
        for thread in prange(parts):
            begin, end = tasks * thread // parts, tasks * (thread + 1) // parts
            _some(routine, query, key, value, mask, heads, root, scratch[thread], mixed, stats, begin, end)


@kernel()
def _d_some(
    routine: int, d_mixed: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any,
    stats: Any, d_query: Any, d_key: Any, d_value: Any, begin: int, end: int,
) -> None:  # fmt: skip
    size = query.shape[2] // heads
    for task in range(begin, end):
        b, h = task // heads, task % heads
        _backward(
            routine, d_mixed[b], query[b], key[b], value[b], mask, task, stats[task], root, h * size, size,
            scratch[0], scratch[1], d_query[b], d_key[b], d_value[b],
        )  # fmt: skip


@kernel(parallel=True)
def d_mix(
    routine: int, d_mixed: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, scratch: Any,
    stats: Any, d_query: Any, d_key: Any, d_value: Any,
) -> None:  # fmt: skip
    """Gradients of `mix`, of the shapes of query, key and value; scratch (threads, 2, N, M)."""
    tasks, parts = len(stats), len(scratch)
    if parts == 1:
        _d_some(routine, d_mixed, query, key, value, mask, heads, root, scratch[0], stats, d_query, d_key, d_value,
                0, tasks)  # fmt: skip
    else:
        for thread in prange(parts):
            begin, end = tasks * thread // parts, tasks * (thread + 1) // parts
            _d_some(routine, d_mixed, query, key, value, mask, heads, root, scratch[thread], stats,
                    d_query, d_key, d_value, begin, end)  # fmt: skip
