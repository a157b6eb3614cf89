"""Tokens and positions; the token table's gradient without a pass over the whole table."""

from typing import Any

import numpy as np
from numba import prange

from siglip_ref import ops as specification
from siglip_ref.fast.linear import part
from siglip_ref.fast.machine.compile import COUNT, ZERO, inner, kernel
from siglip_ref.fast.machine.fit import as_rows, empty, rows_in_memory, same_precision
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.embedding import TokenCache


@kernel()
def _scatter(d_rows: Any, tokens: Any, d_table: Any) -> None:
    for i in range(len(tokens)):
        for j in range(d_table.shape[1]):
            d_table[tokens[i], j] += d_rows[i, j]


def token_embed_backward(d_out: Array, cache: TokenCache) -> Array:
    """Twin of `siglip_ref.ops.token_embed_backward`."""
    tokens, table = cache
    if not same_precision(d_out, table) or d_out.shape != (*tokens.shape, *table.shape[1:]) or table.ndim != 2:
        return specification.token_embed_backward(d_out, cache)
    d_table = np.zeros_like(table)
    _scatter(as_rows(d_out), tokens.reshape(-1).astype(np.int64), d_table)
    return d_table


@inner()
def _add_some(x: Any, table: Any, out: Any, begin: int, end: int) -> None:
    tokens = x.shape[1]
    for i in range(begin, end):
        b, n = i // tokens, i % tokens
        for j in range(x.shape[2]):
            out[b, n, j] = x[b, n, j] + table[n, j]


@kernel(parallel=True)
def _add_table(x: Any, table: Any, out: Any, parts: int) -> None:
    rows = len(x) * x.shape[1]
    if parts == 1:
        _add_some(x, table, out, ZERO, rows)
    else:
        for thread in prange(parts):
            begin, end = part(rows, COUNT(thread), parts)
            _add_some(x, table, out, begin, end)


def _has_places(table: Array, x: Array) -> bool:
    fits: bool = x.ndim == 3 and table.ndim == 2 and len(table) >= x.shape[1] and table.shape[1:] == x.shape[2:]
    return fits


def position_forward(x: Array, table: Array) -> tuple[Array, Array]:
    """Twin of `siglip_ref.ops.position_forward`."""
    if not same_precision(x, table) or not _has_places(table, x):
        return specification.position_forward(x, table)
    out = empty(x.shape, x)
    with parts_for_elements(x.size) as parts:
        _add_table(rows_in_memory(x), rows_in_memory(table), out, parts)
    return out, table


@kernel()
def sum_images(d_out: Any, d_table: Any) -> None:
    """d_table[n] += sum of d_out[b, n] over b; places that no token took stay as they are."""
    for b in range(len(d_out)):
        for n in range(d_out.shape[1]):
            for j in range(d_out.shape[2]):
                d_table[n, j] += d_out[b, n, j]


def position_backward(d_out: Array, cache: Array) -> tuple[Array, Array]:
    """Twin of `siglip_ref.ops.position_backward`."""
    table = cache
    if not same_precision(d_out, table) or not _has_places(table, d_out):
        return specification.position_backward(d_out, cache)
    d_table = np.zeros_like(table)
    sum_images(rows_in_memory(d_out), d_table)
    return d_out, d_table
