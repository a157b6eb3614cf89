"""Numbers and elementary functions in the arithmetic at hand; flat dicts of arrays, whose names are like paths."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = Any  # an ndarray of floats, complex numbers, balls or rounded numbers: the specification does not ask which


def number(value: int, like: Array) -> Array:
    """The integer `value` as a 0-d array of the arithmetic of `like`.

    >>> number(2, np.zeros(3, np.float32)).dtype
    dtype('float32')
    """
    return np.full_like(like, value, shape=())


def pi(like: Array) -> Array:
    """The circle's constant, computed in the arithmetic of `like`."""
    return 4 * np.arctan(number(1, like))


def erf(x: Array) -> Array:
    """The error function; SciPy's, imported on first use because it costs 0.1 s."""
    from scipy.special import erf as error_function

    return error_function(x)


def softplus(z: Array) -> Array:
    """log(1 + exp(z)); exact limits at +-inf, NaN stays NaN, no overflow.

    The two branches are the same function, so it does not matter which one a ball that contains zero takes.
    """
    return np.where(z > 0, z, 0) + np.log1p(np.exp(np.where(z > 0, -z, z)))


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow and with full relative precision in both tails."""
    decay = np.exp(np.where(z > 0, -z, z))
    return np.where(z > 0, 1, decay) / (1 + decay)


def subtree(weights: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The entries under `prefix/`, named without it."""
    start = prefix + "/"
    return {name[len(start) :]: value for name, value in weights.items() if name.startswith(start)}


def prefixed(prefix: str, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same entries named with `prefix/` before them."""
    return {f"{prefix}/{name}": value for name, value in weights.items()}
