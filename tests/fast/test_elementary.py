"""The polynomials keep their bounds, the limits and NaN: on dense samples, and nightly on every float32 there is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.special import ndtr

from siglip_ref.fast.machine.compile import kernel
from siglip_ref.fast.machine.elementary import exp_nonpositive, log1p_unit, normal_cdf, sigmoid, softplus_and_sigmoid


@kernel()
def _exp_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = exp_nonpositive(x[i])


@kernel()
def _log1p_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = log1p_unit(x[i])


@kernel()
def _sigmoid_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = sigmoid(x[i])


@kernel()
def _softplus_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = softplus_and_sigmoid(x[i])[0]


@kernel()
def _gate_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = softplus_and_sigmoid(x[i])[1]


@kernel()
def _cdf_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = normal_cdf(x[i])


def exact_sigmoid(z: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(z))
    return np.where(z > 0, 1, decay) / (1 + decay)


def exact_softplus(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


class Function(NamedTuple):
    run: Any
    exact: Callable[[np.ndarray], np.ndarray]
    low: float  # arguments from here to `high`
    high: float
    bound: float  # in units of the result's last place, or (relative=False) of the last place of 1
    relative: bool = True


EVERYTHING = (-np.inf, np.inf)
FUNCTIONS = {
    "exp": Function(_exp_all, np.exp, -np.inf, 0.0, 2),
    "log1p": Function(_log1p_all, np.log1p, 0.0, 1.0, 2),
    "sigmoid": Function(_sigmoid_all, exact_sigmoid, *EVERYTHING, 3),
    "softplus": Function(_softplus_all, exact_softplus, *EVERYTHING, 2),
    "derivative of softplus": Function(_gate_all, exact_sigmoid, *EVERYTHING, 3),
    # scipy.special.ndtr has float64 at best, whose own error is far below the bound
    "normal distribution": Function(_cdf_all, lambda x: ndtr(x.astype(np.float64)), *EVERYTHING, 2.5, relative=False),
}
KINDS = [np.float32, np.float64]


def largest_error(function: Function, x: np.ndarray, wider: type) -> float:
    """In the bound's units; NaN must be where it belongs, infinity too."""
    out = np.empty_like(x)
    with np.errstate(all="ignore"):
        function.run(x, out)
        truth = function.exact(x.astype(wider))
        unit = np.spacing(np.abs(truth.astype(x.dtype))) if function.relative else np.finfo(x.dtype).eps
        error = np.where(out == truth, 0, np.abs(out - truth) / unit)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))
    return float(error[~np.isnan(x)].max(initial=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_on_dense_samples(name: str, kind: type) -> None:
    function = FUNCTIONS[name]
    low, high = max(function.low, -120.0), min(function.high, 120.0)
    tiny = np.logspace(-45, 0, 100_001)
    x = np.concatenate([np.linspace(low, high, 1_000_001), low * tiny, high * tiny, [low, high]]).astype(kind)
    assert largest_error(function, x, np.longdouble) <= function.bound


@pytest.mark.parametrize("kind", KINDS)
def test_limits(kind: type) -> None:
    x = np.array([-np.inf, -1e30, -1e4, -0.0, 0.0, np.nan], kind)
    out = np.empty_like(x)
    _exp_all(x, out)
    np.testing.assert_array_equal(out, np.exp(x))


def test_small_results_are_not_flushed() -> None:
    x, out = np.array([-100.0, -103.0], np.float32), np.empty(2, np.float32)
    _exp_all(x, out)
    np.testing.assert_array_equal(out, np.exp(x))
    x64, out64 = np.array([-740.0, -745.0]), np.empty(2)
    _exp_all(x64, out64)
    np.testing.assert_array_equal(out64, np.exp(x64))


@pytest.mark.nightly
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_on_every_float32(name: str) -> None:
    """All 2^32 bit patterns, or as many of them as lie where the function is used."""
    function = FUNCTIONS[name]
    for start in range(0, 1 << 32, 1 << 22):
        x = np.arange(start, start + (1 << 22), dtype=np.uint32).view(np.float32)
        x = x[~((x < function.low) | (x > function.high))]
        assert largest_error(function, x, np.float64) <= function.bound, hex(start)
