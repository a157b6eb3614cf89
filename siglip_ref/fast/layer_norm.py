"""Layer norm in one pass over rows that stay in cache; the backward needs the input and two numbers a row."""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.linear import part
from siglip_ref.fast.machine.compile import COUNT, FIRST, INDEX, SUMS, ZERO, inner, kernel
from siglip_ref.fast.machine.elementary import number
from siglip_ref.fast.machine.fit import NOTHING, as_rows, empty, gradient_of, rows_in_memory, same_precision
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.ops.elementary import Array

# Rows are named by their number: `x[i]` would be a new array for Numba, whose references are counted, and threads that
# count in the same place wait for one another.


@inner(fastmath=SUMS)
def _mean(x: Any, i: int) -> Any:
    total = number(0, x[0, 0])
    for j in range(x.shape[1]):
        total += x[i, j]
    return total / number(x.shape[1], total)


@inner(fastmath=SUMS)
def _variance(x: Any, i: int, mean: Any) -> Any:
    total = number(0, mean)
    for j in range(x.shape[1]):
        total += (x[i, j] - mean) * (x[i, j] - mean)
    return total / number(x.shape[1], mean)


@inner()
def _norm_row(x: Any, i: int, mean: Any, rstd: Any, gamma: Any, beta: Any, out: Any) -> None:
    for j in range(x.shape[1]):
        out[i, j] = (x[i, j] - mean) * rstd * gamma[j] + beta[j]


@inner(apart=True)
def _norm_rows(x: Any, gamma: Any, beta: Any, eps: float, out: Any, stats: Any, begin: int, end: int) -> None:
    for i in range(begin, end):
        mean = _mean(x, i)
        rstd = number(1, mean) / np.sqrt(_variance(x, i, mean) + number(eps, mean))
        stats[i, 0], stats[i, 1] = mean, rstd
        _norm_row(x, i, mean, rstd, gamma, beta, out)


@kernel(parallel=True)
def norm(x: Any, gamma: Any, beta: Any, eps: float, out: Any, stats: Any, parts: int) -> None:
    """out = (x - mean) / deviation * gamma + beta, row by row; stats keeps mean and 1 / deviation."""
    if parts == 1:
        _norm_rows(x, gamma, beta, eps, out, stats, ZERO, len(x))
    else:
        for thread in prange(parts):
            begin, end = part(len(x), COUNT(thread), parts)
            _norm_rows(x, gamma, beta, eps, out, stats, begin, end)


@inner(fastmath=SUMS)
def _along(d_out: Any, x: Any, i: int, gamma: Any, mean: Any, rstd: Any, d_weights: Any, part: int) -> Any:
    """Means of d_xhat and of d_xhat * xhat; the row's share of d_gamma and d_beta."""
    one, xhat = number(0, mean), number(0, mean)
    for j in range(x.shape[1]):
        normed = (x[i, j] - mean) * rstd
        d_weights[part, 1, j] += d_out[i, j]
        d_weights[part, 0, j] += d_out[i, j] * normed
        one += d_out[i, j] * gamma[j]
        xhat += d_out[i, j] * gamma[j] * normed
    return one / number(x.shape[1], mean), xhat / number(x.shape[1], mean)


@inner()
def _d_norm_row(
    d_out: Any, x: Any, i: int, gamma: Any, add: Any, mean: Any, rstd: Any, one: Any, xhat: Any, d_x: Any
) -> None:
    for j in range(x.shape[1]):
        d_x[i, j] = (d_out[i, j] * gamma[j] - one - (x[i, j] - mean) * rstd * xhat) * rstd
    if len(add) > 0:
        for j in range(x.shape[1]):
            d_x[i, j] += add[i, j]


@inner(apart=True)
def _d_norm_rows(
    d_out: Any, x: Any, stats: Any, gamma: Any, add: Any, keep: Any, d_x: Any, d_weights: Any, part: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    if keep == number(0, keep):
        d_weights[part] = number(0, keep)
    for i in range(begin, end):
        mean, rstd = stats[i, 0], stats[i, 1]
        one, xhat = _along(d_out, x, i, gamma, mean, rstd, d_weights, part)
        _d_norm_row(d_out, x, i, gamma, add, mean, rstd, one, xhat, d_x)


@kernel(parallel=True)
def d_norm(d_out: Any, x: Any, stats: Any, gamma: Any, add: Any, keep: Any, d_x: Any, d_weights: Any) -> None:
    """d_x = gradient of `norm` by x + add, unless that is empty; d_weights (parts, 2, C) takes d_gamma and d_beta.

    With keep = 1 d_weights is added to, with keep = 0 only written.
    """
    parts = len(d_weights)
    if parts == 1:
        _d_norm_rows(d_out, x, stats, gamma, add, keep, d_x, d_weights, FIRST, ZERO, len(x))
    else:
        for thread in prange(parts):
            begin, end = part(len(x), COUNT(thread), parts)
            _d_norm_rows(d_out, x, stats, gamma, add, keep, d_x, d_weights, INDEX(thread), begin, end)


class NormCache(NamedTuple):
    """What the backward needs; stats (R, 2) are mean and 1 / deviation of each row."""

    shape: tuple[int, ...]  # of the input
    rows: Array
    stats: Array
    gamma: Array


def layer_norm_forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.layer_norm_forward`."""
    if not same_precision(x, gamma, beta) or not gamma.shape == beta.shape == x.shape[-1:]:
        return specification.layer_norm_forward(x, gamma, beta, eps)
    rows, out = as_rows(x), empty(x.shape, x)
    gamma, beta = rows_in_memory(gamma), rows_in_memory(beta)
    stats = np.empty((len(rows), 2), x.dtype)
    with parts_for_elements(x.size) as parts:
        norm(rows, gamma, beta, eps, as_rows(out), stats, parts)
    return out, NormCache(x.shape, rows, stats, gamma)


def layer_norm_backward(d_out: Array, cache: Any, add: Array | None = None) -> tuple[Array, Array, Array]:
    """Twin of `siglip_ref.ops.layer_norm_backward`; `add`, if given, is added to d_x."""
    if not isinstance(cache, NormCache):
        return specification.layer_norm_backward(d_out, cache)
    shape, rows, stats, gamma = cache
    d_out = gradient_of(d_out, shape, rows)
    d_x = empty(shape, rows)
    with parts_for_elements(d_out.size) as parts:
        d_weights = np.empty((parts, 2, rows.shape[1]), rows.dtype)
        plus = NOTHING[rows.dtype] if add is None else as_rows(add)
        d_norm(as_rows(d_out), rows, stats, gamma, plus, rows.dtype.type(0), as_rows(d_x), d_weights)
    d_gamma, d_beta = d_weights.sum(0) if parts > 1 else d_weights[0]
    return d_x, d_gamma, d_beta
