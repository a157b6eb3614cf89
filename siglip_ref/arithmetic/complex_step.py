"""Derivatives without truncation error: a step along the imaginary axis.

For an analytic f, f(x + i h) = f(x) + i h f'(x) + O(h^2). The derivative stands alone in the imaginary part, nothing
is subtracted, so h may be so small (1e-30) that h^2 vanishes: the derivative is as exact as f itself. This needs f to
be written without conjugation and without abs: the specification is.

Source: Squire and Trapp 1998, "Using complex variables to estimate derivatives of real functions".
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from siglip_ref.ops.elementary import Array

STEP = 1e-30

Function = Callable[[dict[str, Array]], Any]


def directional(fn: Function, arrays: Mapping[str, Array], name: str, direction: Array) -> Any:
    """Derivative of `fn(arrays)` when `arrays[name]` moves along `direction`.

    Parameters
    ----------
    fn : takes a dict of arrays, returns a number or an array; analytic
    arrays : dict, name -> float64 array
    name : which array moves
    direction : float64 array of that array's shape

    Returns
    -------
    float64, of the shape of `fn(arrays)`; a float where that is 0-d

    Examples
    --------
    >>> directional(lambda a: np.exp(a["x"]).sum(), {"x": np.zeros(2)}, "x", np.array([1.0, 2.0]))
    3.0
    """
    moved = {**arrays, name: np.asarray(arrays[name]) + 1j * (STEP * np.asarray(direction))}
    derivative = np.imag(fn(moved)) / STEP
    return float(derivative) if np.ndim(derivative) == 0 else derivative


def gradient(fn: Function, arrays: Mapping[str, Array], name: str) -> Array:
    """Derivative of the number `fn(arrays)` with respect to every element of `arrays[name]`, one call of `fn` each.

    Examples
    --------
    >>> gradient(lambda a: (a["x"] ** 3).sum(), {"x": np.array([1.0, 2.0])}, "x")
    array([ 3., 12.])
    """
    shape = np.shape(arrays[name])
    units = np.eye(int(np.prod(shape)))
    return np.array([directional(fn, arrays, name, unit.reshape(shape)) for unit in units]).reshape(shape)
