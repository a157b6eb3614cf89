"""A few dozen runs of benchmarks/false_alarms.py: right programs are not flagged, wrong ones are; both are counted."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import false_alarms_losses as losses
import false_alarms_models as models
import false_alarms_rounded as of_reference
import torch_losses
from false_alarms_count import Stratum, Trial, count, verdict_on
from false_alarms_page import page
from false_alarms_seeds import loss_order, model_order

import siglip_ref as sr
from siglip_ref.check.call.frameworks import load_framework
from siglip_ref.report.compare import compare, out_of_range


def require_silence(strata: list[Stratum], runs: int) -> None:
    for stratum in strata:
        assert stratum.flagged == 0, stratum.alarms
        assert stratum.runs >= runs, stratum
        assert 0 < stratum.worst <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast float16"])
def test_right_torch_losses(dtype: str) -> None:
    strata = count(losses.runs("torch", dtype, 4, probes=1))
    require_silence(strata, 4)
    assert sum(not s.known for s in strata) >= 15


def test_one_sure_pair_is_out_of_range_in_float64() -> None:
    """Its gradient is 1e-18, and sigmoid(l) - 1, as Torch's cross entropy has it, is zero: nobody's mistake."""
    for form in (losses.Form("", fn, losses.PLAIN, True) for fn in (torch_losses.plain, torch_losses.cross_entropy)):
        rows = dict(losses._drawn(form, load_framework("torch"), "float64", 15))["drawn 1014"](1000)[0]
        assert {row.verdict for row in rows} == {"out of range"}, rows


def test_right_numpy_and_jax_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, some in (("numpy", losses.numpy_forms()[:2]), ("jax", losses.jax_forms()[-3:-1])):
        monkeypatch.setitem(losses.FORMS, family, lambda some=some: some)
    require_silence(count(losses.runs("numpy", "float64", 4, probes=1)), 4)
    require_silence(count(losses.runs("jax", "bfloat16", 2, probes=1)), 2)


@pytest.mark.parametrize("regime", ["tf32", "bfloat16"])
def test_the_reference_in_rounded_arithmetic(regime: str) -> None:
    require_silence(count(of_reference.runs(regime, 8)), 8)


@pytest.mark.parametrize(("name", "dtype"), [("Hugging Face, sdpa", "bfloat16"), ("torch encoder layers", "float64")])
def test_right_models(name: str, dtype: str) -> None:
    require_silence(count(models.runs(name, dtype, 4, probes=0)), 2)


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [
        (torch_losses.negatives_missing, "float32"),
        (torch_losses.text_detached, "bfloat16"),
        (torch_losses.quarter, "bfloat16"),
    ],
)
def test_a_wrong_loss_is_flagged(wrong: object, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = losses.Form("wrong", wrong, losses.PLAIN, False)  # type: ignore[arg-type]
    monkeypatch.setitem(losses.FORMS, "torch", lambda: [form])
    [stratum] = count(losses.runs("torch", dtype, 20, probes=2))
    assert stratum.flagged >= stratum.runs / 2 and stratum.alarms


def test_a_wrong_model_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    make, conventions = models.MODELS["torch encoder layers"]

    def spoilt(cfg: sr.Config) -> object:
        adapter = make(cfg)
        adapter.model.text.norm.eps = 1e-4  # type: ignore[attr-defined]
        return adapter

    monkeypatch.setitem(models.MODELS, "torch encoder layers", (spoilt, conventions))
    [stratum] = count(models.runs("torch encoder layers", "float32", 2, probes=0))
    assert stratum.flagged == stratum.runs > 0


def test_runs_are_counted_honestly() -> None:
    right, edge = (compare("loss", np.array(1 + off), np.array(1.0), 1e-3) for off in (0.0, 9e-4))
    nan = compare("bias", np.array(np.nan), np.array(1.0), 1e-3)
    outside = out_of_range("scale", "gradient", "")
    trials = [
        Trial("a: b", "float32", "v", seed, False, rows, verdict_on(rows))
        for seed, rows in enumerate(([right, outside], [right, edge], [right, nan], [outside]))
    ]
    [stratum] = count(trials)
    assert (stratum.runs, stratum.flagged, stratum.out_of_range) == (3, 1, 1)
    assert stratum.worst == np.inf and "seed 2: bias" in stratum.alarms[0] and stratum.bound == 1.0
    assert "1 of 3" in page({"piece": ([stratum], 1.0)}, {}, 1000)
    assert "seed 2: bias" in page({"piece": ([stratum], 1.0)}, {}, 1000)


def test_orders_come_back() -> None:
    """There and back is the identity; there alone is not, on any axis whose order means nothing."""
    rows, order = np.random.default_rng(0).standard_normal((6, 9)), loss_order(1001, (6, 9))
    assert np.array_equal(order.back(order.there(rows)), rows) and not np.array_equal(order.there(rows), rows)
    cfg = sr.config("tiny")
    of_model = model_order(1001, cfg, 4)
    for name, tensor in sr.init(cfg, seed=0).items():
        moved = of_model.there(name, tensor)
        assert np.array_equal(of_model.back(name, moved), tensor)
        assert moved.ndim == 0 or np.ptp(tensor) == 0 or not np.array_equal(moved, tensor), name
