"""The forward of attention between projections in tiles of our own, for heads of whole strips: a few queries at a time.

    mixed[i] = sum_j exp(score[i, j] - top[i]) value[j] / sum_j exp(score[i, j] - top[i])

BLAS brings both matrices of each of a head's two small products into its own order, and all scores go to the second
cache and back between them. Here keys and values are put in order once a head, and the scores of FEW queries stay in
the first cache until they are used.
"""

from typing import Any

import numpy as np

from siglip_ref.fast.machine.compile import FIRST, SUMS, inner
from siglip_ref.fast.machine.elementary import exp_nonpositive, number
from siglip_ref.fast.machine.largest import bits_of, largest
from siglip_ref.fast.machine.tile import NARROW, ROWS, VECTOR, copy, narrow_tile, turn

FEW = 3 * ROWS  # queries whose scores stay in the first cache


@inner()
def fits(size: int, itemsize: int, queries: int) -> Any:
    """Whether a head of so many features is whole strips, and its queries are tiles."""
    return size * itemsize % (NARROW * VECTOR) == 0 and queries >= ROWS


@inner()
def _turn_keys(key: Any, b: int, first: int, size: int, strips: int, one: Any) -> None:
    """Strips of the transposed keys, each `size` deep; what is missing of the last one stays zero."""
    item, step = key.itemsize, key.shape[2] * key.itemsize
    lanes = VECTOR // item
    keys = key.shape[1]
    start = key.ctypes.data + (b * keys * key.shape[2] + first) * item
    for j in range(0, keys, lanes):
        place = strips + (j // (NARROW * lanes) * size * NARROW + j // lanes % NARROW) * VECTOR
        if j + lanes <= keys:
            for k in range(0, size, lanes):
                turn(start + j * step + k * item, step, place + k * NARROW * VECTOR, NARROW * VECTOR, one)
        else:
            for row in range(j, keys):
                for k in range(size):
                    copy(start + row * step + k * item, place + k * NARROW * VECTOR + (row - j) * item, item)


@inner()
def _lay_values(value: Any, b: int, first: int, size: int, strips: int) -> None:
    """Strips of the values, each as deep as there are keys."""
    item, keys, bytes_ = value.itemsize, value.shape[1], NARROW * VECTOR
    start = value.ctypes.data + (b * keys * value.shape[2] + first) * item
    for j in range(size * item // bytes_):
        for k in range(keys):
            copy(start + k * value.shape[2] * item + j * bytes_, strips + (j * keys + k) * bytes_, bytes_)


@inner()
def _lay_queries(query: Any, b: int, i: int, first: int, factor: Any, rows: Any, many: int) -> None:
    for row in range(many):
        for k in range(rows.shape[1]):
            rows[row, k] = query[b, i + row, np.uintp(first + k)] * factor


@inner(fastmath=SUMS)
def sum_of(scores: Any, t: int, i: int) -> Any:
    """The sum of a row of a thread's table."""
    total = number(0, scores[t, 0, 0, 0])
    for j in range(scores.shape[3]):
        total += scores[t, 0, i, j]
    return total


@inner()
def _weigh(scores: Any, i: int, top: Any) -> None:
    for j in range(scores.shape[3]):
        scores[0, 0, i, j] = exp_nonpositive(scores[0, 0, i, j] - top)


@inner()
def _hide(scores: Any, mask: Any, task: int, i: int, many: int, keys: int) -> None:
    """What is masked, and what a strip has beyond the last key."""
    least = -number(1, scores[0, 0, 0, 0]) / number(0, scores[0, 0, 0, 0])
    for row in range(many):
        for j in range(keys, scores.shape[3]):
            scores[0, 0, row, j] = least
        if len(mask) > 0:
            for j in range(keys):
                if not mask[task, i + row, j]:
                    scores[0, 0, row, j] = least


@inner()
def _write(summed: Any, i: int, share: Any, mixed: Any, b: int, row: int, first: int) -> None:
    for k in range(summed.shape[1]):
        mixed[b, row, np.uintp(first + k)] = summed[i, k] * share


@inner(apart=True)
def some_in_tiles(
    query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, mixed: Any, stats: Any, begin: int, end: int
) -> None:
    """The heads from `begin` to `end`, numbered through all sequences."""
    keys, size, item = key.shape[1], query.shape[2] // heads, query.itemsize
    side = NARROW * VECTOR // item
    wide = (keys + side - 1) // side * side
    rows, summed = np.zeros((FEW, size), query.dtype), np.zeros((FEW, size), query.dtype)
    scores = np.zeros((1, 1, FEW, wide), query.dtype)
    turned, laid = np.zeros((wide, size), query.dtype), np.zeros((keys, size), query.dtype)
    _some(query, key, value, mask, heads, root, mixed, stats, begin, end, side, rows, summed, scores, turned, laid)


@inner()
def _some(
    query: Any, key: Any, value: Any, mask: Any, heads: int, root: Any, mixed: Any, stats: Any, begin: int, end: int,
    side: int, rows: Any, summed: Any, scores: Any, turned: Any, laid: Any,
) -> None:  # fmt: skip
    """The same with room, which is the caller's: see `product._add_product`."""
    tokens, keys, size, wide, item = query.shape[1], key.shape[1], rows.shape[1], scores.shape[3], query.itemsize
    one, bits = number(1, root), bits_of(scores)
    of_rows, of_scores, of_sums = rows.ctypes.data, scores.ctypes.data, summed.ctypes.data
    for task in range(begin, end):
        b, first = task // heads, task % heads * size
        _turn_keys(key, b, first, size, turned.ctypes.data, one)
        _lay_values(value, b, first, size, laid.ctypes.data)
        for i in range(0, tokens, FEW):
            many = min(FEW, tokens - i)
            _lay_queries(query, b, i, first, one / root, rows, many)
            # scores = query @ key.T / root
            for j in range(0, wide, side):
                strip = turned.ctypes.data + j * size * item
                for row in range(0, many, ROWS):
                    narrow_tile(of_rows + row * size * item, size * item, strip, size,
                                of_scores + (row * wide + j) * item, wide * item, one)  # fmt: skip
            _hide(scores, mask, task, i, many, keys)
            for row in range(many):
                top = largest(bits, FIRST, row)  # NaN comes back with the sum
                _weigh(scores, row, top)
                stats[task, i + row, 0], stats[task, i + row, 1] = top, one / sum_of(scores, FIRST, row)
            # mixed = probability @ value
            for j in range(0, size, side):
                strip = laid.ctypes.data + j * keys * item
                for row in range(0, many, ROWS):
                    narrow_tile(of_scores + row * wide * item, wide * item, strip, keys,
                                of_sums + (row * size + j) * item, size * item, one)  # fmt: skip
            for row in range(many):
                _write(summed, row, stats[task, i + row, 1], mixed, b, i + row, first)
