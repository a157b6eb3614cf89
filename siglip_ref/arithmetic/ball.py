"""Balls: numbers with rigorous error bounds, so that a published digit is proven and not only computed.

A ball is an interval [middle - radius, middle + radius] that holds the exact result; every operation returns a ball
that holds every possible result. `Balls` is an array of them on which the operations of `siglip_ref.ops` run unchanged.

Source: Johansson 2017, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic"; python-flint.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx

from siglip_ref.ops.elementary import Array

# what the specification calls them: NumPy's and SciPy's names, then Arb's
FUNCTIONS = {
    "sqrt": arb.sqrt,
    "exp": arb.exp,
    "cos": arb.cos,
    "log": arb.log,
    "log1p": arb.log1p,
    "tanh": arb.tanh,
    "arctan": arb.atan,
    "erf": arb.erf,
}
ARITHMETIC = {"add", "subtract", "multiply", "divide", "negative"}
OPPOSITE = {"greater": np.less_equal, "greater_equal": np.less, "less": np.greater_equal, "less_equal": np.greater}
# bits tried by `certify`; not so many that a structural zero shrinks below the smallest float64 and passes undeclared
PRECISIONS = (128, 256, 512, 1024)


class UndecidedError(ArithmeticError):
    """A ball is too wide to say which way a comparison or a rounding goes."""


class Balls(np.ndarray[Any, Any]):
    """An array of `flint.arb`. Make one with `balls`.

    A comparison gives True, False or None: undecided. Where `np.where` finds None, the result holds both branches;
    `np.maximum` of two balls that overlap raises `UndecidedError`.
    """

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if not all(isinstance(x, (np.ndarray, np.generic, int, float, arb)) for x in inputs[:2]):
            return NotImplemented  # an array type that knows more, or nothing to compute with
        options = {key: value for key, value in options.items() if key in ("axis", "keepdims")}  # not out, not casting
        if method == "at":
            target, where, terms = inputs
            return ufunc.at(_objects(target), where, _objects(balls(terms)))
        operands = [_objects(balls(x)) for x in inputs[:2]]
        name = ufunc.__name__
        if method == "reduce" and name in ("add", "maximum"):
            axis = inputs[1] if len(inputs) > 1 else options.pop("axis", 0)
            fold = np.add if name == "add" else _union_of_maxima
            return _wrap(fold.reduce(operands[0], axis=axis, **options))
        if method != "__call__":
            return NotImplemented
        if name in FUNCTIONS:
            return _wrap(_each(FUNCTIONS[name], operands[0]))
        if name in ARITHMETIC:
            return _wrap(ufunc(*operands))
        if name == "matmul":
            return matmul(*operands)
        if name in OPPOSITE:
            return _decision(ufunc(*operands), OPPOSITE[name](*operands))
        if name == "maximum":
            return _larger(*operands)
        return NotImplemented

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not all(issubclass(kind, np.ndarray) for kind in types):
            return NotImplemented
        if func is np.where:
            return where(*args)
        out = func(*(_plain(x) for x in args), **{key: _plain(value) for key, value in kwargs.items()})
        return balls(out) if isinstance(out, np.ndarray) else out


def balls(x: Any) -> Balls:
    """An array of balls from numbers, exactly; balls stay as they are.

    Parameters
    ----------
    x : Balls, or an array or number, real

    Examples
    --------
    >>> balls(np.array([0.5, 3])).dtype
    dtype('O')
    """
    if isinstance(x, Balls):
        return x
    return _wrap(_each(_ball, np.asarray(x).astype(object)))


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Compute with so many bits inside the `with` block."""
    with ctx.workprec(bits):
        yield


def where(condition: Any, x: Any, y: Any) -> Balls:
    """np.where; an undecided condition (None) gives a ball that holds both choices."""
    condition = np.asarray(condition)
    x, y = _objects(balls(x)), _objects(balls(y))
    if condition.dtype == bool:
        return _wrap(np.where(condition, x, y))
    choose = np.frompyfunc(lambda c, a, b: a.union(b) if c is None else (a if c else b), 3, 1)
    return _wrap(choose(condition, x, y))


def matmul(x: Array, y: Array) -> Balls:
    """x @ y for matrices and stacks of them, by Arb's matrix product: ten times faster than element by element."""
    stack = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    (rows, inner), columns = x.shape[-2:], y.shape[-1]
    x, y = np.broadcast_to(x, (*stack, rows, inner)), np.broadcast_to(y, (*stack, inner, columns))
    out = np.empty((*stack, rows, columns), object)
    for i in np.ndindex(stack):
        product = arb_mat(rows, inner, list(x[i].flat)) * arb_mat(inner, columns, list(y[i].flat))
        out[i] = np.array(product.entries(), object).reshape(rows, columns)
    return _wrap(out)


