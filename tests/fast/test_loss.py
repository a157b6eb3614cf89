"""The swept loss against the specification: any size, precision, layout, match and number of threads."""

import math
import tracemalloc
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from noise import assert_within_noise

from siglip_ref import fast, ops
from siglip_ref.fast.loss import SIDE
from siglip_ref.model.loss import sigmoid_loss

KINDS = [np.float32, np.float64]


def unit_rows(seed: int, rows: int, width: int, kind: type) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(kind)


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(1, 70),
    width=st.integers(1, 40),
    kind=st.sampled_from(KINDS),
    tile=st.sampled_from([1, 5, 16, None]),
    scale=st.sampled_from([1.0, 10.0, 117.0]),
    bias=st.sampled_from([-16.0, -10.0, -1.5, 4.0]),
    strided=st.booleans(),
)
@example(2, 2, np.float64, 1, 117.0, -10.0, False)  # the bias's gradient is -1 + 1 and a rest of 1e-43
def test_whole_loss(
    pairs: int, width: int, kind: type, tile: int | None, scale: float, bias: float, strided: bool
) -> None:
    x, y = unit_rows(1, pairs, width, kind), unit_rows(2, pairs, width, kind)
    if strided:
        x, y = np.asfortranarray(x), np.repeat(y, 2, axis=0)[::2]

    def twin(*inputs: Any) -> Any:
        return tuple(sigmoid_loss(*inputs, tile=tile, ops=fast))

    def specification(*inputs: Any) -> Any:
        return tuple(sigmoid_loss(*inputs))

    z = scale * (np.float64(x) @ np.float64(y).T) + bias
    gates = ops.sigmoid(np.where(np.eye(pairs, dtype=bool), -z, z))
    terms = {"[3]": float((gates * np.abs(z - bias)).sum() / pairs), "[4]": float(gates.sum() / pairs)}
    assert_within_noise(twin, specification, x, y, np.array(math.log(scale), kind), np.array(bias, kind), terms=terms)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    kind=st.sampled_from(KINDS),
)
def test_block_with_any_match(rows: int, columns: int, density: float, kind: type) -> None:
    x, y = unit_rows(1, rows, 7, kind), unit_rows(2, columns, 7, kind)
    match = np.random.default_rng(3).random((rows, columns)) < density
    log_scale, bias = np.array(math.log(10), kind), np.array(-2.0, kind)
    assert_within_noise(fast.pair_block, ops.pair_block, x, y, log_scale, bias, match)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_scale", [-math.inf, -200.0, 0.0, math.log(1e4), 1000.0, math.nan])
@pytest.mark.parametrize("bias", [-math.inf, -1e4, -95.0, 0.0, 1e4, math.inf, math.nan])
def test_extremes_have_the_specification_answers(kind: type, log_scale: float, bias: float) -> None:
    x, y = unit_rows(1, 9, 4, kind), unit_rows(2, 9, 4, kind)
    with np.errstate(all="ignore"):
        wanted = sigmoid_loss(x, y, log_scale, bias)
        found = sigmoid_loss(x, y, log_scale, bias, ops=fast)
    for got, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4 * np.abs(exact[np.isfinite(exact)]).max(initial=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e-42])
def test_one_strange_number(kind: type, value: float) -> None:
    x, y = unit_rows(1, 9, 4, kind), unit_rows(2, 9, 4, kind)
    x[3, 2] = value
    with np.errstate(all="ignore"):
        wanted, found = sigmoid_loss(x, y, 2.0, -3.0), sigmoid_loss(x, y, 2.0, -3.0, ops=fast)
    for got, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("number", [1, 2])
def test_any_number_of_threads(number: int) -> None:
    before = numba.get_num_threads()
    x, y = unit_rows(1, 33, 5, np.float64), unit_rows(2, 33, 5, np.float64)
    try:
        numba.set_num_threads(min(number, numba.config.NUMBA_NUM_THREADS))
        found = sigmoid_loss(x, y, 2.0, -3.0, tile=8, ops=fast)
    finally:
        numba.set_num_threads(before)
    for got, exact in zip(found, sigmoid_loss(x, y, 2.0, -3.0), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sizes", [(700, 1100), (1100, 500), (481, 479)])
def test_texts_in_order_serve_all_tiles_of_their_columns(sizes: tuple[int, int]) -> None:
    x, y = (unit_rows(seed, rows, 70, np.float64) for seed, rows in enumerate(sizes))
    match = np.random.default_rng(0).random(sizes) < 0.01
    found, wanted = fast.pair_block(x, y, 2.0, -3.0, match), ops.pair_block(x, y, 2.0, -3.0, match)
    for got, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-11, atol=1e-12)


def test_complex_steps_go_to_the_specification() -> None:
    x, y = unit_rows(1, 5, 3, np.float64).astype(complex), unit_rows(2, 5, 3, np.float64).astype(complex)
    x[2, 1] += 1e-30j
    found, wanted = sigmoid_loss(x, y, 2.0, -3.0, ops=fast), sigmoid_loss(x, y, 2.0, -3.0)
    assert found.loss == wanted.loss
    assert found.loss.imag != 0


def test_nothing_of_the_size_of_all_pairs_is_stored() -> None:
    x, y = unit_rows(1, 4096, 8, np.float32), unit_rows(2, 4096, 8, np.float32)
    sigmoid_loss(x[:9], y[:9], 2.0, -3.0, ops=fast)
    tracemalloc.start()
    try:
        sigmoid_loss(x, y, 2.0, -3.0, ops=fast)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tiles = numba.get_num_threads() * SIDE * SIDE * 4  # and no strips, as these embeddings are narrow
    assert peak <= tiles + 2 * x.nbytes + 300_000
