"""The noise of losses that ships: complete, of this arithmetic, as measured here; and nothing else is taken for it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.engine.expected import expected, tolerance
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.tolerance import Given
from siglip_ref.check.loss.measured import noise as making
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise import table as noise_table
from siglip_ref.noise.measure import Noise, announce
from siglip_ref.noise.table import FACTOR, FILE, STEPS, Key, decode, encode, read, table, write

LARGEST = 600_000  # bytes of the file, which is read before the first check
wanted = cache(making.wanted)  # eight seconds, not at import


def steady() -> dict[Key, making.Wanted]:
    """Emulated, and in 16 bits: there another order of summation of the machine's float32 changes next to nothing."""
    return {key: one for key, one in wanted().items() if one.standard and one.setting.dtype in making.NARROW}


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a new process: nothing was measured, nothing said."""
    announce.cache_clear()
    tolerance._measured.cache_clear()
    table.cache_clear()
    yield
    table.cache_clear()


def test_what_ships_is_complete_current_and_as_measured_here() -> None:
    assert making.verify(0, asked=wanted()) == making.verify(6, seed=15, asked=steady()) == [], (
        "siglip-ref noise regenerate"
    )


def test_it_is_small() -> None:
    assert FILE.stat().st_size < LARGEST


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_standard_is_measured(dtype, fresh, capfd, monkeypatch) -> None:
    monkeypatch.setattr(tolerance, "measure", None)  # whoever measures fails
    assert sr.check_loss(sr.sigmoid_loss, framework="numpy", dtype=dtype).passed
    assert capfd.readouterr().err == ""


def test_other_shapes_are_measured_with_one_line_on_stderr(fresh, capfd) -> None:
    for _ in range(2):
        assert sr.check_loss(sr.sigmoid_loss, framework="numpy", dims=[(5, 6), (7, 6)]).passed
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "float32" in said.err


def key_of(given: Given, image_embed: np.ndarray, text_embed: np.ndarray, scale: float, bias: float) -> Key:
    """Of what a loss is given: the scale, or its logarithm."""
    return expected.key_of(Probe("", image_embed, text_embed, scale, scale, bias), given)


def inputs() -> tuple[tuple[Given, np.ndarray, np.ndarray, float, float], LossAndGrads]:
    entry = next(entry for entry in wanted().values() if entry.setting.dtype == "float32")
    return entry.asked, making.exact_loss(entry.probe, entry.convention)


@pytest.mark.parametrize("place", range(5))
def test_what_differs_in_one_bit_is_not_found(place: int) -> None:
    asked, exact = inputs()
    assert table().find(key_of(*asked), exact, "float32")
    changed = list(asked)
    if place == 0:
        changed[0] = replace(asked[0], scalars="float64")
    elif place < 3:
        changed[place] = asked[place].copy()
        changed[place].flat[0] = np.nextafter(changed[place].flat[0], 9)
    else:
        changed[place] = np.nextafter(asked[place], 9)
    assert table().find(key_of(*changed), exact, "float32") is None


def test_another_arithmetic_closes_the_table(fresh, monkeypatch) -> None:
    monkeypatch.setattr(noise_table, "stamp", lambda: "another")
    asked, exact = inputs()
    assert table().find(key_of(*asked), exact, "float32") is None


def test_the_stamp_is_of_what_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(noise_table, "PACKAGE", tmp_path)
    marks = []
    for text in ('"""Doc."""\nx = 1\n', '"""Other."""\nx = 1  # a comment\n', '"""Doc."""\nx = 2\n'):
        (tmp_path / "a.py").write_text(text)
        noise_table.stamp.cache_clear()
        marks.append(noise_table.stamp(("a.py",)))
    noise_table.stamp.cache_clear()
    assert marks[0] == marks[1] != marks[2]


def test_codes_are_right_to_an_eighth_of_an_octave() -> None:
    random = np.random.default_rng(0)
    rows = np.array([[1.0], [1e-30], [0.0], [1e20]]) * np.ones(3)
    exact = LossAndGrads(np.array(2.0), rows, rows, np.array(0.0), np.array(-3.0))
    shapes = {name: (len(x), 1) if np.ndim(x) else () for name, x in exact._asdict().items()}
    levels = {name: np.asarray(np.exp(random.normal(-20, 9, shape))) for name, shape in shapes.items()}
    levels["d_image_embed"][1] = 0
    noise = Noise(levels, frozenset({"loss", "d_bias"}))
    found = decode(*encode(noise, exact, "bfloat16"), exact, "bfloat16")
    assert found.overflows == noise.overflows
    for name, level in levels.items():
        assert found.absolute[name].shape == level.shape
        ratio = np.divide(found.absolute[name], level, out=np.ones_like(level), where=level > 0)
        assert np.all(np.abs(np.log2(ratio)) <= 0.5 / STEPS + 1e-9)
        assert np.array_equal(found.absolute[name] == 0, level == 0)


@pytest.mark.parametrize(("steps", "seen"), [(0, False), (1, False), (5, True), (-5, True)])
def test_verify_sees_numbers_that_are_off(steps: int, seen: bool, tmp_path: Path) -> None:
    mark, found = read(FILE)
    write(tmp_path / "off.npz", mark, replace(found, codes=found.codes + steps))
    lines = making.verify(2, file=tmp_path / "off.npz", asked=steady())
    assert bool(lines) == seen and 2.0 ** (1 / STEPS) < FACTOR < 2.0 ** (4 / STEPS)


def test_verify_sees_what_is_missing(tmp_path: Path) -> None:
    mark, found = read(FILE)
    lost = next(iter(found.entries))
    less = {key: block for key, block in found.entries.items() if key != lost}
    write(tmp_path / "less.npz", mark, replace(found, entries=less))
    assert [line[:8] for line in making.verify(0, file=tmp_path / "less.npz", asked=wanted())] == ["no entry"]
    write(tmp_path / "other.npz", "another", found)
    assert making.verify(0, file=tmp_path / "other.npz", asked=wanted()) == ["it was measured with another arithmetic"]
