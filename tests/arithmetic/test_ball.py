"""Balls hold what they should hold, and certify rounds as it says."""

import math
from fractions import Fraction

import numpy as np
import pytest
from cases import MODEL_CASES, OP_CASES, TOWER_CASES, Case
from flint import arb

from siglip_ref.arithmetic.ball import (
    Balls,
    UndecidedError,
    balls,
    certify,
    middle,
    nearest,
    overlap,
    precision,
    radius,
)
from siglip_ref.ops.elementary import sigmoid, softplus


@pytest.mark.parametrize("case", OP_CASES + TOWER_CASES + MODEL_CASES, ids=lambda case: case.name)
def test_the_specification_runs_unchanged(case: Case) -> None:
    """Forward and backward at 200 and 300 bits enclose one another's results, tightly, and float64 is close."""
    results = []
    d_out = np.random.default_rng(1).standard_normal(np.shape(case.forward(case.arrays)))
    for bits in (200, 300):
        with precision(bits):
            arrays = {name: balls(value) for name, value in case.arrays.items()}
            results.append({"out": case.forward(arrays)} | case.backward(arrays, balls(d_out)))
            assert all(isinstance(value, Balls) and radius(value) < 1e-35 for value in results[-1].values())
    floats = {"out": case.forward(case.arrays)} | case.backward(case.arrays, d_out)
    for name, value in results[0].items():
        assert overlap(value, results[1][name])
        unit = max(1e-3, np.abs(floats[name]).max())
        assert np.abs(middle(value) - floats[name]).max() <= 1e-11 * unit


def test_matmul_is_the_exact_product() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 3, 5)), rng.standard_normal((4, 5, 2))
    with precision(400):
        product = balls(x) @ y
    assert product.shape == (2, 4, 3, 2)
    for i in np.ndindex(product.shape):
        a, b = x[i[0], 0, i[2]], y[i[1], :, i[3]]
        exact = sum(Fraction(p) * Fraction(q) for p, q in zip(a, b, strict=True))
        assert radius(product) == 0
        man, exp = product[i].mid().man_exp()
        assert Fraction(int(man)) * Fraction(2) ** int(exp) == exact


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (Fraction(1, 3), Fraction(1, 3) + Fraction(1, 10**30), 1 / 3),
        (1 + Fraction(1, 2**53), 1 + Fraction(1, 2**53), 1.0),  # a tie goes to even
        (1 + Fraction(3, 2**53), 1 + Fraction(3, 2**53), 1 + 2**-51),
        (1 + Fraction(1, 2**53) - Fraction(1, 10**40), 1 + Fraction(1, 2**53) + Fraction(1, 10**40), None),
        (Fraction(3, 2**1076), Fraction(3, 2**1076), 2.0**-1074),  # below the normal range
        (Fraction(1, 10**400), Fraction(2, 10**400), 0.0),
        (Fraction(10**309), Fraction(10**309) + 1, math.inf),
        (Fraction(-1, 10**30), Fraction(1, 10**30), None),
    ],
)
def test_nearest(low: Fraction, high: Fraction, wanted: float | None) -> None:
    with precision(2000):
        centre, half = (low + high) / 2, (high - low) / 2
        ball = arb(centre.numerator) / centre.denominator
        assert nearest(arb(ball.mid(), arb(half.numerator) / half.denominator)) == wanted


def test_nearest_of_what_is_no_number() -> None:
    assert nearest(arb.nan()) is None
    assert nearest(1 / arb(0, 1)) is None


def test_certify_raises_precision_until_it_knows() -> None:
    near_tie = 1 + Fraction(1, 2**53) + Fraction(1, 2**300)
    found = certify(lambda: {"x": balls(near_tie.numerator) / balls(near_tie.denominator), "third": 1 / balls(3)})
    assert found["x"].value == 1 + 2**-52  # just above the tie
    assert found["x"].bits > found["third"].bits
    assert found["third"].value == 1 / 3


def test_certify_names_what_it_cannot_decide() -> None:
    with pytest.raises(UndecidedError, match="difference"):
        certify(lambda: {"sum": balls(1), "difference": _almost_zero()})


def test_zero_by_structure_is_declared_and_still_proven() -> None:
    found = certify(lambda: {"d_bias": _almost_zero()}, zero={"d_bias": "softmax does not see a shift"})
    assert found["d_bias"].value == 0
    with pytest.raises(UndecidedError):
        certify(lambda: {"d_bias": _almost_zero() + 1e-50}, zero={"d_bias": "it is not"})


def test_undecided_where_holds_both_branches() -> None:
    wide = balls(np.array([arb(0, 1), arb(2), arb(-2)], object))
    chosen = np.where(wide > 0, 10, 20)
    assert all(chosen[0].contains(v) for v in (10, 20))
    assert [float(v) for v in chosen[1:]] == [10, 20]
    for function, at_ends in ((softplus, (0.31, 1.32)), (sigmoid, (0.268, 0.732))):
        assert all(function(wide)[0].contains(arb(v)) for v in at_ends)


def test_maximum_raises_when_undecided() -> None:
    with pytest.raises(UndecidedError):
        np.maximum(balls(np.array([arb(0, 1)], object)), 0.5)
    assert [float(v) for v in np.maximum(balls(np.array([1.0, 2.0])), 1.5)] == [1.5, 2.0]


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(TypeError):
        np.sin(balls(np.ones(2)))


def _almost_zero() -> Balls:
    root = np.sqrt(balls(2))
    return root * root - 2
