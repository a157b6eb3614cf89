"""The truth of every standard probe: proven by balls, whatever the machine; and the arithmetic that finds it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flint import arb, ctx

from siglip_ref.arithmetic.double_double import DoubleDouble, double_double
from siglip_ref.check.engine.expected.exact import exact_loss, proven
from siglip_ref.check.engine.expected.expected import CONVENTIONS, Convention
from siglip_ref.check.engine.expected.probes import MANY, Probe, loss_probes, points_of
from siglip_ref.check.engine.expected.repeated import MIDDLE, REAL, repeated_probe
from siglip_ref.model.loss import sigmoid_loss

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], float]] = {
    "exp": (np.exp, arb.exp, -30.0),
    "log": (np.log, arb.log, 1e-3),
    "log1p": (lambda x: np.log1p(np.exp(x)), lambda x: x.exp().log1p(), -300.0),
    "sqrt": (np.sqrt, arb.sqrt, 1e-3),
    "quotient": (lambda x: 1 / (x * x), lambda x: 1 / (x * x), 1e-3),
}


@pytest.fixture
def many_bits() -> Any:
    before, ctx.prec = ctx.prec, 300
    yield
    ctx.prec = before


def error(got: DoubleDouble, exact: list[Any]) -> float:
    """The largest relative error, as a power of two."""
    pairs = zip(got.high.ravel(), got.low.ravel(), exact, strict=True)
    return float(np.log2(max(float(abs((arb(float(h)) + arb(float(low)) - e) / e).mid()) for h, low, e in pairs)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_double_double_has_95_bits(name: str, many_bits: None) -> None:
    ours, theirs, lowest = FUNCTIONS[name]
    upper = 0.0 if name == "log1p" else 30.0
    x = np.random.default_rng(1).uniform(lowest, upper, 500)
    assert error(ours(double_double(x)), [theirs(arb(float(v))) for v in x]) < -95


def test_products_are_as_exact_whatever_multiplies_them(many_bits: None) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((5, 131)), rng.standard_normal((131, 4))
    grown = [[arb(float(v)).exp() for v in row] for row in x], [[arb(float(v)).exp() for v in row] for row in y]
    exact = [sum((grown[0][i][k] * grown[1][k][j] for k in range(131)), arb(0)) for i in range(5) for j in range(4)]
    assert error(np.exp(double_double(x)) @ np.exp(double_double(y)), exact) < -100


def probes_of(convention: Convention, dtype: str) -> list[Probe]:
    small = loss_probes(
        points_of(convention.embeddings, dtype), None, dtype, "float32" if dtype == "bfloat16" else dtype
    )
    large = [repeated_probe(point, None, dtype, dtype) for point in (MIDDLE, REAL)]
    return [*small[0], *(probe for probe in large if probe is not None)]


def differing(probe: Probe, convention: Convention) -> list[str]:
    """Tensors that are not the correctly rounded ones, bit for bit."""
    found, right = exact_loss(probe, convention)._asdict(), proven(probe, convention)._asdict()
    return [name for name in right if not np.array_equal(found[name], right[name])]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_truths_of_small_probes_are_proven(dtype: str) -> None:
    for convention in CONVENTIONS[:1]:
        for probe in probes_of(convention, dtype):
            if probe.image_embed.size < np.prod(MANY):
                assert not differing(probe, convention), probe.label


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_truths_of_all_standard_probes_are_proven(convention: Convention, dtype: str) -> None:
    for probe in probes_of(convention, dtype):
        assert not differing(probe, convention), probe.label


def test_the_test_above_sees_one_wrong_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CONVENTIONS[0]
    probe = probes_of(plain, "float64")[0]
    right = exact_loss(probe, plain)
    other = right._replace(loss=np.nextafter(right.loss, np.inf))
    monkeypatch.setattr("test_exact.exact_loss", lambda probe, convention: other)
    assert differing(probe, plain) == ["loss"]


@pytest.mark.parametrize("convention", CONVENTIONS[:1] + CONVENTIONS[2:3], ids=str)
def test_repeated_rows_are_the_plain_loss_of_all_rows(convention: Convention) -> None:
    probe = repeated_probe(replace(MIDDLE, shape=(300, 14)), None, "float64", "float64")
    assert probe is not None
    found = exact_loss(probe, convention)
    if convention.embeddings == "unit":
        plain = sigmoid_loss(probe.image_embed, probe.text_embed, np.array(probe.log_scale), np.array(probe.bias))
    else:
        spelled = Probe(probe.name, probe.image_embed, probe.text_embed, probe.log_scale, probe.scale, probe.bias)
        plain = exact_loss(spelled, convention)
    for one, other in zip(found, plain, strict=True):
        assert np.abs(one - other).max() <= 1e-13 * np.abs(other).max()
