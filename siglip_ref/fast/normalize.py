"""L2 normalisation, row by row."""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.linear import part
from siglip_ref.fast.machine.compile import COUNT, inner, kernel
from siglip_ref.fast.machine.dot import dot
from siglip_ref.fast.machine.elementary import number
from siglip_ref.fast.machine.fit import as_rows, empty, gradient_of, same_precision
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.normalize import NormKind

KINDS = {"additive": 0, "clamp": 1, "none": 2}


@inner()
def _divisor(length: Any, kind: int, eps: Any) -> Any:
    if kind == 0:
        return length + eps
    return eps if kind == 1 and length < eps else length


@inner(apart=True)
def _rows(x: Any, kind: int, eps: Any, out: Any, lengths: Any) -> None:
    for i in range(len(x)):
        lengths[i] = np.sqrt(dot(x[i], x[i]))
        divisor = _divisor(lengths[i], kind, eps)
        for j in range(x.shape[1]):
            out[i, j] = x[i, j] / divisor


@inner(apart=True)
def _d_rows(d_out: Any, x: Any, lengths: Any, kind: int, eps: Any, d_x: Any) -> None:
    for i in range(len(x)):
        # out = x / divisor, divisor = length (+ eps), or a constant where the clamp holds
        divisor = _divisor(lengths[i], kind, eps)
        d_length = -dot(d_out[i], x[i]) / (divisor * divisor)
        if kind == 1 and lengths[i] <= eps:
            d_length = number(0, divisor)
        for j in range(x.shape[1]):
            d_x[i, j] = d_out[i, j] / divisor + d_length * x[i, j] / lengths[i]


@kernel(parallel=True)
def unit(x: Any, kind: int, eps: Any, out: Any, lengths: Any, parts: int) -> None:
    """out = x / its row's guarded length."""
    if parts == 1:
        _rows(x, kind, eps, out, lengths)
    else:
        for thread in prange(parts):
            begin, end = part(len(x), COUNT(thread), parts)
            _rows(x[begin:end], kind, eps, out[begin:end], lengths[begin:end])


@kernel(parallel=True)
def d_unit(d_out: Any, x: Any, lengths: Any, kind: int, eps: Any, d_x: Any, parts: int) -> None:
    """Gradient of `unit`."""
    if parts == 1:
        _d_rows(d_out, x, lengths, kind, eps, d_x)
    else:
        for thread in prange(parts):
            begin, end = part(len(x), COUNT(thread), parts)
            _d_rows(d_out[begin:end], x[begin:end], lengths[begin:end], kind, eps, d_x[begin:end])


class UnitCache(NamedTuple):
    """What the backward needs."""

    x: Array
    lengths: Array
    kind: NormKind
    eps: float


def normalize_forward(x: Array, kind: NormKind, eps: float) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.normalize_forward`."""
    if not same_precision(x):
        return specification.normalize_forward(x, kind, eps)
    out, lengths = empty(x.shape, x), np.empty(x.size // x.shape[-1], x.dtype)
    with parts_for_elements(x.size) as parts:
        unit(as_rows(x), KINDS[kind], x.dtype.type(eps), as_rows(out), lengths, parts)
    return out, UnitCache(x, lengths, kind, eps)


def normalize_backward(d_out: Array, cache: Any) -> Array:
    """Twin of `siglip_ref.ops.normalize_backward`."""
    if not isinstance(cache, UnitCache):
        return specification.normalize_backward(d_out, cache)
    x, lengths, kind, eps = cache
    d_out = gradient_of(d_out, x.shape, x)
    d_x = empty(x.shape, x)
    with parts_for_elements(x.size) as parts:
        d_unit(as_rows(d_out), as_rows(x), lengths, KINDS[kind], x.dtype.type(eps), as_rows(d_x), parts)
    return d_x
