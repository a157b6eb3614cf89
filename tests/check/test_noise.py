"""The noise that tolerances are made of: every kind of run counts, and a change of its size does not go unseen."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from siglip_ref.arithmetic.rounded import FORMATS, rounded
from siglip_ref.check.engine.expected.tolerance import SAFETY, Given, loss_noise
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.noise import measure as noise_module
from siglip_ref.noise.measure import FLOAT64, LIBRARY, REGIMES, TIMES, measure, variants
from siglip_ref.vectors.power import measured
from siglip_ref.vectors.store import packaged

UNIT = FORMATS["float32"].unit


def sums(a: dict[str, Any], ops: Any) -> dict[str, Any]:
    return {"y": a["x"].sum()}


def exponentials(a: dict[str, Any], ops: Any) -> dict[str, Any]:
    return {"y": np.exp(a["x"])}


def test_the_noise_is_the_largest_error_of_all_variants() -> None:
    x = np.random.default_rng(0).integers(-200, 200, 300) / 256
    found = measure(sums, {"x": x}, {"y": x.sum()}, "bfloat16", seed=3).absolute["y"]
    errors = [abs(float(rounded(x, way).sum()) - x.sum()) for way, _ in variants(REGIMES["bfloat16"], seed=3)]
    assert found == max(*errors, 2.0**-8 * x.sum()) > max(errors) / 2 > 0


@pytest.mark.parametrize(("regime", "few"), [("float32", False), ("float32", True), ("bfloat16", False)])
def test_every_kind_of_run_is_there(regime: str, few: bool) -> None:
    runs = list(variants(REGIMES[regime], few=few))
    assert {way.order for way, _ in runs} == {"sequential", "reversed", "pairwise"}
    assert {way.fma for way, _ in runs} == {True, False}
    assert {way.library for way, _ in runs} == {0.0, -LIBRARY, LIBRARY}
    assert sum(way.random is not None for way, _ in runs) >= (7 if few else 28)
    assert len({id(ops) for _, ops in runs}) >= len(noise_module.LOSS_FORMS) * (1 if few else 2) + 1


def test_terms_that_round_alike_are_not_taken_for_random() -> None:
    """3000 equal numbers: errors of a running sum add up, far beyond what stochastic rounding shows."""
    x = np.full(3000, float(np.float32(1 / 3)))
    found = measure(sums, {"x": x}, {"y": x.sum()}, "float32").absolute["y"] / x.sum()
    random = [way for way, _ in variants(REGIMES["float32"]) if way.random]
    stochastic = max(abs(float(rounded(x, way).sum()) / x.sum() - 1) for way in random)
    assert found > 5 * stochastic > 0


def test_a_row_that_chance_spared_gets_half_of_what_the_worst_row_shows() -> None:
    x = np.full((6, 3000), float(np.float32(1 / 3)))
    x[5] = 1  # whole numbers: no sum of them is ever rounded
    exact = {"y": x.sum(-1, keepdims=True)}
    found = measure(lambda a, ops: {"y": a["x"].sum(-1, keepdims=True)}, {"x": x}, exact, "float32", by_row=True)
    level = found.absolute["y"].ravel()
    assert level[5] == level[:5].max() / 2 and level[5] / 3000 > 10 * UNIT


def test_rows_that_rounding_drowns_are_no_measure_for_others() -> None:
    """Where most pairs are sure and right, most rows are rounding alone; others are judged as sharply as ever."""
    size = np.array([1.0, 0.9, 1e-2, 1e-9, 1e-10, 1e-11])[:, None]
    noise = np.array([1e-7, 1e-9, 4e-9, 1e-8, 2e-8, 3e-8])[:, None]
    lifted = noise_module._none_spared(noise, size)
    assert lifted.ravel().tolist() == pytest.approx([1e-7, 5e-8, 4e-9, 1e-8, 2e-8, 3e-8])


def test_functions_of_another_library_count() -> None:
    x = np.linspace(0.5, 1, 64)
    found = measure(exponentials, {"x": x}, {"y": np.exp(x)}, "float32").absolute["y"] / np.exp(1)
    assert LIBRARY * UNIT <= found <= (LIBRARY + 2) * UNIT


def test_a_result_is_rounded_at_least_once() -> None:
    found = measure(lambda a, ops: {"y": a["x"] * 1}, {"x": np.ones(3)}, {"y": np.ones(3)}, "bfloat16")
    assert found.absolute["y"] >= 2.0**-8


def test_float64_is_float32_scaled() -> None:
    x = np.random.default_rng(0).integers(1, 200, 300) / 256
    single, double = (measure(sums, {"x": x}, {"y": x.sum()}, f).absolute["y"] for f in ("float32", "float64"))
    assert double == single * FLOAT64
    assert 2 * FORMATS["float64"].unit / UNIT == FLOAT64


def test_rows_have_their_own_noise() -> None:
    x = np.array([[1.0, 3.0], [1e-3, 3e-3]])
    found = measure(lambda a, ops: {"y": a["x"] / 7}, {"x": x}, {"y": x / 7}, "float32", by_row=True).absolute["y"]
    assert found.shape == (2, 1) and found[0, 0] > 100 * found[1, 0] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_noise(value: float) -> None:
    """It leaves the range, and allows nobody else anything."""
    found = measure(lambda a, ops: {"y": a["x"] * value}, {"x": np.ones(2)}, {"y": np.ones(2)}, "float32")
    assert found.overflows == {"y"} and found.absolute["y"] < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["loss/balanced-b6-d13", "loss/trained-b11-d5"])
def test_a_loss_is_allowed_what_its_golden_vector_is(name: str, dtype: str) -> None:
    """Two ways to the same noise: `loss_noise`, row by row, and measured.json, by tensor."""
    vector = packaged().find(name)
    inputs, packed = vector.inputs, measured().noise_of(vector, dtype)
    scalars = float(inputs["log_scale"]), float(inputs["bias"])
    exact = sigmoid_loss(inputs["image_embed"], inputs["text_embed"], *map(np.asarray, scalars))
    found = loss_noise(Given(None, False, dtype, dtype), inputs["image_embed"], inputs["text_embed"], *scalars, exact)
    for tensor, level in packed.items():
        ratio = found.absolute[tensor].max() / vector.unit(tensor) / level
        luck = 4.0 if vector.expected[tensor].ndim == 0 else 1.6  # a single number's noise is luck, too
        assert 1 / luck < ratio < luck, tensor


def excess_of_a_stranger(dtype: str) -> float:
    """A correct loss in an arithmetic that no variant has, in units of what is allowed."""
    vector = packaged().find("loss/balanced-b6-d13")
    x, y, log_scale, bias = (vector.inputs[n] for n in ("image_embed", "text_embed", "log_scale", "bias"))
    exact = sigmoid_loss(x, y, log_scale, bias)
    found = loss_noise(Given(None, False, dtype, dtype), x, y, float(log_scale), float(bias), exact)
    way = replace(REGIMES[dtype].rounding, order="reversed", fma=True, library=-2.0)
    got = sigmoid_loss(*(rounded(v, way) for v in (x, y, log_scale, bias)), tile=4)
    pairs = zip(got._asdict().items(), exact, strict=True)
    return max(float(np.max(np.abs(np.asarray(v) - e) / found.absolute[n])) for (n, v), e in pairs) / SAFETY


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_correct_stranger_uses_some_of_what_is_allowed_and_at_most_half(dtype: str) -> None:
    assert 0.03 < excess_of_a_stranger(dtype) <= 0.5
    assert SAFETY == TIMES


@pytest.mark.parametrize(("factor", "seen"), [(1.0, False), (0.05, True), (20.0, True)])
def test_the_test_above_sees_noise_that_is_off(factor: float, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the measurement, and it fails: both ways."""
    right = noise_module.measure

    def broken(*given: Any, **options: Any) -> Any:
        found = right(*given, **options)
        return replace(found, absolute={name: level * factor for name, level in found.absolute.items()})

    from siglip_ref.check.engine.expected import tolerance

    tolerance._measured.cache_clear()
    monkeypatch.setattr(tolerance, "measure", broken)
    excess = excess_of_a_stranger("float32")
    tolerance._measured.cache_clear()
    assert (not 0.03 < excess <= 0.5) == seen
