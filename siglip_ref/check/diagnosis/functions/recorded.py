"""Sums that keep how they were made, so that slopes come back by themselves: of functions in which pairs, or numbers of
a row, have to do with each other."""

from collections.abc import Callable
from typing import Any

import numpy as np

from siglip_ref.check.diagnosis.functions.written import Of, slope
from siglip_ref.ops.elementary import Array

Way = Callable[[Array], Array]  # from the slope by a result to that by what it was made of
Both = Callable[[Array, Array], Any]


def _fitting(d: Array, shape: tuple[int, ...]) -> Array:
    """A slope by what was repeated along some axes."""
    repeated = tuple(k for k, n in enumerate(shape) if n == 1 != d.shape[k])
    return d.sum(repeated, keepdims=True) if repeated else d


def _operation(of: Both, by_one: Both, by_other: Both) -> "Callable[[Recorded, Any], Recorded]":
    def result(one: "Recorded", other: Any) -> "Recorded":
        b = other if isinstance(other, Recorded) else Recorded(other)
        x, y = one.value, b.value
        ways: list[tuple[Recorded, Way]] = [(one, lambda d: _fitting(d * by_one(x, y), x.shape))]
        if b is other:
            ways.append((b, lambda d: _fitting(d * by_other(x, y), y.shape)))
        return Recorded(of(x, y), *ways)

    return result


class Recorded:
    """A matrix, a row, a column or a number (two axes, always), and from what it was made in which way."""

    __array_ufunc__ = None  # arrays leave operations with it to it

    def __init__(self, value: Any, *made: "tuple[Recorded, Way]") -> None:
        self.value, self.made = np.asarray(value, np.float64), made
        self.slope: Array | float = 0.0  # of what went back, by it

    def back(self, d: Array) -> None:
        """Slopes by all that it was made of, given that by itself."""
        self.slope = self.slope + d
        for source, way in self.made:
            source.back(way(d))

    __add__ = __radd__ = _operation(np.add, lambda x, y: 1.0, lambda x, y: 1.0)
    __sub__ = _operation(np.subtract, lambda x, y: 1.0, lambda x, y: -1.0)
    __mul__ = __rmul__ = _operation(np.multiply, lambda x, y: y, lambda x, y: x)
    __truediv__ = _operation(np.divide, lambda x, y: 1 / y, lambda x, y: -x / y**2)

    def __matmul__(self, other: "Recorded") -> "Recorded":
        x, y = self.value, other.value
        return Recorded(x @ y, (self, lambda d: d @ y.T), (other, lambda d: x.T @ d))

    def __len__(self) -> int:
        return len(self.value)

    @property
    def T(self) -> "Recorded":  # noqa: N802  # as of arrays
        """Rows and columns exchanged."""
        return Recorded(self.value.T, (self, lambda d: d.T))

    @property
    def own(self) -> "Recorded":
        """Of each row what stands on the diagonal."""
        return (self * np.eye(len(self))).sum(1)

    @property
    def held(self) -> "Recorded":
        """The same, as a constant."""
        return Recorded(self.value)

    def each(self, of: Of) -> "Recorded":
        """A function of every number."""
        return Recorded(of(self.value), (self, lambda d: d * slope(of, 0, self.value)))

    @property
    def root(self) -> "Recorded":
        """Its square root, which at 0 has no slope."""
        root = np.sqrt(self.value)
        return Recorded(root, (self, lambda d: d / (2 * root)))

    def through(self, of: Of) -> "Recorded":
        """The same, with a gradient that goes through as if there were none."""
        return Recorded(of(self.value), (self, lambda d: d))

    def at(self, places: Array) -> "Recorded":
        """Rows from these places, some perhaps several times."""

        def back(d: Array) -> Array:
            found = np.zeros_like(self.value)
            np.add.at(found, places, d)
            return found

        return Recorded(self.value[places], (self, back))

    def sum(self, axis: int | None = None) -> "Recorded":
        """Over an axis, or all."""
        return Recorded(self.value.sum(axis, keepdims=True), (self, lambda d: np.broadcast_to(d, self.value.shape)))

    def mean(self, axis: int | None = None) -> "Recorded":
        """The same, divided by how many there are."""
        found = self.sum(axis)
        return found * (found.value.size / self.value.size)

    def largest(self, axis: int | None = None) -> "Recorded":
        """The first of the largest numbers."""
        there = np.zeros(self.value.shape)
        if axis is None:
            there.flat[self.value.argmax()] = 1
        else:
            np.put_along_axis(there, np.expand_dims(self.value.argmax(axis), axis), 1, axis)
        return Recorded(self.value.max(axis, keepdims=True), (self, lambda d: d * there))


def value_and_slopes(of: Callable[..., Recorded], *given: Array) -> tuple[float, list[Array]]:
    """A sum of what a function gives, and its slopes by what it was given."""
    recorded = [Recorded(one) for one in given]
    found = of(*recorded).sum()
    found.back(np.ones((1, 1)))
    return float(found.value.sum()), [one.slope + np.zeros_like(one.value) for one in recorded]


def with_way_back(of: Callable[[Recorded], Recorded], x: Array) -> tuple[Array, Way]:
    """What a function gives, and the way back of slopes by that."""

    def back(d: Array) -> Array:
        given = Recorded(x)
        of(given).back(d)
        return given.slope + np.zeros_like(x)

    return of(Recorded(x)).value, back
