"""Batches of 1,151 and 4,100 pairs: what only shows there is seen and told, what costs too much is left out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import siglip_ref as sr
from siglip_ref.check.call.resources import Cost, affordable, extrapolated, free_memory, measured
from siglip_ref.check.engine.expected.repeated import MIDDLE, REAL, order_of, repeated_probe
from siglip_ref.check.loss.check import check_loss
from siglip_ref.cli.main import app
from siglip_ref.errors import UsageError
from siglip_ref.fast.loss import sigmoid_loss as fast_loss

Loss = Callable[..., Any]
TILES = (16, 32, 64, 128, 256, 512, 1024)


def right(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
    return tuple(fast_loss(x, y, log_scale, bias, tile=512))


def test_no_two_tiles_are_equal() -> None:
    order = order_of(REAL.shape[0])
    assert sorted(set(order)) == list(range(131))
    for tile in TILES:
        whole = order[: len(order) // tile * tile].reshape(-1, tile)
        assert len(np.unique(whole, axis=0)) == len(whole)


def test_dims_are_kept() -> None:
    for point in (MIDDLE, REAL):
        probe = repeated_probe(point, {"batch": 128, "dim": 64})
        assert probe is not None and probe.shape[0] % 128 == probe.shape[1] % 64 == 0
        assert probe.shape[0] >= point.shape[0] and len(probe.rows[0]) == 131
        assert np.array_equal(probe.image_embed, probe.rows[0][probe.order])
        assert repeated_probe(point, [(64, 128)]) is None


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.nightly), "float32"])
def test_a_right_loss_passes_at_real_size(dtype: str) -> None:
    report = check_loss(right, "numpy", dtype, size="real", scale="log", embeddings="unit")
    large = [row for row in report.details if "B=4100" in row.probe]
    assert report.passed and len(large) == 5 and max(row.times for row in large) < 3
    assert any("B=1151" in row.probe for row in report.details) and not report.not_checked


def in_lanes(terms: Any) -> Any:
    """The sum as TorchInductor's loops take it: 16 running sums, begun again after 4,096 terms."""
    lanes = np.pad(terms.ravel(), (0, -terms.size % 65_536)).reshape(-1, 4096, 16)
    return np.add.accumulate(np.add.accumulate(lanes, 1)[:, -1], 0)[-1].sum(dtype=terms.dtype)


