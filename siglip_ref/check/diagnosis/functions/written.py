"""Functions that are written once, as reports have them: a formula is computed, its slope a step into the imaginary."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from siglip_ref.ops.elementary import Array, sigmoid, softplus

_STEP, _LEAST = 1e-12, 1e-200  # of a number: its square is nothing beside 1, and what comes of it is no denormal one

Of = Callable[..., Any]


def above(u: Array, limit: Any = 0.0) -> Array:
    """u where it is above a limit, else the limit."""
    return np.where(u.real > limit, u, limit)


def size(u: Array) -> Array:
    """|u|, whose slope at 0 is 0."""
    return u * np.sign(u.real)


def _clamp(u: Array, low: float, high: float) -> Array:
    return np.where(u.real < low, low, np.where(u.real > high, high, u))


def _normal(u: Array) -> Array:
    """The share of a normal distribution below u."""
    from math import erfc

    share = 0.5 * np.vectorize(erfc, otypes=[float])(-u.real / np.sqrt(2))
    return share + 1j * u.imag * np.exp(-u.real * u.real / 2) / np.sqrt(2 * np.pi) if np.iscomplexobj(u) else share


_NAMES: dict[str, Any] = {
    "__builtins__": {}, "softplus": softplus, "sigmoid": sigmoid, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "tanh": np.tanh, "pi": np.pi, "e": np.e, "size": size, "clamp": _clamp, "real": np.real, "where": np.where,
    "max": lambda one, other: np.where(np.real(other) > np.real(one), other, one),
    "min": lambda one, other: np.where(np.real(other) < np.real(one), other, one),
    "arccos": lambda u: np.arccos(_clamp(u, -1.0, 1.0)),
    "elu": lambda u: np.where(u.real > 0, u, np.expm1(np.where(u.real > 0, 0, u))),
    "gelu": lambda u: u * _normal(u),
    "huber": lambda u: np.where(u.real > 1, u - 0.5, u * u / 2),
}  # fmt: skip


@lru_cache(maxsize=1024)
def written(formula: str, *names: str) -> Of:
    """A formula as a function of these names: "exp(s) b", "max(0, u)^2", "softplus(|u|)", "[u > 0] sigmoid(u)".

    >>> float(written("2 |u| u^2 - [u > 0]", "u")(np.float64(3)))
    53.0
    """
    python = re.sub(r"\[(\w+) ([<>]) 0\]", r"where(real(\1) \2 0, 1.0, 0.0)", formula)
    while python != (python := re.sub(r"\|([^|]+)\|", r"size(\1)", python)):
        pass
    python = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", python.replace("^", "**"))
    found: Of = eval(f"lambda {', '.join(names)}: {python}", dict(_NAMES))
    return found


def slope(of: Of, place: int, *values: Any) -> Array:
    """The slope of a function by one of its arguments; of a softplus to the smallest number."""
    if of is softplus:
        return sigmoid(np.asarray(values[0]))
    step = _STEP * np.maximum(np.abs(values[place]), _LEAST)
    moved = (np.asarray(value) + 1j * step if k == place else value for k, value in enumerate(values))
    return np.imag(of(*moved)) / step
