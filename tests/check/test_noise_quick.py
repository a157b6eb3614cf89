"""The noise that is measured in milliseconds, held to the one that emulates every rounding."""

from functools import partial

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.call.frameworks import Setting
from siglip_ref.check.engine.expected.expected import CONVENTIONS, Convention, exact_loss, given_of
from siglip_ref.check.engine.expected.probes import POINTS, Point, make_probe
from siglip_ref.check.engine.expected.repeated import MIDDLE, repeated_probe
from siglip_ref.check.engine.expected.repeated_noise import distinct_noise
from siglip_ref.check.engine.expected.tolerance import SAFETY, _loss, measured_noise
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise.measure import DROWNED, Noise, announce
from siglip_ref.noise.quick import quick_noise

SHAPE = (64, 24)
# All points that are not drawn for their shape.
CHOSEN = [point for point in POINTS if point.shape[1] < 100 and point.name not in ("one pair", "many pairs")]


def both(point: Point, convention: Convention, dtype: str) -> tuple[Noise, Noise, LossAndGrads]:
    """Measured quickly, and with every rounding emulated."""
    probe, given = make_probe(point, SHAPE, dtype, dtype), given_of(convention, Setting(dtype, dtype, "cpu", False))
    exact = exact_loss(probe, convention)
    scale = probe.scale if given.linear else probe.log_scale
    arrays = {"image_embed": probe.image_embed, "text_embed": probe.text_embed}
    numbers = {"scale": np.array(scale), "bias": np.array(probe.bias)}
    quick = quick_noise(partial(_loss, given), arrays | numbers, exact._asdict(), dtype)
    return quick, measured_noise(given, *arrays.values(), scale, probe.bias, exact, few=False), exact


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("point", CHOSEN, ids=lambda point: point.name)
@pytest.mark.sampled(4)
def test_it_is_what_emulation_gives(point: Point, dtype: str) -> None:
    for convention in (CONVENTIONS[0], CONVENTIONS[5]):
        quick, full, exact = both(point, convention, dtype)
        assert quick.overflows == full.overflows
        for name, level in full.absolute.items():
            size = np.abs(getattr(exact, name)).max()
            drowned = SAFETY * level.max() > DROWNED * size
            if drowned:  # how deep does not matter
                assert SAFETY * quick.absolute[name].max() > DROWNED * size / 4, name
                continue
            # right losses use half of what is allowed at most, see test_loss_torch.py, so 0.5 will do
            assert 0.5 < quick.absolute[name].max() / level.max() < 2.5, name
            ratio = np.divide(quick.absolute[name], level, out=np.ones_like(level), where=level > 0)
            assert np.median(ratio) > 0.5 and ratio.min() > 0.2, name


def test_large_batches_too() -> None:
    probe = repeated_probe(MIDDLE, {"batch": 128, "dim": 32}, "float32", "float32")
    assert probe is not None
    given = given_of(CONVENTIONS[0], Setting("float32", "float32", "cpu", False))
    quick, full = distinct_noise(given, probe, quick=True), distinct_noise(given, probe)
    for name, level in full.absolute.items():
        assert 0.7 < np.median(quick.absolute[name] / level) < 3, name


def test_nothing_is_said_of_what_takes_milliseconds(capfd: pytest.CaptureFixture[str]) -> None:
    announce.cache_clear()
    assert sr.check_loss(sr.sigmoid_loss, "numpy", dims={"batch": 64, "dim": 32}).passed
    assert capfd.readouterr().err == ""
