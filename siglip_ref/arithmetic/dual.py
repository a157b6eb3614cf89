"""Dual numbers over balls: a value and its derivative along one direction, both with rigorous bounds.

A dual number v + t e with e^2 = 0 goes through the forward pass and comes out with the directional derivative: forward
mode differentiation, one rule per operation. That is a derivation of its own, against which the hand-written backward
is proven: both enclose the same number, so their balls must overlap.

Source: Griewank and Walther 2008, "Evaluating derivatives", chapter 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from siglip_ref.arithmetic.ball import Balls, balls
from siglip_ref.arithmetic.complex_step import Function
from siglip_ref.ops.elementary import Array, pi

# f: its derivative at x, where y = f(x)
DERIVATIVES: dict[str, Callable[[Any, Any], Any]] = {
    "sqrt": lambda x, y: 1 / (2 * y),
    "exp": lambda x, y: y,
    "log": lambda x, y: 1 / x,
    "log1p": lambda x, y: 1 / (1 + x),
    "tanh": lambda x, y: 1 - y * y,
    "arctan": lambda x, y: 1 / (1 + x * x),
    "erf": lambda x, y: 2 / np.sqrt(pi(x)) * np.exp(-x * x),
}
COMPARISONS = {"greater", "greater_equal", "less", "less_equal"}
PRODUCTS = {"multiply", "matmul"}
# these move elements about: what happens to the value happens to the tangent
LINEAR = {"add", "subtract", "negative", "concatenate", "pad", "broadcast_to", "repeat", "stack"}
CONSTANT = {"zeros_like", "full_like"}


class Dual(NDArrayOperatorsMixin):
    """An array of dual numbers: `value` and `tangent`, two arrays of balls of one shape."""

    __array_priority__ = 100  # NumPy's and the balls' operators give way to these

    def __init__(self, value: Any, tangent: Any) -> None:
        self.value, self.tangent = balls(value), balls(tangent)

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: self._both(lambda x: x.T))

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: Any) -> "Dual":
        return self._both(lambda x: x[key])

    def reshape(self, *shape: Any) -> "Dual":
        return self._both(lambda x: x.reshape(*shape))

    def swapaxes(self, a: int, b: int) -> "Dual":
        return self._both(lambda x: x.swapaxes(a, b))

    def sum(self, *args: Any, **kwargs: Any) -> "Dual":
        return self._both(lambda x: x.sum(*args, **kwargs))

    def mean(self, *args: Any, **kwargs: Any) -> "Dual":
        return self._both(lambda x: x.mean(*args, **kwargs))

    def max(self, *args: Any, **kwargs: Any) -> Balls:
        """The largest value, as a constant: the specification takes a maximum only to shift a softmax, and any constant
        shift gives the same function."""
        return self.value.max(*args, **kwargs)  # type: ignore[no-any-return]

    def _both(self, move: Callable[[Balls], Any]) -> "Dual":
        return Dual(move(self.value), move(self.tangent))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        name, values = ufunc.__name__, _values(inputs)
        if method != "__call__" or options:
            return NotImplemented
        if name in COMPARISONS:
            return ufunc(*values)
        if name == "maximum":
            return np.where(np.maximum(*values) > values[1], *inputs)  # raises where undecided
        out, tangents = ufunc(*values), _tangents(inputs)
        if name in DERIVATIVES:
            return Dual(out, DERIVATIVES[name](values[0], out) * tangents[0])
        if name in LINEAR:
            return Dual(out, ufunc(*tangents))
        if name in PRODUCTS:
            return Dual(out, ufunc(tangents[0], values[1]) + ufunc(values[0], tangents[1]))
        if name == "divide":
            return Dual(out, (tangents[0] - out * tangents[1]) / values[1])
        return NotImplemented

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.where:
            condition, *branches = args
            return Dual(np.where(condition, *_values(branches)), np.where(condition, *_tangents(branches)))
        if func.__name__ in CONSTANT:
            return func(*_values(args), **kwargs)
        if func.__name__ not in LINEAR:
            return NotImplemented
        first, *rest = args
        if isinstance(first, list):
            return Dual(func(_values(first), *rest, **kwargs), func(_tangents(first), *rest, **kwargs))
        return first._both(lambda x: func(x, *rest, **kwargs))


def directional(fn: Function, arrays: Mapping[str, Array], name: str, direction: Array) -> Balls:
    """A ball around the derivative of `fn(arrays)` when `arrays[name]` moves along `direction`.

    Parameters
    ----------
    fn : takes a dict of arrays, returns a number or an array
    arrays : dict, name -> array of floats or balls
    name : which array moves
    direction : array of that array's shape

    Examples
    --------
    >>> out = directional(lambda a: np.exp(a["x"]).sum(), {"x": np.zeros(2)}, "x", np.array([1.0, 2.0]))
    >>> float(out.item())
    3.0
    """
    inputs: dict[str, Any] = {key: balls(value) for key, value in arrays.items()}
    return fn(inputs | {name: Dual(inputs[name], direction)}).tangent  # type: ignore[no-any-return]


def difference_quotient(fn: Function, arrays: Mapping[str, Array], name: str, direction: Array, step: Array) -> Balls:
    """(fn(x + h d) - fn(x - h d)) / 2h: no rule of differentiation at all, an error of order h^2.

    Parameters
    ----------
    fn, arrays, name, direction : as in `directional`
    step : h, a 0-d array of balls; with 400 bits, 1e-32 leaves 60 digits
    """
    inputs = {key: balls(value) for key, value in arrays.items()}
    ends = [fn(inputs | {name: inputs[name] + sign * step * balls(direction)}) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)  # type: ignore[no-any-return]


def _values(arrays: Any) -> list[Any]:
    return [x.value if isinstance(x, Dual) else balls(x) for x in arrays]


def _tangents(arrays: Any) -> list[Any]:
    """Of a constant: zero."""
    return [x.tangent if isinstance(x, Dual) else balls(np.zeros(np.shape(x))) for x in arrays]
