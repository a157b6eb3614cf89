"""Which arrays kernels take, and in which form; everything else is the specification's."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.fast.machine.blas import NO, SMALL, YES
from siglip_ref.fast.machine.pool import threads_at_most
from siglip_ref.ops.elementary import Array

KINDS = (np.dtype(np.float32), np.dtype(np.float64))
# By the `id` of weights, themselves, so that no others get their `id`; then what `as_stored` says of them, or strips.
Packed: TypeAlias = Mapping[int, tuple[Array, int, Array]]
NONE: Packed = MappingProxyType({})
NOTHING = {kind: np.empty((0, 0), kind) for kind in KINDS}  # stands for "no such argument"


def same_precision(*arrays: Array) -> bool:
    """All plain arrays of float32, or all of float64: no complex steps, balls or rounded numbers, no mixtures.

    Empty arrays are left to the specification too.
    """
    kind = arrays[0].dtype
    for a in arrays:  # a plain loop, as small models feel it
        if type(a) is not np.ndarray or a.dtype != kind or a.size == 0:
            return False
    return kind in KINDS


def linear_fits(width: int, kernel: Array, bias: Array) -> bool:
    """A kernel for so many features, and its bias. Kernels of machine code do not look where an array ends."""
    fits: bool = kernel.ndim == 2 and kernel.shape[0] == width and bias.shape == kernel.shape[1:]
    return fits


def layer_shapes(width: int, mlp: int) -> list[tuple[int, ...]]:
    """Of four projections, a norm and an MLP: what a block has after its first norm, a MAP head after its probe."""
    projection, vector = ((width, width), (width,)), (width,)
    return [*(4 * projection), vector, vector, (width, mlp), (mlp,), (mlp, width), vector]


def gradient_of(d_out: Array, shape: tuple[int, ...], like: Array) -> Array:
    """d_out, which must have the shape of the forward's result, and its precision.

    Raises
    ------
    UsageError : it has another
    """
    if type(d_out) is np.ndarray and d_out.shape == shape and d_out.dtype == like.dtype:
        return d_out
    raise UsageError(
        expected=f"d_out {shape} of {like.dtype}, as the forward's result",
        got=f"d_out {np.shape(d_out)} of {getattr(d_out, 'dtype', type(d_out).__name__)}",
        cause="the gradient of another result, or one computed in another precision",
        repair=f"d_out.astype(np.{like.dtype}), or siglip_ref.ops, which takes mixtures",
    )


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Room for a result of the same precision."""
    return np.empty(shape, like.dtype)


def rows_in_memory(x: Array) -> Array:
    """The same numbers one after another in memory, copied only if they are not, and never marked as read-only."""
    x = np.ascontiguousarray(x)
    return x if x.flags.writeable else _unlocked(x)


def as_stored(
    weights: Sequence[Array], rows: Sequence[int], packed: Packed = NONE
) -> tuple[tuple[int, ...], tuple[Array, ...]]:
    """Weights as they lie in memory, for BLAS reads a matrix and its transpose alike.

    Parameters
    ----------
    weights : matrices (C, F), vectors (F,)
    rows : by how many rows each matrix will be multiplied
    packed : what was looked up before, of some

    Returns
    -------
    turned : of each YES, if it is a transposed view, as those of Torch's checkpoints are, and stored (F, C); PACKED, if
        it has strips; else NO
    stored : row after row in memory; copied only if it is neither, or so small a product that BLAS, which does not pack
        those, would round it otherwise than its transpose

    >>> as_stored([np.ones((2, 3)).T], [10**6])[1][0].shape
    (2, 3)
    """
    turned, stored = [], []
    for weight, times in zip(weights, rows, strict=True):
        if id(weight) in packed:
            turned.append(packed[id(weight)][1])
            stored.append(packed[id(weight)][2])
            continue
        large = times * weight.size > SMALL * threads_at_most()
        flip = large and weight.flags.f_contiguous and not weight.flags.c_contiguous
        turned.append(YES if flip else NO)
        stored.append(rows_in_memory(weight.T if flip else weight))
    return tuple(turned), tuple(stored)


def shapes_of(turned: Sequence[int], stored: Sequence[Array]) -> list[tuple[int, ...]]:
    """The shapes of weights, each (C, F), however it is stored."""
    return [weight.shape[::-1] if flip == YES else weight.shape for flip, weight in zip(turned, stored, strict=True)]


class _Memory:
    """Numbers where they lie, for NumPy to make an array of."""

    def __init__(self, owner: Array) -> None:
        self.owner = owner
        self.__array_interface__ = owner.__array_interface__ | {"data": (owner.ctypes.data, False)}


def _unlocked(x: Array) -> Array:
    """The same memory without the mark, for which Numba would compile all kernels anew. None writes its inputs."""
    return np.asarray(_Memory(x))


def as_rows(x: Array) -> Array:
    """(..., C) as (R, C), one after another in memory."""
    return rows_in_memory(x).reshape(-1, x.shape[-1])
