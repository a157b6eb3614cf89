"""The deterministic loss on kernels: granules of pairs, each on one thread, and the tallies that they go into."""

import math
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload

from siglip_ref.fast.kernels.pairs import D_SCALE, LOST, couple, strangers
from siglip_ref.fast.machine.blas import NO, YES, gemm, gemm_address
from siglip_ref.fast.machine.compile import inner, kernel
from siglip_ref.fast.machine.elementary import number
from siglip_ref.fast.machine.fit import rows_in_memory
from siglip_ref.fast.machine.pool import threads
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.reproducible.blocks import GRANULE
from siglip_ref.ops.reproducible.tally import BITS, NOT_FINITE, NOTHING

NEXT, REST = 2.0**BITS, (1 << BITS) - 1


def meet(
    image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, first: int | None,
    d_image: Array, d_text: Array, sums: Array,
) -> None:  # fmt: skip
    """Twin of `siglip_ref.ops.reproducible.blocks.meet`. Threads keep their images, and chunks of texts go round."""
    if len(image_embed) == 0 or len(text_embed) == 0:
        return
    x, y = (np.require(rows_in_memory(z), requirements="W") for z in (image_embed, text_embed))
    kind: type[Any] = x.dtype.type
    with np.errstate(over="ignore"):  # an overflow shows in the results
        scale = kind(np.exp(log_scale))
    with threads() as most:
        parts = min(most, -(-len(x) // GRANULE))
        _meet(
            gemm_address(x.dtype), x, y, scale, kind(bias), first is not None, first or 0, d_image, d_text, sums,
            np.empty((parts, GRANULE, GRANULE), kind), np.empty((parts, GRANULE, x.shape[1]), kind),
        )  # fmt: skip


@kernel(parallel=True)
def _meet(
    routine: int, x: Any, y: Any, scale: Any, bias: Any, own: bool, first: int, d_x: Any, d_y: Any, sums: Any,
    tiles: Any, products: Any,
) -> None:  # fmt: skip
    """One thread goes the same way as many: another could be compiled to other bits."""
    parts, rows, columns = len(tiles), -(-len(x) // GRANULE), -(-len(y) // GRANULE)
    for turn in range(parts):
        for part in prange(parts):
            chunk = (part + turn) % parts
            for i in range(rows * part // parts, rows * (part + 1) // parts):
                top, bottom = i * GRANULE, min(len(x), (i + 1) * GRANULE)
                for j in range(columns * chunk // parts, columns * (chunk + 1) // parts):
                    left, right = j * GRANULE, min(len(y), (j + 1) * GRANULE)
                    _granule(
                        routine, x[top:bottom], y[left:right], scale, bias, own, first + top - left,
                        d_x[top:bottom], d_y[left:right], sums[3 * i : 3 * i + 3], tiles[part], products[part],
                    )  # fmt: skip


@inner()
def _granule(
    routine: int, x: Any, y: Any, scale: Any, bias: Any, own: bool, first: int, d_x: Any, d_y: Any, sums: Any,
    tile: Any, product: Any,
) -> None:  # fmt: skip
    zero, one, width = number(0, scale), number(1, scale), x.shape[1]
    # similarity = x @ y.T
    gemm(routine, NO, YES, len(x), len(y), width, one, x.ctypes.data, width, y.ctypes.data, width,
         zero, tile.ctypes.data, GRANULE)  # fmt: skip
    found = np.zeros(2 * LOST)
    for r in range(len(x)):
        row, j = tile[r, : len(y)], first + r
        if own and 0 <= j < len(y):
            strangers(row[:j], scale, bias, found)
            couple(row, j, scale, bias, found)
            strangers(row[j + 1 :], scale, bias, found)
        else:
            strangers(row, scale, bias, found)
    for k in range(LOST):
        lost = found[LOST + k]
        found[k] = (found[k] + (lost if math.isfinite(lost) else 0.0)) * (scale if k == D_SCALE else one)
        put(sums[k], found[k : k + 1])
    # d_x = scale d_logits @ y, d_y = scale d_logits.T @ x
    gemm(routine, NO, NO, len(x), width, len(y), one, tile.ctypes.data, GRANULE, y.ctypes.data, width,
         zero, product.ctypes.data, width)  # fmt: skip
    for r in range(len(x)):
        _scale_and_put(d_x[r], product[r], scale)
    gemm(routine, YES, NO, len(y), width, len(x), one, tile.ctypes.data, GRANULE, x.ctypes.data, width,
         zero, product.ctypes.data, width)  # fmt: skip
    for r in range(len(y)):
        _scale_and_put(d_y[r], product[r], scale)


@inner()
def _scale_and_put(sums: Any, terms: Any, scale: Any) -> None:
    for j in range(len(terms)):
        terms[j] *= scale
    put(sums, terms)


@kernel()
def put(sums: Any, terms: Any) -> None:
    """Twin of `siglip_ref.ops.reproducible.tally.put` for one row: sums (digits, 1 + width), terms (width,)."""
    size = largest(terms)
    top = NOTHING if size == 0 else -(-math.frexp(size)[1] // BITS)
    _move_up(sums, top if size < math.inf else NOT_FINITE)
    top = sums[0, 0]
    if top == NOT_FINITE:
        for j in range(len(terms)):
            sums[0, 1 + j] += terms[j] == math.inf or math.isnan(terms[j])
            sums[1, 1 + j] += terms[j] == -math.inf or math.isnan(terms[j])
        return
    half = math.ldexp(1.0, -(BITS // 2) * (top - 1))
    high, low = sums[0, 1:], sums[1, 1:]
    if len(sums) == 2:
        for j in range(len(terms)):
            rest = np.float64(terms[j]) * half * half
            whole = np.int64(rest)
            high[j] += whole
            low[j] += np.int64((rest - np.float64(whole)) * NEXT)
    else:
        lowest = sums[2, 1:]
        for j in range(len(terms)):
            rest = np.float64(terms[j]) * half * half
            whole = np.int64(rest)
            high[j] += whole
            rest = (rest - np.float64(whole)) * NEXT
            whole = np.int64(rest)
            low[j] += whole
            lowest[j] += np.int64((rest - np.float64(whole)) * NEXT)


def largest(terms: Any) -> Any:
    """The largest size among the terms, inside kernels; not below infinity where one is infinity or NaN.

    Without their sign, floating-point numbers are in the order of their bits; whole numbers become vector instructions.
    """
    raise NotImplementedError("only inside kernels")


@overload(largest)
def _largest(terms: Any) -> Any:
    def single(terms: Any) -> Any:
        bits, most = terms.view(np.int32), np.int32(0)
        for j in range(len(bits)):
            most = max(most, bits[j] & np.int32(0x7FFFFFFF))
        return np.float64(np.int32(most).view(np.float32))

    def double(terms: Any) -> Any:
        bits, most = terms.view(np.int64), np.int64(0)
        for j in range(len(bits)):
            most = max(most, bits[j] & np.int64(0x7FFFFFFFFFFFFFFF))
        return np.int64(most).view(np.float64)

    return single if terms.dtype == types.float32 else double


def total(sums: Array, kind: np.dtype[Any]) -> Array:
    """Twin of `siglip_ref.ops.reproducible.tally.total`."""
    result = np.empty((len(sums), sums.shape[2] - 1), kind)
    with threads():
        _total(sums, result)
    return result


@kernel(parallel=True)
def _total(sums: Any, result: Any) -> None:
    for row in prange(len(sums)):
        _total_of_row(sums[row], result[row])


@inner()
def _total_of_row(sums: Any, result: Any) -> None:
    top = sums[0, 0]
    if top == NOT_FINITE:
        for j in range(len(result)):
            plus, minus = sums[0, 1 + j] > 0, sums[1, 1 + j] > 0
            result[j] = math.nan if plus == minus else (math.inf if plus else -math.inf)
        return
    # Two powers of two, for one may be beyond the numbers; only the second product can round.
    power = BITS * (top - 1)
    near, far = math.ldexp(1.0, power // 2), math.ldexp(1.0, power - power // 2)
    for j in range(len(result)):
        upper, lower = sums[0, 1 + j], sums[1, 1 + j]
        value = 0.0
        if len(sums) == 3:
            lowest = sums[2, 1 + j]
            lower += lowest >> BITS
            value = np.float64(lowest & REST) / NEXT
        upper += lower >> BITS
        value = np.float64(upper) + (np.float64(lower & REST) + value) / NEXT
        result[j] = value * near * far


@inner()
def _move_up(sums: Any, top: int) -> None:
    step = top - sums[0, 0]
    if step > 0:
        for digit in range(len(sums) - 1, -1, -1):
            for j in range(1, sums.shape[1]):
                sums[digit, j] = sums[digit - step, j] if digit >= step else 0
        sums[0, 0] = top
