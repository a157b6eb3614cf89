"""Rows of zeros are beyond a loss that asks for unit rows, or makes them so again; any other must be right there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.loss.zero_rows import NORMALISES, REFUSES

Loss = Callable[..., tuple[Any, ...]]


def again(image: bool = True, text: bool = True, guard: bool = False) -> Loss:
    """Normalises what it is given, without the gradient of that: right for unit rows."""

    def unit(rows: Any) -> tuple[Any, Any]:
        length = np.linalg.norm(rows, axis=-1, keepdims=True)
        length = np.maximum(length, rows.dtype.type(1e-12)) if guard else length
        with np.errstate(all="ignore"):
            return rows / length, length

    def fn(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        (x, of_x), (y, of_y) = unit(x) if image else (x, 1), unit(y) if text else (y, 1)
        loss, d_x, d_y, *rest = sr.sigmoid_loss(x, y, log_scale, bias)
        with np.errstate(all="ignore"):
            return loss, d_x / of_x, d_y / of_y, *rest

    return fn


def asserting(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
    for rows in (x, y):
        assert np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-2), "rows must be unit"
    return tuple(sr.sigmoid_loss(x, y, log_scale, bias))


def wrong_at_zero_rows(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
    """Takes rows of zeros for padding, which SigLIP's loss does not know."""
    loss, d_x, d_y, *rest = sr.sigmoid_loss(x, y, log_scale, bias)
    return loss, np.where((x == 0).all(-1, keepdims=True), 0, d_x), d_y, *rest


def raising_at_zero_rows(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
    if (x == 0).all(-1).any():
        raise ValueError("a row of zeros")
    return tuple(sr.sigmoid_loss(x, y, log_scale, bias))


RIGHT = {
    "both sides": (again(), NORMALISES),
    "images": (again(text=False), NORMALISES),
    "texts": (again(image=False), NORMALISES),
    "guarded": (again(guard=True), NORMALISES),
    "asserting": (asserting, REFUSES),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_loss_of_unit_rows_passes_and_what_was_not_judged_is_said(name: str, dtype: str) -> None:
    fn, reason = RIGHT[name]
    report = sr.check_loss(fn, "numpy", dtype)
    assert report.passed, report
    assert report.not_checked == [f"rows of zeros (B=9, D=20): {reason}"]
    assert not any("zeros" in row.probe for row in report.details)


@pytest.mark.parametrize("fn", [wrong_at_zero_rows, raising_at_zero_rows])
def test_a_loss_that_takes_rows_as_they_are_must_be_right_at_zeros(fn: Loss) -> None:
    report = sr.check_loss(fn, "numpy")
    assert report.verdict == "FAIL" and not report.not_checked
    assert {row.probe for row in report.details if row.verdict == "FAIL"} == {"rows of zeros (B=9, D=20)"}


def test_a_mistake_elsewhere_is_not_excused() -> None:
    def fn(*inputs: Any) -> tuple[Any, ...]:
        loss, d_x, *rest = again()(*inputs)
        return loss, 1.01 * d_x, *rest

    assert sr.check_loss(fn, "numpy").verdict == "FAIL"
