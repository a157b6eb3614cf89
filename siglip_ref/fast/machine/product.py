"""A matrix product of our own for wide layers: out += x @ weights, with the weights read where and how they are stored.

    out[i, j] += sum_k x[i, k] weights[k, j]

BLAS copies both matrices into an order of its own at each call, which few rows do not pay for: 256 of an image, 64 of
a text. Here only a strip of the weights is put in order, `DEPTH` deep and three vectors wide, used for all rows, and
overwritten by the next; or all strips once for all, where a model is kept in memory (`pack`). A strip's product with
`ROWS` rows is kept in registers: a tile of ROWS x 3 vectors, to which one fused multiply-add a number and k is added.
Each number is summed in the order of k whatever its neighbours are, so the result has the same bits for any number of
threads and of rows, and for weights that are packed.

Source of the order of loops: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34,
2008.
"""

from typing import Any

import numpy as np

from siglip_ref.fast.machine.blas import YES
from siglip_ref.fast.machine.compile import inner, kernel
from siglip_ref.fast.machine.tile import DEPTH, LINE, ROWS, STEPS, STRIP, VECTOR, copy, line, one_number, tile, turn

PACKED = ord("P")  # beside YES and NO: strips that `pack` made
MANY = 256  # rows that meet a strip before the next one is put in order; they stay in the second cache, too
LEAST = 64  # layers as narrow as this are left to BLAS


@inner()
def _order(turned: int, weights: int, step: int, depth: int, columns: int, strip: int, size: int, one: Any) -> None:
    """A strip of the weights, (depth, columns) or turned, in order; what is missing of three vectors stays as it is."""
    lanes = VECTOR // size
    whole = depth // lanes * lanes if turned == YES else depth
    if columns == STRIP * lanes:
        if turned == YES:
            for part in range(STRIP):
                for k in range(0, whole, lanes):
                    turn(
                        weights + part * lanes * step + k * size,
                        step,
                        strip + (k * STRIP + part) * VECTOR,
                        STRIP * VECTOR,
                        one,
                    )
        else:
            for k in range(depth):
                line(weights + k * step, strip + k * STRIP * VECTOR, one)
    else:
        whole = 0
    for k in range(whole, depth):
        for j in range(columns):
            source = weights + (j * step + k * size if turned == YES else k * step + j * size)
            one_number(source, strip + k * STRIP * VECTOR + j * size, one)


@inner()
def _lay(x: int, step: int, rows: int, depth: int, kept: int, size: int, one: Any) -> None:
    """Rows of the transpose of x (depth, rows), DEPTH apart."""
    lanes = VECTOR // size
    square = depth // lanes * lanes
    for i in range(0, rows, lanes):
        high = min(lanes, rows - i)
        if high == lanes:
            for k in range(0, square, lanes):
                turn(x + k * step + i * size, step, kept + (i * DEPTH + k) * size, DEPTH * size, one)
        for row in range(i, i + high):
            for k in range(square if high == lanes else 0, depth):
                one_number(x + k * step + row * size, kept + (row * DEPTH + k) * size, one)


@inner()
def _rim(
    x: int, strip: int, depth: int, out: int, out_step: int, ahead: int, rows: int, columns: int, room: int, size: int,
    one: Any,
) -> None:  # fmt: skip
    """A tile of which out has only so many rows and columns, by way of room for a whole one."""
    for i in range(rows):
        for j in range(columns):
            one_number(out + i * out_step + j * size, room + i * STRIP * VECTOR + j * size, one)
    tile(x, strip, depth, room, STRIP * VECTOR, ahead, one)
    for i in range(rows):
        for j in range(columns):
            one_number(room + i * STRIP * VECTOR + j * size, out + i * out_step + j * size, one)


@kernel()
def pack(turned: int, weights: int, step: int, width: int, columns: int, strips: Any, one: Any) -> None:
    """All strips of the weights, one below the other, each three vectors wide: strips (strips * width, 3 vectors)."""
    size, side = strips.itemsize, strips.shape[1]
    for j in range(0, columns, side):
        first = weights + (j * step if turned == YES else j * size)
        at = strips.ctypes.data + j * width * size
        _order(turned, first, step, width, min(side, columns - j), at, size, one)


@inner(apart=True)
def add_product(
    x_turned: int, turned: int, x: int, x_step: int, weights: int, step: int, out: int, out_step: int, rows: int,
    width: int, columns: int, one: Any, like: Any,
) -> None:  # fmt: skip
    """out += x @ weights.

    Parameters
    ----------
    x_turned : YES where `x` holds the transposed matrix (width, rows); NO for (rows, width)
    turned : YES where `weights` holds the transposed matrix (columns, width); NO for (width, columns); PACKED for what
        `pack` made of either
    x, weights, out : addresses
    x_step, step, out_step : from one row to the next, in bytes
    one : 1 in the precision of all
    like : an array of that precision
    """
    side = STRIP * VECTOR // like.itemsize
    many = min(MANY, (rows + ROWS - 1) // ROWS * ROWS)
    room = np.zeros((many + side) * DEPTH + ROWS * side, like.dtype)
    _add_product(x_turned, turned, x, x_step, weights, step, out, out_step, rows, width, columns, one, many, side, room)


@inner()
def _add_product(
    x_turned: int, turned: int, x: int, x_step: int, weights: int, step: int, out: int, out_step: int, rows: int,
    width: int, columns: int, one: Any, many: int, side: int, room: Any,
) -> None:  # fmt: skip
    """The same with room. It is the caller's: Numba frees an array when its name is used for the last time, and an
    address is no use of it."""
    size, kept = room.itemsize, room.ctypes.data
    strip = kept + many * DEPTH * size
    rim = strip + side * DEPTH * size
    for top in range(0, rows, many):
        bottom = min(rows, top + many)
        for k in range(0, width, DEPTH):
            depth = min(DEPTH, width - k)
            if x_turned == YES:
                _lay(x + k * x_step + top * size, x_step, bottom - top, depth, kept, size, one)
            else:
                for i in range(top, bottom):
                    copy(x + i * x_step + k * size, kept + (i - top) * DEPTH * size, depth * size)
            for j in range(0, columns, side):
                across = min(side, columns - j)
                at = following = strip
                if turned == PACKED:
                    at = weights + (j // side * width + k) * side * size
                    following = at + width * side * size if j + side < columns else weights + (k + depth) * side * size
                else:
                    first = weights + (j * step + k * size if turned == YES else k * step + j * size)
                    _order(turned, first, step, depth, across, strip, size, one)
                for i in range(top, bottom, ROWS):
                    high = min(ROWS, bottom - i)
                    some, of_out = kept + (i - top) * DEPTH * size, out + i * out_step + j * size
                    ahead = following + min((i - top) // ROWS * (depth // STEPS * LINE), depth * side * size)
                    if high == ROWS and across == side:
                        tile(some, at, depth, of_out, out_step, ahead, one)
                    else:
                        _rim(some, at, depth, of_out, out_step, ahead, high, across, rim, size, one)