def test_numbers_that_compiled_loops_sum_are_right() -> None:
    def fn(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        loss, d_x, d_y, _, _ = right(x, y, log_scale, bias)
        similarity, own = x @ y.T, np.eye(len(x), dtype=x.dtype)
        logits = np.exp(log_scale) * similarity + bias
        slopes = (1 / (1 + np.exp(-logits)) - own) / x.dtype.type(len(x))
        return loss, d_x, d_y, in_lanes(slopes * similarity) * np.exp(log_scale), in_lanes(slopes)

    report = check_loss(fn, "numpy", "float32", scale="log", embeddings="unit")
    assert report.passed, report
    assert max(row.times for row in report.details if "B=1151" in row.probe) < 3


def exchanging(tile: int, places: tuple[int, int], side: int) -> Loss:
    """The right loss, but for two tiles of rows that stand in each other's place."""

    def fn(*inputs: Any) -> tuple[Any, ...]:
        results = list(right(*inputs))
        rows = results[side].copy()
        one, other = (slice(place * tile, (place + 1) * tile) for place in places)
        if other.stop <= len(rows) and len(rows) >= 2048:
            rows[one], rows[other] = rows[other].copy(), rows[one].copy()
        results[side] = rows
        return tuple(results)

    return fn


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.sampled(6)
def test_two_tiles_exchanged_fail(tile: int) -> None:
    """Also those 131 tiles apart, which a plain period of 131 rows would hide."""
    last = REAL.shape[0] // tile - 1
    for places in {(0, 1), (0, last), (0, min(131, last))}:
        report = check_loss(exchanging(tile, places, 1), "numpy", size="real", scale="log", embeddings="unit")
        assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == ["beyond-a-tile"]
        assert not any(row.verdict == "FAIL" for row in report.details if "B=4100" not in row.probe)


def cut(limit: int) -> Loss:
    """A kernel that leaves out what lies beyond its tile."""

    def fn(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
        first = min(limit, len(x))
        loss, d_x, d_y, *rest = right(x[:first], y[:first], log_scale, bias)
        missing = np.zeros_like(x[first:])
        return loss, np.concatenate([d_x, missing]), np.concatenate([d_y, missing]), *rest

    return fn


@pytest.mark.parametrize(("limit", "size"), [(256, "small"), (1024, "small"), (2048, "real"), (4096, "real")])
@pytest.mark.sampled(2)
def test_rows_left_out_beyond_a_tile_fail_and_are_told(limit: int, size: Any) -> None:
    report = check_loss(cut(limit), "numpy", size=size, scale="log", embeddings="unit")
    assert report.verdict == "FAIL" and report.findings[0].id == "beyond-a-tile"
    pairs = 1151 if size == "small" else 4100
    assert f"B={pairs}" in report.findings[0].evidence and f"{limit}-{pairs - 1}" in report.findings[0].evidence


def test_what_costs_too_much_is_left_out_and_the_reason_told() -> None:
    def slow(x: Any, *rest: Any) -> tuple[Any, ...]:
        time.sleep(3e-5 * len(x) ** 2)
        return right(x, *rest)

    report = check_loss(slow, "numpy", scale="log", embeddings="unit", size="real")
    (told,) = report.not_checked
    assert report.passed and told.startswith("a thousand pairs (B=1151, D=14): ") and " s, 0 GB" in told, told
    assert not any("B=1151" in row.probe or "B=4100" in row.probe for row in report.details)


def test_what_takes_too_much_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(x: Any, *rest: Any) -> tuple[Any, ...]:
        kept = np.ones((len(x), len(x), 96), np.float32)  # 0.5 GB at 1,151 pairs
        return right(x, *rest) if kept.size else ()

    monkeypatch.setattr("siglip_ref.check.call.resources.free_memory", lambda device: 2.0**29)
    report = check_loss(greedy, "numpy", scale="log", embeddings="unit")
    (told,) = report.not_checked
    assert report.passed and told.startswith("a thousand pairs (B=1151, D=14): ") and told.count("GB") == 1
    assert "half of what is free" in told
    assert not any("B=1151" in row.probe for row in report.details)


def test_costs_grow_with_the_square_and_are_held_against_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with measured(3, 5, "cpu") as cost:
        held = np.ones(2**24)  # 128 MiB
        time.sleep(0.02)
    assert cost.seconds >= 0.02 and cost.memory > 2**26 and held.size
    small, large = Cost(22, 7, 0.01, 0.0), Cost(1151, 14, 0.51, 4 * 2.0**30)
    assert str(Cost(4100, 24, 40.2, 51.1 * 2**30)) == "40 s, 51 GB"
    grown = extrapolated([small, large], 4604, 14)
    assert grown.seconds == pytest.approx(0.01 + 16 * 0.5) and grown.memory == 2.0**36 and str(grown) == "8 s, 64 GB"
    monkeypatch.setattr("siglip_ref.check.call.resources.free_memory", lambda device: 2.0**37)
    assert affordable(grown, "cpu")
    monkeypatch.setattr("siglip_ref.check.call.resources.free_memory", lambda device: 2.0**36)
    assert not affordable(grown, "cpu")
    assert not affordable(Cost(1, 1, 20.1, 0.0), "cpu") and affordable(Cost(1, 1, 19.9, 0.0), "cpu")
    monkeypatch.undo()
    assert free_memory() is None or free_memory() > 2**20  # type: ignore[operator]


def test_an_unknown_size_is_explained() -> None:
    with pytest.raises(UsageError, match='size="real"'):
        check_loss(sr.sigmoid_loss, "numpy", size="huge")  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "seen"), [([], True), (["--size", "small"], False)])
def test_the_command_checks_a_real_batch(options: list[str], seen: bool, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    command = ["check", "loss", "siglip_ref.fast.loss:sigmoid_loss", "--framework", "numpy", "--json", str(file)]
    found = CliRunner().invoke(app, [*command, *options])
    assert found.exit_code == 0, found.output
    assert ("B=4100" in file.read_text(encoding="utf-8")) == seen
