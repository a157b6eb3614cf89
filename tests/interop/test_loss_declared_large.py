"""Large batches of declared variants: their truth from few distinct rows, and what is judged there."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from declared_losses import JAX, TORCH, VARIANTS, objective_of

import siglip_ref as sr
from siglip_ref.check.call import resources
from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.engine.expected.captions import with_captions
from siglip_ref.check.engine.expected.convention import Objective, as_given
from siglip_ref.check.engine.expected.exact import exact_loss, proven
from siglip_ref.check.engine.expected.expected import conventions_of, given_of, noise_of
from siglip_ref.check.engine.expected.labelled import labelled_loss, text_order
from siglip_ref.check.engine.expected.repeated import MIDDLE, Repeated, repeated_probe
from siglip_ref.check.engine.expected.tolerance import loss_noise

LABELLED = {name: how for name, how in VARIANTS.items() if objective_of(how[1]).labelled}


def large(name: str, pairs: int, dtype: str = "float64") -> tuple[Repeated, Objective]:
    """Some more pairs than there are distinct ones."""
    probe = repeated_probe(replace(MIDDLE, shape=(pairs, 14)), None, dtype, dtype)
    assert probe is not None
    objective = objective_of(VARIANTS[name][1])
    return with_captions(probe, objective.per_image), objective  # type: ignore[return-value]  # of the same kind


@pytest.mark.parametrize("name", LABELLED)
def test_few_distinct_rows_give_what_all_pairs_give(name: str) -> None:
    probe, objective = large(name, 263)
    for convention in conventions_of(objective)[:3:2]:
        computed = partial(objective.computed, captions=probe.text_embed)
        whole = as_given(computed, convention.normalises, convention.linear)
        wanted = whole(probe.image_embed, probe.text_embed, np.array(probe.log_scale), np.array(probe.bias))
        for one, other in zip(exact_loss(probe, convention), wanted, strict=True):
            assert np.shape(one) == np.shape(other)
            assert np.abs(one - other).max() <= 1e-13 * np.abs(other).max()


@pytest.mark.parametrize("name", ["captions", "two captions, columns, mean", "smoothing"])
def test_its_gradients_of_few_rows_agree_with_complex_step(name: str) -> None:
    """Along directions in which all copies of a row move alike."""
    probe, objective = large(name, 140)
    loss = labelled_loss(probe, objective, np.asarray)
    at = probe.image_embed, probe.text_embed, np.array(probe.log_scale), np.array(probe.bias)
    rng, copies = np.random.default_rng(5), (probe.order, text_order(probe), (), ())
    for place, (value, d_value) in enumerate(zip(at, loss(*at)[1:], strict=True)):
        for _ in range(3):
            direction = rng.standard_normal(value.shape)[copies[place]]
            moved = [one + 1e-30j * direction if number == place else one + 0j for number, one in enumerate(at)]
            wanted = loss(*moved).loss.imag / 1e-30
            assert abs((d_value * direction).sum() - wanted) <= 1e-13 * np.abs(d_value * direction).sum()


@pytest.mark.parametrize("name", ["captions", "ids"])
def test_a_large_truth_is_proven_by_balls(name: str) -> None:
    probe, objective = large(name, 140)
    convention = conventions_of(objective)[0]
    found, right = exact_loss(probe, convention)._asdict(), proven(probe, convention)._asdict()
    assert not [key for key in right if not np.array_equal(found[key], right[key])]


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.sampled(2)
def test_a_large_batch_has_noise_of_its_size(name: str) -> None:
    """Beside the noise that all pairs show where they are computed: neither a small part of it nor far more."""
    probe, objective = large(name, 263, "float32")
    convention, setting = conventions_of(objective)[0], Setting("float32", "float32", "cpu", False)
    exact = exact_loss(probe, convention)
    found = noise_of(probe, convention, setting, exact).absolute
    rows = probe.image_embed, probe.text_embed, probe.log_scale, probe.bias
    measured = loss_noise(given_of(convention, setting), *rows, exact).absolute
    for key in ("d_image_embed", "d_text_embed"):
        assert 0.5 < np.median(found[key] / measured[key]) < 25
    assert all(0.02 < found[key] / measured[key] < 10 for key in ("loss", "d_log_scale", "d_bias"))


@pytest.mark.parametrize("name", ["captions", "ids", "rows", "three captions"])
def test_what_is_wrong_beyond_a_tile_is_found_in_a_variant(name: str) -> None:
    """Images beyond the thousandth have no gradient."""
    fn, declared = VARIANTS[name]

    def cut(x: Any, *others: Any) -> Any:
        return fn(TORCH, torch.cat([x[:1000], x[1000:].detach()]), *others, False)

    assert sr.check_loss(partial(fn, TORCH, wrong=False), "torch", **declared).notes[0].endswith("up to 1,151 pairs")
    report = sr.check_loss(cut, "torch", **declared)
    assert report.verdict == "FAIL" and "beyond-a-tile" in [finding.id for finding in report.findings], report


@pytest.mark.nightly
@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("name", ["captions", "ids", "rows"])
def test_variants_at_a_real_size(name: str, library: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(
        partial(fn, TORCH if library == "torch" else JAX, wrong=False), library, size="real", **declared
    )
    assert report.passed and "4,100 pairs" in report.notes[0], report
    assert report.smallest_tolerance < 3


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "dtype"), [("ids", "float64"), ("pairs", "float32"), ("rows", "bfloat16"), ("columns", "float16")]
)
def test_a_tile_that_is_dropped_at_a_real_size_fails(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SECONDS", 1e9)  # however busy the machine is
    fn, declared = VARIANTS[name]

    def dropped(x: Any, *others: Any) -> Any:
        return fn(TORCH, torch.cat([x[:1024], x[1024:].detach()]), *others, False)

    right = sr.check_loss(partial(fn, TORCH, wrong=False), "torch", dtype, size="real", **declared)
    assert right.passed and right.smallest_tolerance < 3 and "4,100 pairs" in right.notes[0], right
    report = sr.check_loss(dropped, "torch", dtype, size="real", **declared)
    assert report.verdict == "FAIL" and "beyond-a-tile" in [finding.id for finding in report.findings], report


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "dtype"), [("ids", "float64"), ("pairs", "float32")])
def test_a_mean_over_one_pair_more_at_a_real_size_fails(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SECONDS", 1e9)  # however busy the machine is
    fn, declared = VARIANTS[name]

    def mean(x: Any, *others: Any) -> Any:
        return fn(TORCH, x, *others, False) * (len(x) / (len(x) + 1) if len(x) > 1200 else 1)

    report = sr.check_loss(mean, "torch", dtype, size="real", **declared)
    assert report.verdict == "FAIL" and "beyond-a-tile" in [finding.id for finding in report.findings], report
