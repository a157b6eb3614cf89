"""Rows as a loss takes them and as its backward reads them, and numbers rounded on the way."""

from collections.abc import Callable
from functools import partial

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.derive.formula import Kept, Rows
from siglip_ref.check.diagnosis.functions.mapped import mapped_rows
from siglip_ref.check.diagnosis.functions.recorded import Recorded, Way, with_way_back
from siglip_ref.check.diagnosis.functions.written import Of, written
from siglip_ref.ops.elementary import Array

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


def rows_of(rows: Rows, x: Array) -> tuple[Array, Way]:
    """What goes into the product, and the way back."""
    return with_way_back(partial(_made, rows), x)


def _made(rows: Rows, x: Recorded) -> Recorded:
    x = mapped_rows(rows.mapped, x, rows.cut) if rows.mapped else x
    x = x.at(ORDERS[rows.order](len(x))) if rows.order else x
    if rows.kind == "as given":
        return x
    of, axis = divisor_of(rows.kind), None if rows.kind == "whole matrix" else 1
    length = (x * x).sum(axis).root
    divisor = (length.held if rows.detached else length).each(lambda r: of(r, rows.eps))
    if not rows.undivided:
        return x / divisor
    along = 0 if rows.detached else (x / length).value
    way = x, lambda d: d - (d * along).sum(axis, keepdims=True) * along
    return Recorded((x / divisor).value, way)


def in_format(form: str, *numbers: float) -> tuple[float, ...]:
    """Numbers rounded to a format; "": as they are."""
    return tuple(float(round_to(np.asarray(one), FORMATS[form])) for one in numbers) if form else numbers


def kept_of(kept: Kept, u: Array, v: Array) -> tuple[Array, Array]:
    """The rows that a backward reads."""
    form = FORMATS[kept.form]
    images = round_to(u, form) if kept.what in ("images", "images and texts") else u
    texts = round_to(v, form) if kept.what in ("texts", "images and texts") else v
    return images, texts
