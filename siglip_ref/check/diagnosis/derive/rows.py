"""Rows as a loss takes them and as its backward reads them, and numbers rounded on the way."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.derive.formula import Kept, Rows
from siglip_ref.check.diagnosis.functions.mapped import with_way_back
from siglip_ref.check.diagnosis.functions.written import Of, slope, written
from siglip_ref.ops.elementary import Array

Back = Callable[[Array], Array]


def _same(d: Array) -> Array:
    return d


# By what rows of a length r are divided.
_DIVISORS = {"unit, root": "sqrt(r^2 + eps)", "power": "r^eps", "as given": "r^0"}


def divisor_of(kind: str) -> Of:
    """A function of the length, and of a number that goes with the kind."""
    return written(_DIVISORS.get(kind, "r + eps"), "r", "eps")


# Which row stands at each place.
ORDERS: dict[str, Callable[[int], Array]] = {
    "the last is the one before": lambda n: np.r_[np.arange(n - 1), max(n - 2, 0)],
    "the first is the second": lambda n: np.r_[min(1, n - 1), np.arange(1, n)],
    "the last is the first": lambda n: np.r_[np.arange(n - 1), 0],
    "halves exchanged": lambda n: np.roll(np.arange(n), n // 2),
    "neighbours exchanged": lambda n: np.where(np.arange(n) ^ 1 < n, np.arange(n) ^ 1, np.arange(n)),
    "even ones, then odd ones": lambda n: np.r_[np.arange(0, n, 2), np.arange(1, n, 2)],
    "sorted by parity back": lambda n: np.argsort(np.r_[np.arange(0, n, 2), np.arange(1, n, 2)]),
}


def rows_of(rows: Rows, x: Array) -> tuple[Array, Back]:
    """What goes into the product, and the way back."""
    if rows.mapped:
        found, back_map = with_way_back(rows.mapped, x, rows.cut)
        inner, back_unit = rows_of(replace(rows, mapped=""), found)
        return inner, lambda d: back_map(back_unit(d))
    if rows.order:
        places = ORDERS[rows.order](len(x))
        inner, back_inner = rows_of(replace(rows, order=""), x[places])

        def back_to_places(d: Array) -> Array:
            found = np.zeros_like(x)
            np.add.at(found, places, back_inner(d))
            return found

        return inner, back_to_places
    if rows.kind == "as given":
        return x, _same
    axis: Any = None if rows.kind == "whole matrix" else -1
    length = np.sqrt((x * x).sum(axis, keepdims=True))
    of = divisor_of(rows.kind)
    divisor, grows = of(length, rows.eps), slope(of, 0, length, rows.eps)

    def back(d: Array) -> Array:
        if rows.undivided:
            return d if rows.detached else d - (d * x).sum(axis, keepdims=True) / length**2 * x
        if rows.detached:
            return d / divisor
        return d / divisor - grows * (d * x).sum(axis, keepdims=True) / divisor**2 * x / length

    return x / divisor, back


def in_format(form: str, *numbers: float) -> tuple[float, ...]:
    """Numbers rounded to a format; "": as they are."""
    return tuple(float(round_to(np.asarray(one), FORMATS[form])) for one in numbers) if form else numbers


def kept_of(kept: Kept, u: Array, v: Array) -> tuple[Array, Array]:
    """The rows that a backward reads."""
    form = FORMATS[kept.form]
    images = round_to(u, form) if kept.what in ("images", "images and texts") else u
    texts = round_to(v, form) if kept.what in ("texts", "images and texts") else v
    return images, texts
