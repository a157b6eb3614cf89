"""The loss in chunks: the same numbers, and never as much memory as all logits."""

import tracemalloc

import numpy as np
import pytest
from recipe import drawn

from siglip_ref.siglip2 import RECIPE
from siglip_ref.siglip2.token_loss import log_sum_exp

SHAPES = {"states": (4, 50, 8), "kernel": (8, 5000), "bias": (5000,)}


def _all(rows: int | None, columns: int | None, smoothing: float = 0.1) -> list[np.ndarray]:
    arrays = [drawn(shape, i) for i, shape in enumerate(SHAPES.values())]
    labels = np.random.default_rng(9).integers(0, 5000, (4, 50))
    out, cache = RECIPE.token_loss.forward(*arrays, labels, smoothing, rows, columns)
    return [out, *RECIPE.token_loss.backward(drawn(out.shape, 5), cache)]


@pytest.mark.parametrize(("rows", "columns"), [(7, None), (None, 999), (64, 1250), (1, 5000), (200, 1)])
def test_chunks_change_rounding_only(rows: int | None, columns: int | None) -> None:
    for whole, part in zip(_all(None, None), _all(rows, columns), strict=True):
        assert np.abs(whole - part).max() <= 1e-13 * np.abs(whole).max()


def test_all_logits_at_once_are_never_there() -> None:
    """200 tokens and 5,000 words are 8 MB of logits; in chunks forward and backward together stay below a tenth."""
    peaks = []
    for rows, columns in ((None, None), (20, 250)):
        tracemalloc.start()
        _all(rows, columns)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    logits = 8 * 200 * 5000
    own = 3 * 8 * 8 * 5000  # the output layer, its gradient, and the gradient's parts before they are joined
    assert peaks[0] > 2 * logits
    assert peaks[1] < own + logits / 10


def test_logits_far_out_stay_finite() -> None:
    blocks = [np.array([[-1e4, 3.0]]), np.array([[1e4, -np.inf]])]
    assert log_sum_exp(blocks) == 1e4
    out, cache = RECIPE.token_loss.forward(
        np.full((1, 1, 1), 1e4), np.array([[1.0, -1.0]]), np.zeros(2), np.ones((1, 1), int), 0.0, None, 1
    )
    d_states, *_ = RECIPE.token_loss.backward(np.ones((1, 1)), cache)
    assert out == 2e4 and d_states == 2.0
