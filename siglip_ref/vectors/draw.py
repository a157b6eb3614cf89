"""Inputs of vectors: small integers over powers of two, exact in bfloat16 and float16, the same on every machine."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array


def integers(key: str, shape: tuple[int, ...], top: int) -> Array:
    """Integers from -top to top, evenly spread, a function of `key` alone.

    >>> integers("a key", (3,), 100)
    array([-97, -35, -22])
    """
    count = math.prod(shape)
    drawn = np.frombuffer(hashlib.shake_256(key.encode()).digest(4 * count), "<u4").astype(np.int64)
    return (drawn % (2 * top + 1) - top).reshape(shape)


def numbers(key: str, shape: tuple[int, ...], reach: float = 1.0) -> Array:
    """Multiples of reach / 128 up to reach, which is a power of two."""
    return integers(key, shape, 128) * (reach / 128)


def parameters(cfg: Config, key: str) -> dict[str, Array]:
    """Every parameter of a model, none of them zero: kernels near 0.3, gammas near 1, biases up to 1/2."""
    drawn = {}
    for name, shape in shapes(cfg).items():
        drawn[name] = numbers(f"{key} {name}", shape, 1.0 if name.endswith(("token", "position", "probe")) else 0.5)
        if name.endswith("gamma"):
            drawn[name] = 1 + integers(f"{key} {name}", shape, 24) / 64
    return drawn


def unit_rows(key: str, pairs: int, width: int) -> Array:
    """Rows of integers / 256 whose squares sum up to exactly 1; width at least 5."""
    return np.array([_unit_row(f"{key} row {i}", width) for i in range(pairs)]) / 256


def partners(rows: Array, key: str, changed: int) -> Array:
    """Rows near the given ones, and as exactly of unit length: in each, `changed` numbers change places and sign."""
    out = rows.copy()
    for i, row in enumerate(out):
        order = np.argsort(integers(f"{key} partner {i}", row.shape, 2**20), kind="stable")[:changed]
        row[order] = -np.roll(row[order], 1)
    return out


def _unit_row(key: str, width: int) -> Array:
    """All but four numbers are drawn; the rest of 65536 is a sum of four squares (Lagrange)."""
    reach = int(256 * math.sqrt(1.5 / width))
    free = integers(key, (width - 4,), reach)
    for shrink in range(1, 9):
        rest = 65536 - int((free * free).sum())
        if rest > 0:
            break
        free = free // (2 * shrink)
    last = np.array(next(_four_squares(rest, int(math.sqrt(rest / 4)) + 1)))
    signs = np.where(integers(f"{key} signs", (4,), 1) < 0, -1, 1)
    row = np.concatenate([free, last * signs])
    return row[np.argsort(integers(f"{key} order", (width,), 2**20), kind="stable")]


def _four_squares(total: int, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Ways to write total as a^2 + b^2 + c^2 + d^2, near equal ones first."""
    for a in range(min(start, math.isqrt(total)), -1, -1):
        for b in range(min(start, math.isqrt(total - a * a)), -1, -1):
            two = total - a * a - b * b
            for c in range(math.isqrt(two // 2), math.isqrt(two) + 1):
                d = math.isqrt(two - c * c)
                if d * d == two - c * c:
                    yield a, b, c, d
