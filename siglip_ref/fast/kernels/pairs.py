"""Kernels of the pairwise loss: tiles of the pairs' matrix, value and all gradients in one sweep."""

from typing import Any

import numpy as np
from numba import prange

from siglip_ref.fast.machine.blas import NO, YES, gemm
from siglip_ref.fast.machine.compile import SUMS, ZERO, inner, kernel
from siglip_ref.fast.machine.elementary import number, softplus_and_sigmoid
from siglip_ref.fast.machine.product import PACKED, add_product, pack

LOSS, D_SCALE, D_BIAS, LOST = (
    0,
    1,
    2,
    3,
)  # where each stands among the sums; LOST further on, what rounding took from it


@inner()
def _add(sums: Any, which: int, term: Any) -> None:
    """Knuth's two-sum: hundreds of thousands of rows add up without drift."""
    before = sums[which]
    after = before + term
    taken = after - before
    sums[which] = after
    sums[which + LOST] += (before - (after - taken)) + (term - taken)


@inner(fastmath=SUMS)
def strangers(row: Any, scale: Any, bias: Any, sums: Any) -> None:
    """Pairs that do not belong together: each similarity of the row becomes the derivative by its logit."""
    loss = d_scale = d_bias = number(0, scale)
    for j in range(len(row)):
        similarity = row[j]
        term, d_logit = _pair(similarity, scale, bias)
        loss += term
        d_scale += d_logit * similarity
        d_bias += d_logit
        row[j] = d_logit
    _add(sums, LOSS, loss)
    _add(sums, D_SCALE, d_scale)
    _add(sums, D_BIAS, d_bias)


@inner()
def _pair(similarity: Any, scale: Any, bias: Any) -> Any:
    return softplus_and_sigmoid(scale * similarity + bias)


@inner()
def couple(row: Any, j: int, scale: Any, bias: Any, sums: Any) -> None:
    """The same for one pair that belongs together: its loss is softplus(-logit)."""
    similarity = row[j]
    term, gate = softplus_and_sigmoid(-(scale * similarity + bias))
    _add(sums, LOSS, term)
    _add(sums, D_SCALE, -gate * similarity)
    _add(sums, D_BIAS, -gate)
    row[j] = -gate


@inner()
def _row(row: Any, first: int, own: Any, scale: Any, bias: Any, sums: Any) -> None:
    """One row of a tile whose columns begin at `first`; `own` lists the columns that belong to this row, rising."""
    start = 0
    for column in own:
        j = column - first
        if 0 <= j < len(row):
            strangers(row[start:j], scale, bias, sums)
            couple(row, j, scale, bias, sums)
            start = j + 1
    strangers(row[start:], scale, bias, sums)


@inner(apart=True)
def _multiply(
    routine: int, wide: bool, a_turned: int, b_turned: int, a: Any, b: Any, out: Any, rows: int, depth: int,
    columns: int, one: Any, beta: Any,
) -> None:  # fmt: skip
    """out = a @ b + beta out, either transposed on the way: by our own product for wide embeddings, else by BLAS.

    b_turned : PACKED, too, where `b` holds strips
    """
    size = out.itemsize
    if not wide:
        gemm(routine, a_turned, b_turned, rows, columns, depth, one, a.ctypes.data, a.shape[1], b.ctypes.data,
             b.shape[1], beta, out.ctypes.data, out.shape[1])  # fmt: skip
    else:
        for i in range(rows if beta == 0 else 0):
            for j in range(columns):
                out[i, j] = 0
        add_product(a_turned, b_turned, a.ctypes.data, a.shape[1] * size, b.ctypes.data, b.shape[1] * size,
                    out.ctypes.data, out.shape[1] * size, rows, depth, columns, one, out)  # fmt: skip


@inner(apart=True)
def _band(
    routine: int, x: Any, y: Any, first: int, offsets: Any, own: Any, scale: Any, bias: Any,
    d_x: Any, d_y: Any, tile: Any, strips: Any, sums: Any,
) -> None:  # fmt: skip
    """All tiles of some rows with some columns, which begin at `first`; d_x and d_y collect their gradients."""
    one, zero, side, width = number(1, scale), number(0, scale), tile.shape[0], x.shape[1]
    wide = strips.size > 0
    for j in range(0, len(y), side):
        columns, some = min(side, len(y) - j), y[j:]
        turned, straight, texts, again = YES, NO, some, some
        if wide:  # both products with y read strips, which are put in order once for all rows
            turned, straight, texts, again = PACKED, PACKED, strips[0], strips[1]
            step = width * x.itemsize
            pack(YES, some.ctypes.data, step, width, columns, texts, one)
            pack(NO, some.ctypes.data, step, columns, width, again, one)
        for i in range(0, len(x), side):
            rows = min(side, len(x) - i)
            # similarity = x @ y.T
            _multiply(routine, wide, NO, turned, x[i:], texts, tile, rows, width, columns, one, zero)
            for r in range(rows):
                mine = own[offsets[i + r] : offsets[i + r + 1]]
                _row(tile[r, :columns], first + j, mine, scale, bias, sums)
            # d_x += d_logits @ y, and d_y += d_logits.T @ x: what stands before them is multiplied in the end
            _multiply(routine, wide, NO, straight, tile, again, d_x[i:], rows, columns, width, one, one)
            _multiply(routine, wide, YES, NO, tile, x[i:], d_y[j:], columns, rows, width, one, one)


@kernel(parallel=True)
def sweep(
    routine: int, x: Any, y: Any, offsets: Any, own: Any, scale: Any, bias: Any, d_x: Any, d_y: Any,
    tiles: Any, strips: Any,
) -> Any:  # fmt: skip
    """Each thread's sums over its pairs (threads, 8), in float64; d_x and d_y collect what they are but for a factor.

    The ring inside one machine: every thread keeps its band of rows, and column chunks go round. In each turn no two
    threads hold the same chunk, so each gradient exists once, and nobody waits for a lock.

    Parameters
    ----------
    routine : address of sgemm or dgemm
    x, y : array, shape (Bi, D) and (Bt, D), rows one after another in memory
    offsets, own : columns that belong to row i are own[offsets[i] : offsets[i + 1]], rising
    scale, bias : logits = scale * similarity + bias
    tiles, strips : arrays, shape (threads, side, side) and (threads, 2, ...), the latter empty where BLAS multiplies:
        the only memory that is needed
    """
    threads = len(tiles)
    sums = np.zeros((threads, 8))  # a cache line each
    if threads == 1:
        _band(routine, x, y, ZERO, offsets, own, scale, bias, d_x, d_y, tiles[0], strips[0],
              sums[0])  # fmt: skip
        return sums
    for turn in range(threads):
        for thread in prange(threads):
            chunk = (thread + turn) % threads
            top, bottom = len(x) * thread // threads, len(x) * (thread + 1) // threads
            left, right = len(y) * chunk // threads, len(y) * (chunk + 1) // threads
            _band(
                routine, x[top:bottom], y[left:right], left, offsets[top : bottom + 1], own, scale, bias,
                d_x[top:bottom], d_y[left:right], tiles[thread], strips[thread], sums[thread],
            )  # fmt: skip
    return sums
