"""Numbers of lower precision, rounded as frameworks round them: to nearest, or stochastically.

Each operation is computed in float64 and its result rounded to the format of the array, so `siglip_ref.ops` shows what
rounding a correct program meets. An array carries its `Rounding`: the format, what goes into and comes out of products,
and the variant of all that correct programs may do differently: order of summation, fused multiply-add. Sums and
products of every format accumulate in float32, as Torch, JAX, BLAS and tensor cores do.

Rounding twice, first to float64, changes nothing for sums, products, quotients and roots: 53 >= 2 * 24 + 2 bits
(Figueroa 1995). Stochastic rounding goes up with the probability of the distance, so errors are random and centred.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from siglip_ref.ops.elementary import Array

Order = Literal["sequential", "reversed", "pairwise"]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format. bits: of the significand; lowest: exponent of the smallest normal number."""

    name: str
    bits: int
    lowest: int
    largest: float

    @property
    def unit(self) -> float:
        """Unit roundoff: the largest relative error of one rounding to nearest."""
        return 2.0**-self.bits

    @property
    def flushed(self) -> float:
        """What a program may set to zero: XLA and fast kernels flush numbers below the normal range, not float16's."""
        return 2.0**self.lowest if self.lowest < -100 else 0.0


FORMATS = {
    "float64": Format("float64", 53, -1022, 1.7976931348623157e308),
    "float32": Format("float32", 24, -126, 3.4028234663852886e38),
    "tf32": Format("tf32", 11, -126, 3.4011621342146535e38),
    "bfloat16": Format("bfloat16", 8, -126, 3.3895313892515355e38),
    "float16": Format("float16", 11, -14, 65504.0),
}
ACCUMULATOR = FORMATS["float32"]
_EXPONENT = np.int64(0x7FF0000000000000)  # the bits of a float64 that hold its exponent
_HUGE = 2.0**1000  # far beyond every format, and finite
ELEMENTARY = {"exp", "log", "log1p", "tanh", "erf"}
STEP_BY_STEP = 4096  # multiplications of a product that is emulated term by term; larger ones are left to BLAS


@dataclass(frozen=True)
class Rounding:
    """How an array rounds.

    format : of results
    product_in, product_out : what factors of a product are rounded to first, and the format of the product; None: as
        they come
    order : of summation; fma : a product and its addition are rounded once
    library : unit roundoffs of the accumulator by which elementary functions err, all to one side
    random : for stochastic rounding; None: to nearest, ties to even
    """

    format: Format
    product_in: Format | None = None
    product_out: Format | None = None
    order: Order = "pairwise"
    fma: bool = True
    library: float = 0.0
    random: np.random.Generator | None = None


class Rounded(np.ndarray[Any, Any]):
    """float64 numbers that are all in the format of `rounding`. Make one with `rounded`."""

    rounding: Rounding

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, Rounded):
            self.rounding = source.rounding

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        rounding = _joint(inputs)
        plain = [_plain(x) for x in inputs]
        if method == "at":
            _add_at(inputs[0], inputs[1], plain[2], rounding)
            return None
        if method == "reduce":
            axis = inputs[1] if len(inputs) > 1 else options.get("axis", 0)
            keep = bool(options.get("keepdims"))
            if ufunc is np.maximum:
                return _wrap(plain[0].max(axis, keepdims=keep), rounding)
            return rounded(_sum_over(plain[0], axis, keep, rounding), rounding) if ufunc is np.add else NotImplemented
        if method != "__call__":
            return NotImplemented
        if ufunc is np.matmul:
            return _product(plain[0], plain[1], rounding)
        out = ufunc(*plain)
        if rounding.library and ufunc.__name__ in ELEMENTARY:
            out = out * (1 + rounding.library * ACCUMULATOR.unit)
        return out if np.asarray(out).dtype == bool else rounded(out, rounding)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        out = func(*_plain(args), **_plain(kwargs))
        return _wrap(out, _joint(args)) if isinstance(out, np.ndarray) and out.dtype == float else out


def rounded(x: Any, rounding: Rounding) -> Rounded:
    """x rounded once, in an array that goes on rounding.

    Examples
    --------
    >>> third = rounded(1 / 3, Rounding(FORMATS["bfloat16"]))
    >>> float(third), float(third + 1)
    (0.333984375, 1.3359375)
    """
    return _wrap(round_to(_plain(x), rounding.format, rounding.random), rounding)


def cast(x: Any, form: Format) -> Any:
    """A rounded array in another format; anything else as it is."""
    return rounded(x, replace(x.rounding, format=form)) if isinstance(x, Rounded) else x


