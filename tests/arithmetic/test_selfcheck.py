"""The self-check passes here, and each of its steps can fail."""

import math

import numpy as np
import pytest

from siglip_ref.use import selfcheck


def test_it_passes_and_tells_its_steps() -> None:
    seen: list[str] = []
    results = selfcheck.selfcheck(seen.append)
    assert seen == [result.what for result in results] == list(selfcheck.STEPS)
    assert [result for result in results if result.passed is False] == []
    proofs = ("complex step", "dual numbers over balls", "a certified number", "mistakes put in")
    assert all(result.passed is True for result in results if result.what in proofs)
    assert "numpy" in results[0].detail


@pytest.mark.parametrize("name", ["images", "text/token", "image/pool/attn/v/kernel", "log_scale"])
def test_a_wrong_gradient_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = selfcheck.gradients
    monkeypatch.setattr(selfcheck, "gradients", lambda *a: (g := right(*a)) | {name: g[name] * (1 + 1e-9)})
    passed, detail = selfcheck.STEPS["complex step"]()
    assert passed is False and name in detail
    assert selfcheck.STEPS["dual numbers over balls"]()[0] is False


def test_a_number_that_is_not_the_nearest_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "CERTIFIED_LOSS", math.nextafter(selfcheck.CERTIFIED_LOSS, 3))
    assert selfcheck.STEPS["a certified number"]()[0] is False


def test_a_mistake_that_does_not_show_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "MISTAKES", ("label-sign", "log-of-sigmoid"))
    passed, detail = selfcheck.STEPS["mistakes put in"]()
    assert passed is False and "not log-of-sigmoid" in detail


def test_nan_is_an_error() -> None:
    assert selfcheck._error(np.array(math.nan), np.array(1.0)) == math.inf
