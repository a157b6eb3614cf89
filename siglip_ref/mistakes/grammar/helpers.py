"""What texts of the grammar may call: rows left out, a fused projection read in another order, a table resampled."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from siglip_ref.mistakes.resample import cubic, resample_weights, tent

ORDERS = tuple(" ".join(order) for order in permutations(("qkv", "head", "size")) if order != ("qkv", "head", "size"))
_KERNELS = {"bilinear": tent, "bicubic": cubic(-0.75)}
KINDS = tuple(_KERNELS)
_EPS = 1e-6


def without(x: Any, rows: Sequence[int]) -> Any:
    """a table with zeros in these rows."""
    kept = np.isin(np.arange(len(x)), rows, invert=True)
    return x * kept.reshape(-1, *[1] * (x.ndim - 1))


def regrouped(parts: Sequence[Any], heads: int, order: str) -> list[Any]:
    """queries, keys and values, each (B, N, C), of a fused projection whose numbers are read in another order; each
    (B, H, N, h)."""
    fused = np.concatenate(parts, -1)
    sizes = {"qkv": 3, "head": heads, "size": fused.shape[-1] // (3 * heads)}
    axes = order.split()
    split = fused.reshape(*fused.shape[:2], *(sizes[axis] for axis in axes))
    places = [2 + axes.index(axis) for axis in ("qkv", "head", "size")]
    return list(split.transpose(places[0], 0, places[1], 1, places[2]))


def standardised(x: Any, eps: float = _EPS) -> Any:
    """less its mean, over its deviation, along the last axis: a layer norm without weights."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)


def by_rms(x: Any, eps: float = _EPS) -> Any:
    """over its root mean square, along the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def by_length(x: Any) -> Any:
    """over its length, along the last axis."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def without_keys(scores: Any, which: str) -> Any:
    """Scores (B, H, N, M), -inf where a query does not see a key."""
    i, j = np.arange(scores.shape[-2])[:, None], np.arange(scores.shape[-1])
    hidden = {
        "later keys": j > i, "earlier keys": j < i, "itself": j == i, "other keys": j != i,
        "the first key": (j == 0) & (i >= 0), "the last key": (j == len(j) - 1) & (i >= 0),
    }  # fmt: skip
    far = int(which.split()[3]) if which.startswith("keys more") else 0
    return np.where(hidden[which] if which in hidden else abs(i - j) > far, -np.inf, scores)


def distances(scores: Any) -> Any:
    """|i - j| of query i and key j."""
    i, j = np.arange(scores.shape[-2])[:, None], np.arange(scores.shape[-1])
    return np.abs(i - j) + 0 * scores


def slopes(scores: Any) -> Any:
    """ALiBi's: 2^(-8 h / H) of head h = 1 .. H."""
    heads = scores.shape[-3]
    return (2.0 ** (-8 * (np.arange(heads) + 1) / heads))[:, None, None]


def rotated_halves(x: Any) -> Any:
    """x (B, H, N, h) with rotary positions: at token n, features k and k + h/2 turned by n 10000^(-2k/h)."""
    cos, sin = _turns(x)
    one, two = np.split(x, 2, -1)
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def rotated_pairs(x: Any) -> Any:
    """x (B, H, N, h) with rotary positions: at token n, features 2k and 2k + 1 turned by n 10000^(-2k/h)."""
    cos, sin = _turns(x)
    one, two = x[..., ::2], x[..., 1::2]
    return np.stack([one * cos - two * sin, two * cos + one * sin], -1).reshape(x.shape)


def _turns(x: Any) -> tuple[Any, Any]:
    size = x.shape[-1]
    angles = np.arange(x.shape[-2])[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    return np.cos(angles), np.sin(angles)


def first_head(x: Any) -> Any:
    """the first head's, in the place of all."""
    return x[:, :1] + 0 * x


def mean_head(x: Any) -> Any:
    """the mean over heads, in the place of all."""
    return x.mean(1, keepdims=True) + 0 * x


def paired_heads(x: Any) -> Any:
    """of every two heads the first."""
    return x[:, np.arange(x.shape[1]) // 2 * 2]


def by_sigmoid(x: Any) -> Any:
    """sigmoid(x) / M of M keys, in the place of a softmax."""
    return 1 / (1 + np.exp(-x)) / x.shape[-1]


def by_sigmoid_alone(x: Any) -> Any:
    """sigmoid(x), in the place of a softmax."""
    return 1 / (1 + np.exp(-x))


def by_relu(x: Any) -> Any:
    """max(x, 0) / M of M keys, in the place of a softmax."""
    return np.maximum(x, 0) / x.shape[-1]


def relu(x: Any) -> Any:
    """max(x, 0)"""
    return np.maximum(x, 0)


def squared_relu(x: Any) -> Any:
    """max(x, 0)^2"""
    return np.maximum(x, 0) ** 2


def silu(x: Any) -> Any:
    """x sigmoid(x)"""
    return x / (1 + np.exp(-x))


def leaky_relu(x: Any) -> Any:
    """max(x, x / 100)"""
    return np.maximum(x, x / 100)


def elu(x: Any) -> Any:
    """x, or exp(x) - 1 where x is negative"""
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def softplus(x: Any) -> Any:
    """log(1 + exp(x))"""
    return np.logaddexp(0, x)


def mish(x: Any) -> Any:
    """x tanh(log(1 + exp(x)))"""
    return x * np.tanh(np.logaddexp(0, x))


def hard_swish(x: Any) -> Any:
    """x min(max(x + 3, 0), 6) / 6"""
    return x * np.clip(x + 3, 0, 6) / 6


def turned(table: Any) -> Any:
    """a square grid of positions, rows and columns exchanged."""
    side = _side(table)
    return table.reshape(side, side, -1).swapaxes(0, 1).reshape(table.shape)


def resampled(table: Any, more: float, kind: str) -> Any:
    """a square grid drawn to its own size at (i + 1/2) side / (side + more) - 1/2, as Torch does."""
    side = _side(table)
    weights = resample_weights(side, side + more, 1.0, 2.0, _KERNELS[kind])
    grid = np.einsum("ir,jc,rcd->ijd", weights, weights, table.reshape(side, side, -1))
    return grid.reshape(table.shape)


def _side(table: Any) -> int:
    side = int(np.sqrt(len(table)))
    if side * side != len(table):
        raise ValueError("no square grid")
    return side
