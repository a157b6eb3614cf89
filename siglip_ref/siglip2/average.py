"""A mean over what counts in each example, then over the examples: a caption's tokens, an image's masked patches."""

from collections import namedtuple
from typing import Literal

import numpy as np

from siglip_ref.ops.elementary import Array

Mean = Literal["example", "token"]

AverageCache = namedtuple("AverageCache", "counted divisor")


def average_forward(values: Array, counted: Array, mean: Mean) -> tuple[Array, AverageCache]:
    """out = 1/B sum_i 1/n_i sum_t values_it over what counts, n_i their number.

    Parameters
    ----------
    values : array, shape (B, T)
    counted : array of bool, shape (B, T)
    mean : "example" as above (big_vision, iBOT), or "token": the sum of all over the number of all (open_clip's CoCa)

    Returns
    -------
    out : 0-d; an example in which nothing counts adds 0, and is one of the B all the same

    Source: big_vision trainers/proj/cappa/generative.py; iBOT main_ibot.py, forward of the loss.

    Examples
    --------
    >>> values, counted = np.array([[4.0, 8.0], [3.0, 9.0]]), np.array([[True, True], [True, False]])
    >>> [float(average_forward(values, counted, mean)[0]) for mean in ("example", "token")]
    [4.5, 5.0]
    """
    number = counted.sum(-1, keepdims=True)  # (B, 1)
    every = np.maximum(number, 1) * len(number) if mean == "example" else np.maximum(number.sum(keepdims=True), 1)
    divisor = every.astype(values.dtype)
    return (np.where(counted, values, 0) / divisor).sum(), AverageCache(counted, divisor)


def average_backward(d_out: Array, cache: AverageCache) -> Array:
    """Gradient of `average_forward`: d_values (B, T), exactly zero where nothing counts."""
    counted, divisor = cache
    # out = sum of values / divisor where they count
    return np.where(counted, d_out / divisor, 0)
