"""Double-double: numbers of 106 bits, each the sum of two float64 numbers, with the same bits on every machine.

`siglip_ref.ops` runs on them unchanged. What they give, rounded once to float64, is the correctly rounded result unless
a value lies within 2^-40 of a unit from the middle between two float64 numbers; for the probes that ship, balls prove
that none does. Only +, -, *, / and sqrt of float64 decide, of which every machine has the same; exponentials start from
the machine's own, whose last bits the correction removes.

Source: Dekker 1971, "A floating-point technique for extending the available precision"; Ozaki et al. 2012, "Error-free
transformations of matrix multiplication by using fast routines of matrix multiplication", for products by BLAS.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from siglip_ref.ops.elementary import Array

_SPLIT = 2.0**27 + 1
_LN2 = (0.6931471805599453, 2.3190468138462996e-17)
_HALVINGS = 5  # exp(r) = exp(r / 32) ** 32
_TAYLOR, _IN_BOTH = 14, 7  # terms of exp(x) - 1 for |x| below 1/46; those after the seventh need float64 alone
_INVERSE_FACTORIALS = [
    (float(term), float(term - Fraction(float(term))))
    for term in (Fraction(1, math.factorial(n)) for n in range(1, _TAYLOR + 1))
]
_TERM_BY_TERM = 2**13  # products, at most
_BITS = 110  # of a factor that a product uses, below the largest number of its row or column


class DoubleDouble(NDArrayOperatorsMixin):
    """An array of numbers high + low, |low| at most half a unit of high. Make one with `double_double`."""

    dtype = np.dtype(object)  # not a NumPy number: the specification leaves its scalars as they are

    def __init__(self, high: Array, low: Array) -> None:
        self.high, self.low = np.asarray(high, np.float64), np.asarray(low, np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.high.shape

    @property
    def ndim(self) -> int:
        return self.high.ndim

    @property
    def size(self) -> int:
        return self.high.size

    @property
    def T(self) -> "DoubleDouble":  # noqa: N802  # NumPy's name
        return DoubleDouble(self.high.T, self.low.T)

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, key: Any) -> "DoubleDouble":
        return DoubleDouble(self.high[key], self.low[key])

    def __float__(self) -> float:
        return float(self.high)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        """The nearest float64 numbers."""
        return self.high.astype(dtype or np.float64)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> "DoubleDouble":
        """Over one axis, or all."""
        moved = self if axis is None else DoubleDouble(np.moveaxis(self.high, axis, 0), np.moveaxis(self.low, axis, 0))
        flat = DoubleDouble(moved.high.ravel(), moved.low.ravel()) if axis is None else moved
        while len(flat) > 1:  # halves are added until one number is left
            half = len(flat) // 2
            pairs = _add(flat[:half], flat[half : 2 * half])
            flat = _joined([pairs, flat[2 * half :]], 0)
        out = flat[0]
        if not keepdims:
            return out
        places = tuple(range(self.ndim)) if axis is None else axis
        return DoubleDouble(np.expand_dims(out.high, places), np.expand_dims(out.low, places))

    def max(self, axis: int, keepdims: bool = False) -> "DoubleDouble":
        """Of all whose high parts are the largest, the first: what a softmax is shifted by, for which any will do."""
        place = np.expand_dims(self.high.argmax(axis), axis)
        out = DoubleDouble(*(np.take_along_axis(part, place, axis) for part in (self.high, self.low)))
        return out if keepdims else DoubleDouble(out.high.squeeze(axis), out.low.squeeze(axis))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or ufunc.__name__ not in _OPERATIONS:
            return NotImplemented
        with np.errstate(all="ignore"):
            return _OPERATIONS[ufunc.__name__](*(double_double(x) for x in inputs))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.where:
            condition, x, y = args[0], double_double(args[1]), double_double(args[2])
            return DoubleDouble(np.where(condition, x.high, y.high), np.where(condition, x.low, y.low))
        if func is np.concatenate:
            return _joined([double_double(x) for x in args[0]], *args[1:], **kwargs)
        if func in (np.full_like, np.zeros_like, np.broadcast_to):
            first, rest = double_double(args[0]), list(args[1:])
            low = () if func is not np.full_like else (0.0, *rest[1:])
            return DoubleDouble(func(first.high, *rest, **kwargs), func(first.low, *(low or rest), **kwargs))
        return NotImplemented


def double_double(x: Any) -> DoubleDouble:
    """From numbers of at most 53 bits, exactly.

    >>> third = double_double(1.0) / 3
    >>> float(third * 3 - 1), float(third.low)
    (0.0, 1.850371707708594e-17)
    """
    if isinstance(x, DoubleDouble):
        return x
    high = np.asarray(x, np.float64)
    return DoubleDouble(high, np.zeros_like(high))


def _joined(parts: Sequence[DoubleDouble], axis: int = 0) -> DoubleDouble:
    return DoubleDouble(*(np.concatenate([getattr(p, name) for p in parts], axis) for name in ("high", "low")))


# --- sums, products, quotients and roots: the errors of float64's own, found exactly


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    product = a * b
    a_high, b_high = _upper_half(a), _upper_half(b)
    a_low, b_low = a - a_high, b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _upper_half(a: Array) -> Array:
    scaled = _SPLIT * a
    return scaled - (scaled - a)


def _normal(high: Array, low: Array) -> DoubleDouble:
    total = high + low
    return DoubleDouble(total, low - (total - high))


def _add(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    high, error = _two_sum(a.high, b.high)
    low, rest = _two_sum(a.low, b.low)
    sum_of_high = _normal(high, error + low)
    return _normal(sum_of_high.high, sum_of_high.low + rest)


def _add_number(a: DoubleDouble, b: Array | float) -> DoubleDouble:
    """The same where b is of 53 bits: half of the work, and most sums of a product are such."""
    high, error = _two_sum(a.high, b)
    return _normal(high, error + a.low)


def _negative(a: DoubleDouble) -> DoubleDouble:
    return DoubleDouble(-a.high, -a.low)


def _subtract(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    return _add(a, _negative(b))


def _multiply(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    high, error = _two_product(a.high, b.high)
    return _normal(high, error + (a.high * b.low + a.low * b.high))


def _divide(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    first = a.high / b.high
    rest = _subtract(a, _multiply(b, double_double(first)))
    second = rest.high / b.high
    rest = _subtract(rest, _multiply(b, double_double(second)))
    quotient = _normal(first, second)
    return _add_number(quotient, rest.high / b.high)


def _sqrt(a: DoubleDouble) -> DoubleDouble:
    root = np.sqrt(a.high)
    rest = _subtract(a, DoubleDouble(*_two_product(root, root)))
    return _normal(root, np.where(root > 0, rest.high / np.where(root > 0, 2 * root, 1), 0.0))


def _matmul(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """Term by term where there are few. Else factors are cut into slices of so few bits that float64 holds every sum of
    their products, and any BLAS is exact; what lies 2^-110 below the largest number of its row is then lost."""
    if x.size * y.shape[1] <= _TERM_BY_TERM:
        terms = _multiply(x[:, :, None], y[None])  # (n, k, m)
        return terms.sum(1)
    inner = x.shape[-1]
    bits = (53 - max(inner - 1, 1).bit_length()) // 2
    count = -(-_BITS // bits)
    (rows, left), (columns, right) = _slices(x, -1, bits, count), _slices(y, 0, bits, count)
    total = double_double(np.zeros(()))
    for order in range(len(left) + len(right) - 2, -1, -1):  # the smallest first
        for place in range(max(0, order - len(right) + 1), min(order + 1, len(left))):
            if order < count:
                total = _add_number(total, left[place] @ right[order - place])
    power = rows + columns
    return DoubleDouble(np.ldexp(total.high, power), np.ldexp(total.low, power))


def _slices(x: DoubleDouble, axis: int, bits: int, count: int) -> tuple[Array, list[Array]]:
    """Exponents, and matrices of whole multiples of a power of two that add up to x / 2 ** exponent."""
    exponent = np.frexp(np.abs(x.high).max(axis, keepdims=True))[1]
    rest = DoubleDouble(np.ldexp(x.high, -exponent), np.ldexp(x.low, -exponent))
    found = []
    for place in range(1, count + 1):
        unit = 2.0 ** (-bits * place)
        found.append(np.rint(rest.high / unit) * unit)
        rest = _normal(rest.high - found[-1], rest.low)  # the difference is exact
        if not rest.high.any():
            break
    return exponent, found


# --- exponentials and logarithms


def _expm1_small(x: DoubleDouble) -> DoubleDouble:
    """exp(x) - 1 for |x| below 1/46, by Taylor's series."""
    tail = np.zeros_like(x.high)
    for high, _ in reversed(_INVERSE_FACTORIALS[_IN_BOTH:]):
        tail = tail * x.high + high
    series = double_double(tail)
    for both in reversed(_INVERSE_FACTORIALS[:_IN_BOTH]):
        series = _add(_multiply(series, x), DoubleDouble(*both))
    return _multiply(series, x)


