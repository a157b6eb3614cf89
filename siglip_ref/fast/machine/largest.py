"""The largest number of a row, inside kernels.

The maximum of floats does not become vector instructions (NaN, -0). That of integers does: the bits of floats are in
their order once those of the negative ones, which run the other way, are turned round.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload


def bits_of(tables: Any) -> Any:
    """The same memory as integers, inside kernels."""
    raise NotImplementedError("only inside kernels")


def largest(bits: Any, t: int, i: int) -> Any:
    """The largest number of a table's row, inside kernels; of a row with NaN, NaN or another number of it."""
    raise NotImplementedError("only inside kernels")


def _largest32(bits: Any, t: int, i: int) -> Any:
    turn, last = np.int32(0x7FFFFFFF), np.int32(31)
    top = ~turn
    for j in range(bits.shape[3]):
        top = max(top, bits[t, 0, i, j] ^ ((bits[t, 0, i, j] >> last) & turn))
    return np.int32(top ^ ((top >> last) & turn)).view(np.float32)


def _largest64(bits: Any, t: int, i: int) -> Any:
    turn, last = np.int64(0x7FFFFFFFFFFFFFFF), np.int64(63)
    top = ~turn
    for j in range(bits.shape[3]):
        top = max(top, bits[t, 0, i, j] ^ ((bits[t, 0, i, j] >> last) & turn))
    return np.int64(top ^ ((top >> last) & turn)).view(np.float64)


@overload(bits_of)
def _bits_of(tables: Any) -> Any:
    def single(tables: Any) -> Any:
        return tables.view(np.int32)

    def double(tables: Any) -> Any:
        return tables.view(np.int64)

    return single if tables.dtype == types.float32 else double


@overload(largest)
def _largest(bits: Any, t: int, i: int) -> Any:
    return _largest32 if bits.dtype == types.int32 else _largest64
