"""The noise of models that ships: complete, of this arithmetic, as measured here; and nothing else is taken for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.sizes import config
from siglip_ref.check.model import noise_table
from siglip_ref.check.model.measured import noise as making
from siglip_ref.check.model.noise import measured_noise
from siglip_ref.check.model.probe import model_probe
from siglip_ref.noise.measure import announce

TINY = config("tiny")
PROBE = model_probe(TINY, 4, "float32")


def test_what_ships_is_complete_current_and_as_measured_here() -> None:
    assert making.verify(2, seed=7) == [], "siglip-ref noise regenerate"


def test_standard_models_are_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    announce.cache_clear()
    for conventions in PRESETS.values():
        cfg = replace(TINY, conventions=conventions)
        assert measured_noise(PROBE, cfg, conventions, "float32").measured
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["weight", "dtype", "convention", "caption"])
def test_what_differs_in_anything_is_not_found(what: str) -> None:
    """One bit of one weight is enough."""
    probe, conventions, dtype = PROBE, TINY.conventions, "float32"
    assert noise_table.find(probe, TINY, conventions, dtype)
    if what == "weight":
        changed = np.nextafter(probe.params["bias"], np.float32(9))
        probe = replace(probe, params=probe.params | {"bias": changed})
    elif what == "caption":
        probe = replace(probe, tokens=probe.tokens[::-1])
    elif what == "convention":
        conventions = replace(conventions, text_norm_eps=1e-5)
    else:
        dtype = "bfloat16"
    assert noise_table.find(probe, TINY, conventions, dtype) is None  # type: ignore[arg-type]


def test_what_does_not_ship_is_measured_with_one_line_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    announce.cache_clear()
    probe = replace(PROBE, tokens=PROBE.tokens[::-1])
    for _ in range(2):
        assert measured_noise(probe, TINY, TINY.conventions, "float32").relative["loss"] > 0
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "float32" in said.err


def test_another_arithmetic_closes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    noise_table._known.cache_clear()
    monkeypatch.setattr(noise_table, "stamp_of_models", lambda: "another")
    assert noise_table.find(PROBE, TINY, TINY.conventions, "float32") is None
    noise_table._known.cache_clear()


@pytest.mark.parametrize(("factor", "seen"), [(1.0, False), (1.2, False), (1.7, True), (0.6, True)])
def test_verify_sees_numbers_that_are_off(factor: float, seen: bool, tmp_path: Path) -> None:
    mark, entries = noise_table.read(noise_table.FILE)
    off = {key: ({n: x * factor for n, x in noise.items()}, over) for key, (noise, over) in entries.items()}
    noise_table.write(tmp_path / "off.json", mark, off)
    assert bool(making.verify(1, file=tmp_path / "off.json")) == seen


def test_verify_sees_what_is_missing(tmp_path: Path) -> None:
    mark, entries = noise_table.read(noise_table.FILE)
    del entries[next(iter(entries))]
    noise_table.write(tmp_path / "less.json", mark, entries)
    assert [line[:8] for line in making.verify(0, file=tmp_path / "less.json")] == ["no entry"]
