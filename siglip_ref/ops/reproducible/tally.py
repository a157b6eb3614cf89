"""Sums of floating-point numbers whose bits do not depend on the order of the terms.

Adding floating-point numbers rounds, and so the order shows. Here every term is cut into digits of 40 bits, at places
that are the same for all numbers: whole numbers, whose sums are exact. A row keeps its few highest digits; a larger
term makes it move up, and then the lowest digits are dropped. What is kept in the end was kept from the beginning, so
neither order nor grouping can be seen in it (the idea of ReproBLAS: Demmel and Nguyen, 2015, with integers for floats).

A tally is an array of int64, shape (rows, digits, 1 + width): [:, :, 1:] are the digits' sums, highest first, and
[:, 0, 0] is the row's `top`: every number that went into the row is below 2^(40 top). So a tally can be sent.
"""

import numpy as np

from siglip_ref.ops.elementary import Array

BITS = 40
DIGITS = {"f": 2, "d": 3}  # by precision: what is dropped is below 2^-40, or 2^-80, of the row's largest term

# A digit of one term is below 2^40, so the digits of 2^22 terms add up to less than 2^62: int64 cannot wrap around.
MOST_TERMS = 1 << 22

# Tops of float64's numbers go from -26 (the smallest denormal) to 26. Moving up to NOT_FINITE drops every digit.
NOTHING, NOT_FINITE = -27, 30


def tally(rows: int, width: int, kind: np.dtype[np.generic]) -> Array:
    """A tally of nothing yet, for numbers of float32 or float64."""
    sums = np.zeros((rows, DIGITS[kind.char], 1 + width), np.int64)
    sums[:, 0, 0] = NOTHING
    return sums


def put(sums: Array, terms: Array) -> None:
    """Add terms (rows, width) to a tally.

    A row that has met NaN or infinity counts what it met: in its first digit +inf, in its second -inf, NaN in both.
    """
    terms = terms.astype(np.float64)
    _move_up(sums, _top(np.abs(terms).max(1, initial=0)))
    lost = sums[:, 0, 0] == NOT_FINITE
    # Both factors are powers of two, and so all of this is exact (but for bits far below the last digit).
    half = np.ldexp(1.0, -BITS // 2 * (sums[:, 0, 0] - 1))[:, None]
    rest = np.where(lost[:, None], 0, terms) * half * half
    for digit in range(sums.shape[1]):
        whole = np.trunc(rest)
        sums[:, digit, 1:] += whole.astype(np.int64)
        rest = (rest - whole) * 2.0**BITS
    if lost.any():
        for digit, value in enumerate((np.inf, -np.inf)):
            sums[lost, digit, 1:] += (terms[lost] == value) | np.isnan(terms[lost])


def merge(one: Array, other: Array, out: Array | None = None) -> Array:
    """The tally of all terms of two tallies; `out`, if given, is `one`."""
    sums, other = (one.copy() if out is None else one), other.copy()
    tops = np.maximum(one[:, 0, 0], other[:, 0, 0])
    _move_up(sums, tops)
    _move_up(other, tops)
    sums += other
    sums[:, 0, 0] = tops
    return sums


def total(sums: Array, kind: np.dtype[np.generic]) -> Array:
    """The sums as numbers, (rows, width).

    A row that has met NaN or infinity has them where they belong, as adding would have it, and NaN in place of its
    finite sums, whose digits it no longer has.
    """
    result = np.empty((len(sums), sums.shape[2] - 1), kind)
    for start in range(0, len(sums), 256):  # in pieces, for the sake of memory
        rows = slice(start, start + 256)
        digits = [sums[rows, digit, 1:].copy() for digit in range(sums.shape[1])]
        plus, minus = digits[0] > 0, digits[1] > 0
        for lower, upper in zip(digits[:0:-1], digits[-2::-1], strict=True):
            upper += lower >> BITS  # what a lower digit has too much; exact, so that nothing cancels below
            lower &= (1 << BITS) - 1
        value = digits[-1].astype(np.float64)
        for digit in digits[-2::-1]:
            value = digit + value * 2.0**-BITS
        tops = sums[rows, 0, :1]
        strange = np.where(plus == minus, np.nan, np.where(plus, np.inf, -np.inf))
        with np.errstate(over="ignore", under="ignore"):  # a sum beyond the precision's numbers becomes infinity
            result[rows] = np.where(tops == NOT_FINITE, strange, np.ldexp(value, BITS * (tops - 1)))
    return result


def _top(largest: Array) -> Array:
    """The smallest top above numbers of this size."""
    tops = -(-np.frexp(largest)[1] // BITS)
    return np.where(np.isfinite(largest), np.where(largest == 0, NOTHING, tops), NOT_FINITE)


def _move_up(sums: Array, tops: Array) -> None:
    """Give each row at least this top."""
    steps = tops - sums[:, 0, 0]
    for row in np.flatnonzero(steps > 0):
        digits, step = sums[row, :, 1:], min(int(steps[row]), sums.shape[1])
        digits[step:] = digits[: len(digits) - step].copy()
        digits[:step] = 0
        sums[row, 0, 0] = tops[row]
