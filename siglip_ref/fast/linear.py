"""Linear layers at the matrix product's own speed: each thread multiplies its part, BLAS adds to what lies there."""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.machine.blas import NO, SMALL, YES, gemm, gemm_address
from siglip_ref.fast.machine.compile import COUNT, SUMS, ZERO, inner, kernel
from siglip_ref.fast.machine.elementary import number
from siglip_ref.fast.machine.fit import NOTHING, as_rows, as_stored, empty, gradient_of, linear_fits, same_precision
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.fast.machine.product import LEAST, PACKED, add_product
from siglip_ref.fast.machine.tile import STRIP, VECTOR
from siglip_ref.ops.elementary import Array

NONE_TURNED = (NO,) * 16  # of a block; a MAP head has two weights fewer
ALIGN = 16  # parts begin at multiples of a vector's length
BOTH = (
    256  # rows from which threads share them out even where columns are more, if weights are packed and need no order
)
FEWEST = 128  # narrow layers go through BLAS in SMALL pieces, but of so many rows at least: up to twice as fast


@inner()
def part(size: int, index: int, parts: int) -> Any:
    """Where part `index` of `parts` begins and ends."""
    step = ((size + parts - 1) // parts + ALIGN - 1) // ALIGN * ALIGN
    return min(size, step * index), min(size, step * (index + 1))


@inner()
def _address(x: Any, row: int, column: int) -> Any:
    """Where a number lies. Not by way of x[row:], whose references Numba counts, and threads would wait to count."""
    return x.ctypes.data + x.itemsize * (row * x.shape[1] + column)


@inner()
def at_once(rows: int, width: int, columns: int) -> Any:
    """How many rows to give to BLAS at once, of a product with this many numbers in each row of both matrices."""
    few = SMALL // (width * columns)
    return few if FEWEST <= few < rows else rows


@inner()
def _begin(bias: Any, add: Any, out: Any, top: int, bottom: int, left: int, right: int) -> None:
    """out = bias (+ add) there. Columns are unsigned: an index that might be below zero stays scalar."""
    for i in range(top, bottom):
        if len(add) > 0:
            for j in range(np.uintp(left), np.uintp(right)):
                out[i, j] = add[i, j] + bias[j]
        else:
            for j in range(np.uintp(left), np.uintp(right)):
                out[i, j] = bias[j]


@inner()
def strip_of(x: Any, least: int) -> Any:
    """Columns of a strip of our own product, for numbers like those of x; 0 for a layer that is left to BLAS."""
    return STRIP * VECTOR // x.itemsize if least > LEAST else 0


@inner()
def share(rows: int, columns: int, side: int, thread: int, parts: int, enough: int) -> Any:
    """One thread's rows of a result, or where it has more columns, its columns, in whole strips of so many.

    enough : rows from which they are shared out even where columns are more
    """
    if rows >= min(columns, enough):
        top, bottom = part(rows, thread, parts)
        return top, bottom, 0, columns
    if side == 0:
        left, right = part(columns, thread, parts)
        return 0, rows, left, right
    strips = (columns + side - 1) // side
    return 0, rows, min(columns, strips * thread // parts * side), min(columns, strips * (thread + 1) // parts * side)


@inner(apart=True)
def affine_part(
    routine: int, turned: int, x: Any, weights: Any, bias: Any, add: Any, out: Any, thread: int, parts: int
) -> Any:  # fmt: skip
    """One thread's part of out = x @ weights + bias (+ add, unless it is empty); returns its rows and columns.

    turned : YES if `weights` holds the transposed matrix (F, C), as Torch stores it; NO for (C, F); PACKED for strips
    """
    one, rows, columns = number(1, out[0, 0]), x.shape[0], out.shape[1]
    side = strip_of(x, min(x.shape[1], columns))
    top, bottom, left, right = share(rows, columns, side, thread, parts, BOTH if turned == PACKED else columns)
    if top == bottom or left == right:
        return top, top, left, left
    _begin(bias, add, out, top, bottom, left, right)
    first = _address(weights, left, 0) if turned == YES else _address(weights, 0, left)
    if side:
        size = x.itemsize
        if turned == PACKED:
            first = _address(weights, left // side * x.shape[1], 0)
        add_product(NO, turned, _address(x, top, 0), x.shape[1] * size, first, weights.shape[1] * size,
                    _address(out, top, left), columns * size, bottom - top, x.shape[1], right - left, one,
                    out)  # fmt: skip
        return top, bottom, left, right
    few = at_once(bottom - top, x.shape[1], right - left)
    for a in range(top, bottom, few):
        gemm(routine, NO, turned, min(few, bottom - a), right - left, x.shape[1], one, _address(x, a, 0), x.shape[1],
             first, weights.shape[1], one, _address(out, a, left), columns)  # fmt: skip
    return top, bottom, left, right


@kernel(parallel=True)
def affine(routine: int, turned: int, x: Any, weights: Any, bias: Any, add: Any, out: Any, parts: int) -> None:
    """out = x @ weights + bias + add: x (R, C), weights (C, F) or turned, add (R, F) or (0, 0)."""
    if parts == 1:
        affine_part(routine, turned, x, weights, bias, add, out, ZERO, parts)
    else:
        for thread in prange(parts):
            affine_part(routine, turned, x, weights, bias, add, out, COUNT(thread), parts)


@inner()
def _clear(out: Any, top: int, bottom: int, left: int, right: int) -> None:
    for i in range(top, bottom):
        for j in range(np.uintp(left), np.uintp(right)):
            out[i, j] = 0


@inner(fastmath=SUMS)
def _add_rows(rows: Any, left: int, right: int, total: Any) -> None:
    for i in range(len(rows)):
        for j in range(np.uintp(left), np.uintp(right)):
            total[j] += rows[i, j]


@inner(apart=True)
def d_weights_part(
    routine: int, d_out: Any, x: Any, keep: Any, d_weights: Any, d_bias: Any, thread: int, parts: int
) -> None:  # fmt: skip
    """One thread's part of the gradients by weights and bias."""
    one, zero = number(1, keep), number(0, keep)
    rows, width, columns = x.shape[0], x.shape[1], d_out.shape[1]
    # d_bias = d_out.sum(0)
    left, right = part(columns, thread, parts)
    if keep == zero:
        d_bias[left:right] = zero
    _add_rows(d_out, left, right, d_bias)
    # d_weights = x.T @ d_out
    side = strip_of(x, min(width, columns))
    top, bottom, left, right = share(width, columns, side, thread, parts, columns)
    if top == bottom or left == right:
        return
    if side:
        size = x.itemsize
        if keep == zero:
            _clear(d_weights, top, bottom, left, right)
        add_product(YES, NO, _address(x, 0, top), width * size, _address(d_out, 0, left), columns * size,
                    _address(d_weights, top, left), columns * size, bottom - top, rows, right - left, one,
                    d_weights)  # fmt: skip
        return
    few = at_once(rows, bottom - top, right - left)
    for a in range(0, rows, few):
        gemm(routine, YES, NO, bottom - top, right - left, min(few, rows - a), one, _address(x, a, top), width,
             _address(d_out, a, left), columns, keep, _address(d_weights, top, left),
             columns)  # fmt: skip
        keep = one


@inner(apart=True)
def _d_inputs_part(
    routine: int, turned: int, d_out: Any, weights: Any, keep: Any, d_x: Any, thread: int, parts: int
) -> None:  # fmt: skip
    one, rows, width, columns = number(1, keep), d_x.shape[0], d_x.shape[1], d_out.shape[1]
    # d_x = keep * d_x + d_out @ weights.T
    side = strip_of(d_x, min(width, columns))
    top, bottom, left, right = share(rows, width, side, thread, parts, width)
    if top == bottom or left == right:
        return
    first = _address(weights, 0, left) if turned == YES else _address(weights, left, 0)
    other = NO if turned == YES else YES
    if side:
        size = d_x.itemsize
        if keep == number(0, keep):
            _clear(d_x, top, bottom, left, right)
        add_product(NO, other, _address(d_out, top, 0), columns * size, first, weights.shape[1] * size,
                    _address(d_x, top, left), width * size, bottom - top, columns, right - left, one,
                    d_x)  # fmt: skip
        return
    few = at_once(bottom - top, columns, right - left)
    for a in range(top, bottom, few):
        gemm(routine, NO, other, min(few, bottom - a), right - left, columns, one, _address(d_out, a, 0), columns,
             first, weights.shape[1], keep, _address(d_x, a, left), width)  # fmt: skip


@kernel(parallel=True)
def d_affine_weights(routine: int, d_out: Any, x: Any, keep: Any, d_weights: Any, d_bias: Any, parts: int) -> None:
    """Gradients of `affine` by weights and bias; with keep = 1 they are added to, with keep = 0 only written."""
    if parts == 1:
        d_weights_part(routine, d_out, x, keep, d_weights, d_bias, ZERO, parts)
    else:
        for thread in prange(parts):
            d_weights_part(routine, d_out, x, keep, d_weights, d_bias, COUNT(thread), parts)


@kernel(parallel=True)
def d_affine_inputs(routine: int, turned: int, d_out: Any, weights: Any, keep: Any, d_x: Any, parts: int) -> None:
    """Gradient of `affine` by x; with keep = 1 d_x is added to, with keep = 0 only written."""
    if parts == 1:
        _d_inputs_part(routine, turned, d_out, weights, keep, d_x, ZERO, parts)
    else:
        for thread in prange(parts):
            _d_inputs_part(routine, turned, d_out, weights, keep, d_x, COUNT(thread), parts)


class LinearCache(NamedTuple):
    """What the backward needs."""

    x: Array
    kernel: Array


def linear_forward(x: Array, kernel: Array, bias: Array, add: Array | None = None) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.linear_forward`; `add`, if given, is added to the result."""
    if not same_precision(x, kernel, bias) or not linear_fits(x.shape[-1], kernel, bias):
        return specification.linear_forward(x, kernel, bias)
    rows = as_rows(x)
    (turned, _), (stored, bias) = as_stored((kernel, bias), (len(rows), 1))
    out = empty((*x.shape[:-1], kernel.shape[1]), x)
    plus = NOTHING[x.dtype] if add is None else as_rows(add)
    with parts_for(rows.size * kernel.shape[1]) as parts:
        affine(gemm_address(x.dtype), turned, rows, stored, bias, plus, as_rows(out), parts)
    return out, LinearCache(x, kernel)


def linear_backward(d_out: Array, cache: Any, into: Array | None = None) -> tuple[Array, Array, Array]:
    """Twin of `siglip_ref.ops.linear_backward`; d_x is added to `into`, if given."""
    if not isinstance(cache, LinearCache):
        return specification.linear_backward(d_out, cache)
    d_out = gradient_of(d_out, (*cache.x.shape[:-1], cache.kernel.shape[1]), cache.x)
    return inputs_backward(d_out, cache.x, cache.kernel, into), *weights_backward(d_out, cache.x)


def inputs_backward(d_out: Array, x: Array, kernel: Array, into: Array | None = None) -> Array:
    """d_x = d_out @ kernel.T, added to `into`, if given."""
    d_x = empty(x.shape, x) if into is None else into
    (turned,), (stored,) = as_stored((kernel,), (x.size // x.shape[-1],))
    keep = x.dtype.type(into is not None)
    with parts_for(x.size * kernel.shape[1]) as parts:
        d_affine_inputs(gemm_address(x.dtype), turned, as_rows(d_out), stored, keep, as_rows(d_x), parts)
    return d_x


def weights_backward(d_out: Array, x: Array) -> tuple[Array, Array]:
    """d_kernel = x.T @ d_out and d_bias = d_out.sum(0)."""
    d_kernel, d_bias = empty((x.shape[-1], d_out.shape[-1]), x), empty(d_out.shape[-1:], x)
    with parts_for(x.size * d_out.shape[-1]) as parts:
        d_affine_weights(gemm_address(x.dtype), as_rows(d_out), as_rows(x), x.dtype.type(0), d_kernel, d_bias, parts)
    return d_kernel, d_bias