@dataclass(frozen=True)
class Certified:
    """The float64 nearest to the exact value, for every element; `bits` is the precision that proved it."""

    value: Array
    bits: int


def certify(fn: Callable[[], Mapping[str, Array]], zero: Mapping[str, str] | None = None) -> dict[str, Certified]:
    """The nearest float64 of everything `fn` computes, proven.

    Precision is raised until both ends of every ball round to the same number.

    Parameters
    ----------
    fn : computes a dict of balls at the precision it is called in; the balls must be made inside
    zero : tensors that are zero by structure, with the reason: their balls never leave zero, so they are proven instead
        to contain zero with a radius below 1e-60, and published as 0

    Returns
    -------
    dict, name -> Certified; ties go to even, as everywhere in float64

    Raises
    ------
    UndecidedError, naming the tensor, when even the highest precision leaves two candidates: a zero by structure that
    was not declared, or a division by zero

    Examples
    --------
    >>> float(certify(lambda: {"third": 1 / balls(3)})["third"].value)
    0.3333333333333333
    """
    done: dict[str, Certified] = {}
    for bits in PRECISIONS:
        with precision(bits):
            try:
                computed = fn()
            except UndecidedError:
                if bits == PRECISIONS[-1]:
                    raise
                continue
            for name, tensor in computed.items():
                if name not in done:
                    rounded = _zeros(tensor) if name in (zero or {}) else _each(nearest, _objects(balls(tensor)))
                    if all(value is not None for value in rounded.flat):
                        done[name] = Certified(rounded.astype(np.float64), bits)
        if len(done) == len(computed):
            return {name: done[name] for name in computed}
    name = next(name for name in computed if name not in done)
    first = balls(computed[name]).ravel()[:4]
    raise UndecidedError(f"{name}: not decided at {bits} bits: {first}; zero by structure?")


def nearest(ball: Any) -> float | None:
    """The float64 to which every number in the ball rounds, or None if there are several."""
    if not ball.is_finite():
        return None
    ends = [_float_of(end) for end in (ball.lower(), ball.upper())]
    return ends[0] if ends[0] == ends[1] else None


def middle(x: Balls) -> Array:
    """The middles, in float64."""
    return _objects(x).astype(np.float64)


def radius(x: Balls) -> float:
    """The largest radius in an array."""
    return max((float(v.rad()) for v in x.flat), default=0.0)


def overlap(x: Balls, y: Balls) -> bool:
    """Whether every ball of x meets its partner in y: two enclosures of one number must."""
    pairs = np.broadcast(_objects(balls(x)), _objects(balls(y)))
    return all(a.overlaps(b) for a, b in pairs)


def _ball(number: Any) -> Any:
    return number if isinstance(number, arb) else arb(number.item() if isinstance(number, np.generic) else number)


def _float_of(exact: Any) -> float:
    """Nearest float64 of an end point; Python's division of integers rounds correctly, also below the normal range."""
    mantissa, exponent = (int(part) for part in exact.man_exp())
    try:
        return float(mantissa * 2**exponent) if exponent >= 0 else mantissa / 2**-exponent
    except OverflowError:
        return float("inf") if mantissa > 0 else float("-inf")


def _zeros(tensor: Any) -> Array:
    tensor = balls(tensor)
    small = all(v.contains(0) for v in tensor.flat) and radius(tensor) < 1e-60
    return np.full(tensor.shape, 0.0 if small else None, object)


def _objects(x: Array) -> Array:
    return np.asarray(x).view(np.ndarray)


def _wrap(x: Any) -> Balls:
    return np.asarray(x, object).view(Balls)


def _each(fn: Callable[[Any], Any], x: Array) -> Array:
    return np.asarray(np.frompyfunc(fn, 1, 1)(x), object)


def _plain(x: Any) -> Any:
    """The bare object array, also inside the list that np.concatenate takes."""
    if isinstance(x, (list, tuple)):
        return type(x)(_plain(item) for item in x)
    return _objects(x) if isinstance(x, Balls) else x


def _decision(yes: Array, no: Array) -> Array:
    """Plain bools if everything is decided; else with None where not, and in `Balls`, so that np.where comes here."""
    undecided = ~(yes | no)
    return _wrap(np.where(undecided, None, yes)) if undecided.any() else yes


def _larger(x: Array, y: Array) -> Balls:
    first = _decision(np.asarray(x >= y), np.asarray(x < y))
    if first.dtype == object:
        raise UndecidedError("np.maximum of two balls that overlap: compute with more bits")
    return _wrap(np.where(first, x, y))


_union_of_maxima = np.frompyfunc(arb.max, 2, 1)  # holds the maximum, whichever element has it