def round_to(x: Array, form: Format, random: np.random.Generator | None = None) -> Array:
    """The nearest numbers of a format, ties to even; or, with `random`, one of the two neighbours by chance.

    Beyond the largest number lies infinity; below the smallest normal one, the spacing stays.
    """
    x = np.asarray(x, np.float64)
    if form.bits == 53:
        return x
    with np.errstate(all="ignore"):
        if random is None and form is ACCUMULATOR:
            return x.astype(np.float32).astype(np.float64)
        below = (x.view(np.int64) & _EXPONENT).view(np.float64)  # the power of two below |x|; infinity for what is none
        step = np.minimum(np.maximum(below, 2.0**form.lowest), _HUGE) * 2.0 ** (1 - form.bits)
        steps = x / step
        steps = np.rint(steps) if random is None else np.floor(steps + random.random(x.shape))
        out = steps * step
        beyond = np.abs(out) > form.largest
        return np.where(beyond, np.copysign(np.inf, out), out) if beyond.any() else np.asarray(out)


def _product(x: Array, y: Array, rounding: Rounding) -> Rounded:
    """x @ y: factors rounded to product_in, terms added in the accumulator, the result rounded to product_out."""
    if rounding.product_in:
        x, y = (round_to(factor, rounding.product_in) for factor in (x, y))
    out = replace(rounding, format=rounding.product_out or rounding.format)
    if x.shape[-2] * x.shape[-1] * y.shape[-1] > STEP_BY_STEP:
        return rounded(_blas(x, y, rounding), out)
    x, y = x[..., :, None, :], np.swapaxes(y, -1, -2)[..., None, :, :]  # (..., n, 1, k) and (..., 1, m, k)
    if rounding.order == "pairwise" and not rounding.fma:
        return rounded(_sum(round_to(x * y, ACCUMULATOR, rounding.random), rounding), out)
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape)[:-1])
    for k in range(x.shape[-1])[:: -1 if rounding.order == "reversed" else 1]:
        term = x[..., k] * y[..., k]
        if not rounding.fma:
            term = round_to(term, ACCUMULATOR, rounding.random)
        total = round_to(total + term, ACCUMULATOR, rounding.random)
    return rounded(total, out)


def _blas(x: Array, y: Array, rounding: Rounding) -> Array:
    """x @ y in float32 by the machine's own BLAS; stochastic: with the terms in a random order."""
    order = np.arange(x.shape[-1])[:: -1 if rounding.order == "reversed" else 1]
    order = rounding.random.permutation(order) if rounding.random else order
    return np.matmul(x[..., order].astype(np.float32), y[..., order, :].astype(np.float32)).astype(np.float64)


def _sum_over(x: Array, axis: Any, keepdims: bool, rounding: Rounding) -> Array:
    axes = tuple(range(x.ndim)) if axis is None else tuple(a % x.ndim for a in np.atleast_1d(axis))
    rest = x.ndim - len(axes)
    last = np.moveaxis(x, axes, range(rest, x.ndim))
    total = _sum(last.reshape(*last.shape[:rest], math.prod(last.shape[rest:])), rounding)
    return np.expand_dims(total, axes) if keepdims else total


def _sum(x: Array, rounding: Rounding) -> Array:
    """Over the last axis, in the accumulator."""
    if rounding.order != "pairwise" and rounding.random is None and x.shape[-1]:  # NumPy's running sum is sequential
        x = x[..., ::-1] if rounding.order == "reversed" else x
        return np.add.accumulate(x.astype(np.float32), -1)[..., -1].astype(np.float64)
    while x.shape[-1] > 1:  # halves are added until one number is left
        half = x.shape[-1] // 2
        pairs = round_to(x[..., :half] + x[..., half : 2 * half], ACCUMULATOR, rounding.random)
        x = np.concatenate([pairs, x[..., 2 * half :]], -1)
    return x.sum(-1)


def _add_at(target: Any, places: Array, terms: Array, rounding: Rounding) -> None:
    """np.add.at, one term after the other, each sum rounded; together where no place comes twice: it is the same."""
    flat, plain = np.asarray(places).ravel(), target.view(np.ndarray)
    terms = terms.reshape(flat.size, *plain.shape[1:])
    if len(set(flat.tolist())) == flat.size:
        plain[flat] = round_to(plain[flat] + terms, rounding.format, rounding.random)
        return
    for place, term in zip(flat, terms, strict=True):
        plain[place] = round_to(plain[place] + term, rounding.format, rounding.random)


def _joint(inputs: Any) -> Rounding:
    """The rounding of a result: the widest format that meets; as in Torch, a 0-d array only counts among its like."""
    found = [x for x in _flat(inputs) if isinstance(x, Rounded)]
    return max(found, key=lambda x: (x.ndim > 0, x.rounding.format.bits)).rounding


def _flat(x: Any) -> list[Any]:
    return [item for part in x for item in _flat(part)] if isinstance(x, (list, tuple)) else [x]


def _plain(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(_plain(item) for item in x)
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    return x.view(np.ndarray) if isinstance(x, Rounded) else x


def _wrap(x: Any, rounding: Rounding) -> Rounded:
    out = np.asarray(x, np.float64).view(Rounded)
    out.rounding = rounding
    return out
