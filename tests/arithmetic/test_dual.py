"""The rigorous proof of every backward pass: two enclosures of one derivative, from two derivations, overlap."""

from dataclasses import replace

import numpy as np
import pytest
from cases import MODEL_CASES, OP_CASES, TOWER_CASES, Case

from siglip_ref.arithmetic.ball import Balls, balls, overlap, precision, radius
from siglip_ref.arithmetic.dual import difference_quotient, directional

BITS = 200
FAST = [*OP_CASES, *TOWER_CASES, MODEL_CASES[0]]
SLOW = MODEL_CASES[1:]


def disproved(case: Case) -> list[str]:
    """The input tensors whose backward gradient, along a random direction, misses the dual number's derivative."""
    rng = np.random.default_rng(2)
    with precision(BITS):
        arrays = {name: balls(value) for name, value in case.arrays.items()}
        d_out = balls(rng.standard_normal(np.shape(case.forward(case.arrays))))
        computed = case.backward(arrays, d_out)
        return [name for name in arrays if not _agree(case, arrays, name, computed[name], d_out, rng)]


def _agree(case: Case, arrays: dict, name: str, gradient: Balls, d_out: Balls, rng: np.random.Generator) -> bool:
    direction = balls(rng.standard_normal(arrays[name].shape))
    forward = (directional(case.forward, arrays, name, direction) * d_out).sum()
    backward = (gradient * direction).sum()
    return overlap(forward, backward) and radius(forward) < 1e-35 and radius(backward) < 1e-35


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
@pytest.mark.sampled(2)
def test_backward_is_proven(case: Case) -> None:
    assert disproved(case) == []


@pytest.mark.nightly
@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_backward_is_proven_in_other_conventions(case: Case) -> None:
    assert disproved(case) == []


def test_a_wrong_backward_is_disproved() -> None:
    """An error of one part in 10^30 in a single tensor is seen, and named."""
    case = next(case for case in OP_CASES if case.name == "layer norm")
    for broken in case.arrays:

        def backward(arrays: dict, d_out: Balls, broken: str = broken) -> dict:
            right = case.backward(arrays, d_out)
            return right | {broken: right[broken] * (1 + 1 / balls(10**30))}

        assert disproved(replace(case, backward=backward)) == [broken]


@pytest.mark.parametrize("case", [*OP_CASES, *TOWER_CASES[:2]], ids=lambda case: case.name)
def test_difference_quotients_agree_to_60_digits(case: Case) -> None:
    assert worst_quotient(case) <= 1e-60


@pytest.mark.nightly
@pytest.mark.parametrize("case", [*TOWER_CASES[2:], *MODEL_CASES], ids=lambda case: case.name)
def test_difference_quotients_agree_to_60_digits_in_whole_models(case: Case) -> None:
    assert worst_quotient(case) <= 1e-60


def worst_quotient(case: Case) -> float:
    """Dual number against a witness that knows no rule of differentiation: max |difference| / max |derivative|.

    In 400 bits a step h = 1e-34 truncates at h^2 = 1e-68 and leaves 86 digits of the difference. A derivative that is
    zero by structure is measured absolutely.
    """
    rng = np.random.default_rng(3)
    worst = 0.0
    with precision(400):
        step = 1 / balls(10**34)
        for name, value in case.arrays.items():
            direction = rng.standard_normal(value.shape)
            exact = directional(case.forward, case.arrays, name, direction)
            quotient = difference_quotient(case.forward, case.arrays, name, direction, step)
            off = max(float(abs(v).upper()) for v in (exact - quotient).flat)
            unit = max(float(abs(v).upper()) for v in exact.flat)
            worst = max(worst, off / unit if unit > 1e-60 else off)
    return worst
