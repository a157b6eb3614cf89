"""The comparison itself: what passes, what fails, and that a NaN never passes."""

import numpy as np
import pytest

from siglip_ref.report.compare import compare, wrong_rows


def test_error_is_relative_to_the_tensors_maximum() -> None:
    row = compare("x", np.array([4.0, 1.0]), np.array([4.0, 0.5]), 0.2)
    assert row.error == 0.125 and row.verdict == "pass"
    assert compare("x", np.array([4.0, 1.0]), np.array([4.0, 0.5]), 0.1).verdict == "FAIL"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("zero_scale", [None, 1.0])
@pytest.mark.parametrize("tolerance", [1e-6, np.inf])
def test_nothing_that_is_not_finite_passes(bad: float, zero_scale: float | None, tolerance: float) -> None:
    expected = np.zeros(3) if zero_scale else np.ones(3)
    got = expected.copy()
    got[1] = bad
    row = compare("x", got, expected, tolerance, zero_scale=zero_scale)
    assert row.verdict == "FAIL" and "of 3 NaN or infinite" in row.note and row.rows.startswith("element 1")


def test_nan_everywhere_and_expected_nan_fail_too() -> None:
    assert compare("x", np.full(3, np.nan), np.full(3, np.nan), 1.0).verdict == "FAIL"
    assert compare("x", np.array(np.inf), np.array(np.inf), 1.0).verdict == "FAIL"


def test_scale_ratio_and_cosine_name_a_factor() -> None:
    expected = np.random.default_rng(0).standard_normal((5, 3))
    row = compare("x", expected / 4, expected, 1e-6)
    assert row.ratio == pytest.approx(0.25) and row.cosine == pytest.approx(1.0) and row.rows == "every row"


def test_alignment_survives_extreme_magnitudes() -> None:
    row = compare("x", np.array([3e-200, 4e-200]), np.array([3e200, 4e200]), 1e-6)
    assert row.cosine == pytest.approx(1.0)


def test_zero_by_structure_is_judged_by_the_size_of_its_terms() -> None:
    noise = np.array([1e-17, -2e-18])
    assert compare("x", noise, np.zeros(2), 1e-15, zero_scale=1.0).verdict == "zero by structure"
    assert compare("x", noise + 1e-3, np.zeros(2), 1e-15, zero_scale=1.0).verdict == "FAIL"


def test_a_zero_tensor_without_a_scale_must_be_zero() -> None:
    assert compare("x", np.zeros(2), np.zeros(2), 1e-6).verdict == "pass"
    assert compare("x", np.full(2, 1e-30), np.zeros(2), 1e-6).verdict == "FAIL"


def test_tolerances_may_differ_from_element_to_element() -> None:
    expected = np.array([[1e6], [1.0]])
    got = expected + np.array([[1.0], [1e-2]])
    assert compare("x", got, expected, 2e-6).verdict == "pass"
    row = compare("x", got, expected, np.array([[2e-6], [1e-9]]))
    assert row.verdict == "FAIL" and row.rows == "row 1 wrong, the rest right"


def test_a_wrong_shape_fails_with_both_shapes_named() -> None:
    row = compare("x", np.zeros((2, 3)), np.zeros((3, 2)), 1.0)
    assert row.verdict == "FAIL" and "(2, 3), expected (3, 2)" in row.note


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (np.s_[64:128], "rows 64-127 wrong, the rest right"),
        (np.s_[[0, 5, 7]], "rows 0, 5, 7 wrong, the rest right"),
        (np.s_[::2], "rows 0, 2, 4 ... (64 of 128) wrong, the rest right"),
        (np.s_[:, 3:5], "columns 3-4 wrong, the rest right"),
        (np.s_[:], "every row"),
    ],
)
def test_wrong_rows_in_words(where: object, words: str) -> None:
    wrong = np.zeros((128, 6), bool)
    wrong[where] = True
    assert wrong_rows(wrong) == words


def test_with_tolerances_by_element_what_is_allowed_is_the_error_that_would_just_pass() -> None:
    expected, tolerance = np.array([1e6, 1.0]), np.array([2e-6, 1e-9])
    row = compare("x", expected + np.array([0.1, 1e-2]), expected, tolerance)
    assert row.verdict == "FAIL" and row.excess == pytest.approx(10)
    shrunk = compare("x", expected + np.array([0.1, 1e-2]) * (0.99 * row.tolerance / row.error), expected, tolerance)
    assert shrunk.verdict == "pass" and shrunk.excess == pytest.approx(0.99)


def test_of_elements_below_what_is_allowed_it_is_not_said_that_they_are_right() -> None:
    expected = np.array([[1.0, 2.0, 1e-9], [1.0, 2.0, 1e-9]])
    assert compare("x", 2 * expected, expected, 1e-6).rows == "columns 0-1 wrong, the rest too small to tell"
    assert compare("x", 2 * expected, expected, 1e-12).rows == "every row"
    expected[1, 2] = 1.0
    assert compare("x", expected * [2, 2, 1], expected, 1e-6).rows == "columns 0-1 wrong, the rest right"
    assert compare("x", np.array([2.0, 0.0]), np.array([1.0, 0.0]), np.array([1e-6, 0.0])).rows.endswith("rest right")
