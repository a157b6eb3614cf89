"""The polynomials keep their bound of 2 ulp, the limits and NaN."""

from typing import Any

import numpy as np
import pytest

from siglip_ref.fast.compile import kernel
from siglip_ref.fast.elementary import exp_nonpositive, log1p_unit


@kernel()
def _exp_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = exp_nonpositive(x[i])


@kernel()
def _log1p_all(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = log1p_unit(x[i])


FUNCTIONS = {"exp": (_exp_all, np.exp, -104), "log1p": (_log1p_all, np.log1p, 1)}
KINDS = [np.float32, np.float64]


def largest_error(run: Any, exact: Any, x: np.ndarray, wider: type) -> float:
    """In units of the spacing of floating-point numbers at the exact result."""
    out = np.empty_like(x)
    run(x, out)
    truth = exact(x.astype(wider))
    spacing = np.spacing(np.abs(truth.astype(x.dtype)))
    return float((np.abs(out - truth) / spacing).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_ulp_on_dense_samples(name: str, kind: type) -> None:
    run, exact, end = FUNCTIONS[name]
    x = np.concatenate([np.linspace(0, end, 1_000_001), np.sign(end) * np.logspace(-40, 0, 100_001)]).astype(kind)
    assert largest_error(run, exact, x, np.longdouble) <= 2


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
def test_two_ulp_on_every_float32(name: str) -> None:
    """Every float32 of the range: exp from -104 to 0, log1p from 0 to 1."""
    run, exact, end = FUNCTIONS[name]
    first = 0x80000000 if end < 0 else 0
    last = int(np.float32(end).view(np.uint32))
    for start in range(first, last + 1, 1 << 24):
        x = np.arange(start, min(start + (1 << 24), last + 1), dtype=np.uint32).view(np.float32)
        assert largest_error(run, exact, x, np.float64) <= 2
