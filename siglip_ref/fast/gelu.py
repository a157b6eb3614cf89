"""GELU: one exponential an element, forward and backward, in all three forms."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.linear import part
from siglip_ref.fast.machine.compile import COUNT, inner, kernel
from siglip_ref.fast.machine.elementary import exp_nonpositive, normal_cdf, number, sigmoid
from siglip_ref.fast.machine.fit import empty, gradient_of, rows_in_memory, same_precision
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import CUBIC, QUICK, GeluForm

TANH, ERF, FORMS = 0, 1, {"tanh": 0, "erf": 1, "quick": 2}
SLOPE = 2 * math.sqrt(2 / math.pi)  # (1 + tanh(u)) / 2 = sigmoid(2 u): without tanh, and without cancellation
DENSITY = 1 / math.sqrt(2 * math.pi)  # of the normal distribution at 0


@inner()
def _tanh(x: Any) -> Any:
    cubic, slope = number(CUBIC, x), number(SLOPE, x)
    return x * sigmoid(slope * (x + cubic * (x * x * x)))


@inner()
def _d_tanh(x: Any) -> Any:
    one, cubic, slope = number(1, x), number(CUBIC, x), number(SLOPE, x)
    square = x * x
    z = slope * (x + cubic * (square * x))
    decay = exp_nonpositive(-z if z > 0 else z)
    gate = (one if z > 0 else decay) / (one + decay)
    shut = (decay if z > 0 else one) / (one + decay)  # 1 - gate
    return x * gate, gate + x * gate * shut * slope * (one + number(3, x) * cubic * square)


@inner()
def _d_erf(x: Any) -> Any:
    below = normal_cdf(x)
    return x * below, below + x * number(DENSITY, x) * exp_nonpositive(number(-0.5, x) * (x * x))


@inner()
def _d_quick(x: Any) -> Any:
    steep = number(QUICK, x)
    gate = sigmoid(steep * x)
    return x * gate, gate + steep * x * gate * sigmoid(-steep * x)


@inner(apart=True)
def gelu_rows(x: Any, form: int, out: Any) -> None:
    """out = gelu(x), both flat."""
    if form == TANH:
        for i in range(len(x)):
            out[i] = _tanh(x[i])
    elif form == ERF:
        for i in range(len(x)):
            out[i] = x[i] * normal_cdf(x[i])
    else:
        for i in range(len(x)):
            out[i] = x[i] * sigmoid(number(QUICK, x[i]) * x[i])


@inner(apart=True)
def d_gelu_rows(d: Any, x: Any, form: int, out: Any) -> None:
    """d *= gelu'(x), in place, and once more out = gelu(x): it is cheaper than keeping it.

    In place, because two names for one array would keep the loop from becoming vector instructions.
    """
    if form == TANH:
        for i in range(len(x)):
            out[i], slope = _d_tanh(x[i])
            d[i] *= slope
    elif form == ERF:
        for i in range(len(x)):
            out[i], slope = _d_erf(x[i])
            d[i] *= slope
    else:
        for i in range(len(x)):
            out[i], slope = _d_quick(x[i])
            d[i] *= slope


@kernel(parallel=True)
def gelu_all(x: Any, form: int, out: Any, parts: int) -> None:
    """`gelu_rows` on all threads."""
    if parts == 1:
        gelu_rows(x, form, out)
    else:
        for thread in prange(parts):
            begin, end = part(len(x), COUNT(thread), parts)
            gelu_rows(x[begin:end], form, out[begin:end])


@kernel(parallel=True)
def d_gelu_all(d: Any, x: Any, form: int, out: Any, parts: int) -> None:
    """`d_gelu_rows` on all threads."""
    if parts == 1:
        d_gelu_rows(d, x, form, out)
    else:
        for thread in prange(parts):
            begin, end = part(len(x), COUNT(thread), parts)
            d_gelu_rows(d[begin:end], x[begin:end], form, out[begin:end])


class GeluCache(NamedTuple):
    """What the backward needs."""

    x: Array
    form: GeluForm


def gelu_forward(x: Array, form: GeluForm) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.gelu_forward`."""
    if not same_precision(x):
        return specification.gelu_forward(x, form)
    x = rows_in_memory(x)
    out = empty(x.shape, x)
    with parts_for_elements(x.size) as parts:
        gelu_all(x.reshape(-1), FORMS[form], out.reshape(-1), parts)
    return out, GeluCache(x, form)


def gelu_backward(d_out: Array, cache: Any) -> Array:
    """Twin of `siglip_ref.ops.gelu_backward`."""
    if not isinstance(cache, GeluCache):
        return specification.gelu_backward(d_out, cache)
    x, form = cache
    d_x, again = np.array(gradient_of(d_out, x.shape, x), order="C"), empty(x.shape, x)
    with parts_for_elements(x.size) as parts:
        d_gelu_all(d_x.reshape(-1), x.reshape(-1), FORMS[form], again.reshape(-1), parts)
    return d_x
