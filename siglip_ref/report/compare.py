"""Two tensors side by side: error, scale ratio, cosine, and which rows are wrong. A NaN never passes."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from siglip_ref.ops.elementary import Array

Kind = Literal["value", "activation", "gradient"]
RowVerdict = Literal["pass", "FAIL", "zero by structure", "out of range", "not checked"]
# What is the matter with a row, beside how far it is off; "" where nothing is, or where that is all.
Trouble = Literal[
    "",
    "not finite",  # where correct rounding is
    "no numbers",  # complex numbers, objects, text
    "shape",
    "no gradient",  # none arrived
    "modified",  # an input, written to by the call
    "refused",  # the call raised, though the same shapes had worked
    "overflows",  # even with correct rounding
    "underflows",
    "drowned",  # in the rounding of correct programs
]


@dataclass(frozen=True)
class Row:
    """One tensor of a report.

    error : max|got - expected| / max|expected|; for a tensor that is zero by structure, max|got| / zero_scale
    tolerance : the largest error allowed, in the same unit
    noise : the error that correct programs show, in the same unit; not a number where nothing was measured
    ratio : least-squares scale <got, expected> / <expected, expected>; cosine : of the angle between them
    rows : the rows that are wrong, in words; probe : the inputs at which this was seen
    trouble : what is the matter with it, as data; note : the same in words, and more
    """

    name: str
    kind: Kind
    error: float
    tolerance: float
    ratio: float
    cosine: float
    rows: str
    verdict: RowVerdict
    note: str = ""
    probe: str = ""
    noise: float = float("nan")
    trouble: Trouble = ""

    @property
    def times(self) -> float:
        """Error in units of noise: the smallest multiple that would let this tensor pass; not a number without noise.

        Errors that are not finite are infinitely many times the noise.
        """
        if math.isnan(self.noise):
            return math.nan
        quotient = self.error / self.noise if self.noise else (0.0 if self.error == 0 else math.inf)
        return quotient if quotient <= math.inf else math.inf

    @property
    def right(self) -> bool:
        """Checked, and found right."""
        return self.verdict in ("pass", "zero by structure")

    @property
    def excess(self) -> float:
        """Error in units of what is allowed; infinite where the error is not a number."""
        quotient = self.error / self.tolerance if self.tolerance else (0.0 if self.error == 0 else np.inf)
        return float(quotient) if quotient <= np.inf else float("inf")


def compare(
    name: str,
    got: Array,
    expected: Array,
    tolerance: float | Array,
    *,
    kind: Kind = "gradient",
    zero_scale: float | None = None,
    note: str = "",
    probe: str = "",
    noise: float | Array | None = None,
) -> Row:
    """Judge one tensor.

    Parameters
    ----------
    name, kind, note, probe : carried into the row
    got, expected : arrays of one shape, any float dtype; judged in float64
    tolerance : largest allowed |got - expected| / max|expected|; a number, or an array of their shape, by element
    zero_scale : given where the tensor is zero by structure: |got| may reach tolerance * zero_scale, the sum of the
        absolute values of its terms, because what any program prints there is rounding
    noise : what correct programs show, in the unit of the tolerance; a number or an array by element

    Examples
    --------
    >>> row = compare("bias", np.array([1.0, 2.0]), np.array([1.0, 4.0]), 1e-6)
    >>> row.verdict, row.error, row.rows
    ('FAIL', 0.5, 'element 1 wrong, the rest right')
    """
    expected = np.asarray(expected, np.float64)
    unfit: tuple[Trouble, str] | None = None
    if not _real(got):
        unfit = "no numbers", f"{np.asarray(got).dtype}, not real numbers"
    elif np.shape(got) != expected.shape:
        unfit = "shape", f"shape {np.shape(got)}, expected {expected.shape}"
    if unfit:
        nan = float("nan")
        limits = float(np.max(tolerance)), float(nan if noise is None else np.max(noise))
        return Row(name, kind, nan, limits[0], nan, nan, "", "FAIL", _join(unfit[1], note), probe, limits[1], unfit[0])
    got = np.asarray(got, np.float64)
    with np.errstate(all="ignore"):
        unit = float(zero_scale if zero_scale is not None else np.max(np.abs(expected), initial=0.0))
        off = np.abs(got - expected)
        # a tensor that is right to the last bit has error 0 even where the unit is 0
        relative = np.where(off == 0, 0.0, off / unit)
        error = float(np.max(relative, initial=0.0))
        good = (relative <= tolerance) & np.isfinite(off)  # NaN fails the first, infinity the second
        allowed = _allowed(relative, tolerance, error)
        level = _allowed(relative, noise, error) if noise is not None else float("nan")
        ratio, cosine = _alignment(got, expected)
    if zero_scale is not None:
        verdict: RowVerdict = "zero by structure" if good.all() else "FAIL"
        note = _join(note, "any program shows rounding noise here")
    else:
        verdict = "pass" if good.all() else "FAIL"
    trouble: Trouble = "" if np.isfinite(got).all() else "not finite"
    note = _join(f"{np.sum(~np.isfinite(got))} of {got.size} NaN or infinite", note) if trouble else note
    spared = np.multiply(tolerance, unit)
    # where less than what is spared is expected nothing at all would pass, too
    telling = (np.abs(expected) > spared) | (spared == 0) if zero_scale is None else None
    where = wrong_rows(~good, telling)
    return Row(name, kind, error, allowed, ratio, cosine, where, verdict, note, probe, level, trouble)


def _real(values: Array) -> bool:
    """Whether these are real numbers; NumPy calls 16-bit floats that are not its own "void"."""
    kind = np.asarray(values).dtype
    return kind.kind in "fiub" or kind.name.startswith(("bfloat16", "float8"))


def _allowed(relative: Array, tolerance: float | Array, error: float) -> float:
    """The error at which this deviation, grown or shrunk as a whole, would just pass: `tolerance` itself if it is one
    number; else what the element that is worst in its own units leaves of it."""
    if np.ndim(tolerance) == 0 or not 0 < error < np.inf:
        return float(np.max(tolerance))
    used = np.max(np.where(relative == 0, 0.0, relative / tolerance))
    return float(error / used)


def not_checked(name: str, kind: Kind, reason: str, probe: str = "") -> Row:
    """The row of a tensor that could not be judged."""
    nan = float("nan")
    return Row(name, kind, nan, nan, nan, nan, "", "not checked", reason, probe)


def out_of_range(name: str, kind: Kind, reason: str, probe: str = "", trouble: Trouble = "overflows") -> Row:
    """The row of a tensor for which even correctly rounded arithmetic overflows or underflows."""
    nan = float("nan")
    return Row(name, kind, nan, nan, nan, nan, "", "out of range", reason, probe, trouble=trouble)


def wrong_rows(wrong: Array, telling: Array | None = None) -> str:
    """Which rows of a boolean array hold a True, in words; columns where that says more.

    telling : elements whose being right says something; None: all

    >>> wrong_rows(np.repeat([False, True], 64)[:, None] & np.ones(5, bool))
    'rows 64-127 wrong, the rest right'
    """
    if wrong.ndim == 0 or not wrong.any():
        return ""
    telling = np.ones_like(wrong) if telling is None else telling
    if wrong.ndim == 1:
        return "every element" if wrong.all() else _ranges(wrong, "element", telling)
    within_row, above = tuple(range(1, wrong.ndim)), tuple(range(wrong.ndim - 1))
    rows, columns = wrong.any(within_row), wrong.any(above)
    if not rows.all():
        return _ranges(rows, "row", telling.any(within_row))
    return _ranges(columns, "column", telling.any(above)) if not columns.all() else "every row"


def _ranges(wrong: Array, word: str, telling: Array) -> str:
    return f"{places(wrong, word)} wrong, {'the rest right' if telling[~wrong].any() else 'the rest too small to tell'}"


def places(marked: Array, word: str) -> str:
    """Runs of True as 'rows 3, 8-11'; with many runs only the first three and a count."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marked, [False]))))
    runs = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in zip(edges[::2], edges[1::2], strict=True)]
    many = "s" if marked.sum() > 1 else ""
    listed = f"{', '.join(runs[:3])} ... ({marked.sum()} of {marked.size})" if len(runs) > 4 else ", ".join(runs)
    return f"{word}{many} {listed}"


def _alignment(got: Array, expected: Array) -> tuple[float, float]:
    """Least-squares scale and cosine; each tensor is first divided by its maximum, so that squares keep their range."""
    top_got, top_expected = np.max(np.abs(got), initial=0.0), np.max(np.abs(expected), initial=0.0)
    a, b = (got / (top_got or 1.0)).ravel(), (expected / top_expected).ravel()
    return float(top_got / top_expected * ((a @ b) / (b @ b))), float((a @ b) / np.sqrt((a @ a) * (b @ b)))


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
