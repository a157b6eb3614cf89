"""The proof of the backward passes: complex step has no truncation error, so a right gradient agrees to the end."""

import numpy as np
import pytest
from cases import MODEL_CASES, OP_CASES, TOWER_CASES, Case

from siglip_ref.arithmetic.complex_step import directional, gradient

TOLERANCE = 1e-13  # error relative to the tensor's maximum

# The key bias's gradient is zero by structure: what is printed there is rounding noise, judged against its terms.
ZERO_BY_STRUCTURE = "k/bias"


def errors(case: Case) -> dict[str, float]:
    """For every input tensor of the case, max |backward - complex step| / max |complex step|, all elements compared."""
    out = case.forward(case.arrays)
    d_out = np.random.default_rng(1).standard_normal(np.shape(out))
    computed = case.backward(case.arrays, d_out)
    assert computed.keys() == case.arrays.keys()
    result = {}
    for name, value in case.arrays.items():
        wanted = gradient(lambda a: (d_out * case.forward(a)).sum(), case.arrays, name)
        assert computed[name].shape == np.shape(value)
        scale = np.abs(computed[name.replace("k/bias", "q/bias")] if name.endswith(ZERO_BY_STRUCTURE) else wanted).max()
        result[name] = np.abs(computed[name] - wanted).max() / scale
    return result


def errors_along(case: Case) -> dict[str, float]:
    """The same of two random directions in each tensor: no element that is wrong by more hides, and it is quick."""
    rng = np.random.default_rng(2)
    out = case.forward(case.arrays)
    d_out = np.random.default_rng(1).standard_normal(np.shape(out))
    computed = case.backward(case.arrays, d_out)
    assert computed.keys() == case.arrays.keys()
    result = {}
    for name, value in case.arrays.items():
        assert computed[name].shape == np.shape(value)
        size = np.abs(
            computed[name.replace("k/bias", "q/bias")] if name.endswith(ZERO_BY_STRUCTURE) else computed[name]
        )
        found = []
        for way in rng.choice([-1.0, 1.0], (2, *np.shape(value))):
            wanted = directional(lambda a: (d_out * case.forward(a)).sum(), case.arrays, name, way)
            found.append(abs((computed[name] * way).sum() - wanted) / (size.max() * np.sqrt(size.size)))
        result[name] = np.max(found)
    return result


# Whole models under two more conventions element by element at night; along directions by day, as all of them.
NIGHTLY = {"model open_clip", "model huggingface"}
CASES = [
    pytest.param(case, marks=pytest.mark.nightly) if case.name in NIGHTLY else case
    for case in (*OP_CASES, *TOWER_CASES, *MODEL_CASES)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_backward_agrees_with_complex_step(case: Case) -> None:
    too_far = {name: error for name, error in errors(case).items() if not error <= TOLERANCE}
    assert not too_far


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
def test_a_whole_model_agrees_with_complex_step_along_directions(case: Case) -> None:
    too_far = {name: error for name, error in errors_along(case).items() if not error <= TOLERANCE}
    assert not too_far


def test_a_wrong_backward_is_seen() -> None:
    """The test above can fail: each tensor's gradient, off by one part in 10^12, is reported by name."""
    case = next(case for case in OP_CASES if case.name == "attention")
    for broken in (name for name in case.arrays if not name.endswith(ZERO_BY_STRUCTURE)):

        def backward(arrays: dict, d_out: np.ndarray, broken: str = broken) -> dict:
            right = case.backward(arrays, d_out)
            return right | {broken: right[broken] * (1 + 1e-12)}

        for look in (errors, errors_along):
            found = look(Case("broken", case.arrays, case.forward, backward))
            assert [name for name, error in found.items() if not error <= TOLERANCE] == [broken]


def test_nan_never_passes() -> None:
    case = next(case for case in OP_CASES if case.name == "softmax")
    broken = Case("nan", case.arrays, case.forward, lambda a, d_out: {"x": case.backward(a, d_out)["x"] * np.nan})
    for look in (errors, errors_along):
        assert not any(error <= TOLERANCE for error in look(broken).values())
