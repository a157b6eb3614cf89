"""What texts of the grammar may call: rows left out, a fused projection read in another order, a table resampled."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from siglip_ref.mistakes.resample import cubic, resample_weights, tent

ORDERS = tuple(" ".join(order) for order in permutations(("qkv", "head", "size")) if order != ("qkv", "head", "size"))
_KERNELS = {"bilinear": tent, "bicubic": cubic(-0.75)}
KINDS = tuple(_KERNELS)
NORMS = ("standardised", "by_rms", "by_length")
_EPS = 1e-6


def without(x: Any, rows: Sequence[int]) -> Any:
    """A table with zeros in these rows."""
    kept = np.isin(np.arange(len(x)), rows, invert=True)
    return x * kept.reshape(-1, *[1] * (x.ndim - 1))


def regrouped(parts: Sequence[Any], heads: int, order: str) -> list[Any]:
    """Queries, keys and values, each (B, N, C), of a fused projection whose numbers are read in another order; each
    (B, H, N, h)."""
    fused = np.concatenate(parts, -1)
    sizes = {"qkv": 3, "head": heads, "size": fused.shape[-1] // (3 * heads)}
    axes = order.split()
    split = fused.reshape(*fused.shape[:2], *(sizes[axis] for axis in axes))
    places = [2 + axes.index(axis) for axis in ("qkv", "head", "size")]
    return list(split.transpose(places[0], 0, places[1], 1, places[2]))


def standardised(x: Any) -> Any:
    """Less its mean, over its deviation, along the last axis: a layer norm without weights."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + _EPS)


def by_rms(x: Any) -> Any:
    """Over its root mean square, along the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPS)


def by_length(x: Any) -> Any:
    """Over its length, along the last axis."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def turned(table: Any) -> Any:
    """A square grid of positions, rows and columns exchanged."""
    side = _side(table)
    return table.reshape(side, side, -1).swapaxes(0, 1).reshape(table.shape)


def resampled(table: Any, more: float, kind: str) -> Any:
    """A square grid drawn to its own size at (i + 1/2) side / (side + more) - 1/2, as Torch does."""
    side = _side(table)
    weights = resample_weights(side, side + more, 1.0, 2.0, _KERNELS[kind])
    grid = np.einsum("ir,jc,rcd->ijd", weights, weights, table.reshape(side, side, -1))
    return grid.reshape(table.shape)


def _side(table: Any) -> int:
    side = int(np.sqrt(len(table)))
    if side * side != len(table):
        raise ValueError("no square grid")
    return side
