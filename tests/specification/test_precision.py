"""Each operation returns the precision it was given, forward and backward."""

import numpy as np
import pytest
from cases import MODEL_CASES, OP_CASES, TOWER_CASES, Case

from siglip_ref import UsageError, ops, sigmoid_loss
from siglip_ref.ops.elementary import number, pi, sigmoid, softplus

ALL = OP_CASES + TOWER_CASES + MODEL_CASES


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128], ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_precision_is_kept(case: Case, dtype: type) -> None:
    arrays = {name: np.asarray(value, dtype) for name, value in case.arrays.items()}
    out = case.forward(arrays)
    assert out.dtype == dtype
    gradients = case.backward(arrays, np.ones(out.shape, dtype))
    assert {name: g.dtype for name, g in gradients.items()} == {name: np.dtype(dtype) for name in arrays}


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_inputs_are_left_alone(case: Case) -> None:
    before = {name: np.array(value) for name, value in case.arrays.items()}
    out = case.forward(case.arrays)
    case.backward(case.arrays, np.ones(np.shape(out)))
    assert all((before[name] == case.arrays[name]).all() for name in before)


def test_every_op_is_in_the_table() -> None:
    """A pair without a case would be an unproven gradient."""
    tested = {case.name.split()[0] for case in OP_CASES}
    pairs = {name.removesuffix("_backward").split("_")[0] for name in ops.__all__ if name.endswith("_backward")}
    assert pairs <= tested | {"map"}


def test_float32_agrees_with_float64() -> None:
    for case in ALL:
        narrow = case.forward({name: np.asarray(value, np.float32) for name, value in case.arrays.items()})
        wide = case.forward(case.arrays)
        assert np.abs(narrow - wide).max() <= 3e-5 * np.abs(wide).max(), case.name


def test_softplus_and_sigmoid_at_their_limits() -> None:
    z = np.array([-np.inf, -800.0, -40.0, 0.0, 40.0, 800.0, np.inf, np.nan])
    with np.errstate(all="raise", under="ignore"):
        assert softplus(z)[[0, 1, 5, 6]].tolist() == [0, 0, 800, np.inf]
        assert softplus(z)[2] == np.exp(-40.0)
        assert softplus(z)[3] == np.log(2.0)
        assert sigmoid(z)[[0, 1, 3, 4, 6]].tolist() == [0, 0, 0.5, 1, 1]
        assert sigmoid(z)[2] == np.exp(-40.0)
    assert np.isnan(softplus(z)[-1]) and np.isnan(sigmoid(z)[-1])


def test_numbers_take_the_arithmetic_at_hand() -> None:
    assert pi(np.zeros(2, np.float32)) == np.float32(np.pi)
    assert pi(np.zeros(2)) == np.pi
    assert number(3, np.zeros((2, 2), np.complex128)).dtype == np.complex128


def test_a_scalar_of_another_precision_does_not_widen_the_loss() -> None:
    rows = np.eye(3, dtype=np.float32)
    result = sigmoid_loss(rows, rows, np.array([np.log(10.0)]), -10.0)
    assert {np.asarray(x).dtype for x in result} == {np.dtype(np.float32)}
    with pytest.raises(UsageError, match="paired row by row"):
        sigmoid_loss(rows, rows[:2], 0.0, 0.0)