def _expm1(x: DoubleDouble) -> DoubleDouble:
    """exp(x) - 1 for |x| at most log 2, to full relative precision."""
    part = 2.0**-_HALVINGS
    power = _expm1_small(DoubleDouble(x.high * part, x.low * part))
    for _ in range(_HALVINGS):  # (1 + p)^2 - 1
        power = _multiply(power, _add_number(power, 2.0))
    return power


def _exp(x: DoubleDouble) -> DoubleDouble:
    twos = np.rint(np.clip(x.high, -2000.0, 2000.0) / _LN2[0])
    rest = _subtract(x, _multiply(double_double(twos), DoubleDouble(*map(np.array, _LN2))))
    out = _add_number(_expm1(rest), 1.0)
    return DoubleDouble(np.ldexp(out.high, twos.astype(int)), np.ldexp(out.low, twos.astype(int)))


def _log1p(u: DoubleDouble) -> DoubleDouble:
    """For u from 0 to 1. One step of Newton's method from float64's own: its error is squared."""
    start = double_double(np.log1p(u.high))
    grown = _expm1(start)
    return _add(start, _divide(_subtract(u, grown), _add_number(grown, 1.0)))


def _log(a: DoubleDouble) -> DoubleDouble:
    start = double_double(np.log(a.high))
    return _add(start, _add_number(_multiply(a, _exp(_negative(start))), -1.0))


def _larger(a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    first = _subtract(a, b).high > 0
    return DoubleDouble(np.where(first, a.high, b.high), np.where(first, a.low, b.low))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "subtract": _subtract,
    "negative": _negative,
    "multiply": _multiply,
    "divide": _divide,
    "sqrt": _sqrt,
    "matmul": _matmul,
    "exp": _exp,
    "log": _log,
    "log1p": _log1p,
    "maximum": _larger,
    "greater": lambda a, b: _subtract(a, b).high > 0,
    "greater_equal": lambda a, b: _subtract(a, b).high >= 0,
    "less": lambda a, b: _subtract(a, b).high < 0,
    "less_equal": lambda a, b: _subtract(a, b).high <= 0,
}
