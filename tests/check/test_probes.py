"""The probe points: exact numbers, unit rows, shapes that kernels can take."""

import numpy as np
import pytest

from siglip_ref.check.probes import POINTS, RAW_POINTS, Probe, loss_probes, short, unit_rows
from siglip_ref.errors import UsageError

PROBES = loss_probes(POINTS)[0]


def significant_bits(values: np.ndarray) -> int:
    """How many bits the numbers need, leading to last."""
    mantissas = np.frexp(np.asarray(values, float))[0]
    return next(bits for bits in range(54) if (mantissas * 2.0**bits == np.rint(mantissas * 2.0**bits)).all())


@pytest.mark.parametrize("probe", PROBES + loss_probes(RAW_POINTS)[0], ids=lambda probe: probe.name)
def test_all_numbers_are_exact_in_bfloat16_and_float16(probe: Probe) -> None:
    for values in (probe.image_embed, probe.text_embed, [probe.log_scale, probe.scale, probe.bias]):
        assert significant_bits(values) <= 8
        sizes = np.abs(np.asarray(values))
        assert sizes.max() <= 65504 and sizes[sizes > 0].min() >= 2.0**-14


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_rows_are_exactly_unit(probe: Probe) -> None:
    for rows in (probe.image_embed, probe.text_embed):
        assert ((rows * rows).sum(-1) == 1).all() and not rows.flags.writeable


@pytest.mark.parametrize("width", [1, 2, 4, 5, 6, 33])
def test_unit_rows_of_any_width(width: int) -> None:
    rng = np.random.default_rng(width)
    rows = unit_rows(rng.standard_normal((40, width)), rng)
    assert (rows == np.rint(rows)).all() and ((rows * rows).sum(-1) == 65536).all()


def test_points_cover_small_and_large_batches_and_every_regime() -> None:
    logits = {p.name: p.scale * p.image_embed @ p.text_embed.T + p.bias for p in PROBES}
    assert any(b < d for b, d in (p.shape for p in PROBES)) and any(b > d for b, d in (p.shape for p in PROBES))
    assert min(p.shape[0] for p in PROBES) == 1 and max(p.shape[0] for p in PROBES) > 128
    for name, reach in (("logits to +-120", 119), ("logits to +-1000", 1000)):
        off_diagonal = logits[name] - np.diag(np.diag(logits[name]))
        assert off_diagonal.max() > reach and np.diag(logits[name]).min() < -reach
    assert np.diag(logits["saturated, right"]).min() > 50
    repeated = next(p for p in PROBES if p.name == "duplicate captions").text_embed
    assert len(np.unique(repeated, axis=0)) < len(repeated)
    assert all(point.hunts for point in POINTS + RAW_POINTS)


def test_the_same_numbers_every_time() -> None:
    first = PROBES[0]
    again = loss_probes(POINTS, [first.shape])[0][0]
    assert np.array_equal(first.image_embed, again.image_embed)


@pytest.mark.parametrize("dims", [{"batch": 16, "dim": 32}, {"batch": 128, "dim": 16}, {"batch": 16}, {"dim": 64}])
def test_multiples_are_kept_and_so_is_which_is_larger(dims: dict[str, int]) -> None:
    probes, left_out = loss_probes(POINTS, dims)
    shapes = {probe.shape for probe in probes}
    assert all(b % dims.get("batch", 1) == 0 and d % dims.get("dim", 1) == 0 for b, d in shapes)
    assert any(b < d for b, d in shapes) and any(b > d for b, d in shapes) and all(b != d for b, d in shapes)
    assert bool(left_out) == ("batch" in dims)


def test_listed_shapes_are_all_used() -> None:
    listed = [(64, 128), (96, 128)]
    probes, left_out = loss_probes(POINTS, listed)
    assert {probe.shape for probe in probes} == set(listed) and left_out == [
        "one pair: B = 1 is not among the given dims"
    ]
    assert {probe.shape for probe in loss_probes(POINTS[:1], [(3, 8), (5, 8), (1, 8)])[0]} == {(3, 8), (5, 8), (1, 8)}


@pytest.mark.parametrize("dims", [{"batches": 4}, {"batch": 0}, [], [(3,)], [(0, 4)]])
def test_other_dims_are_explained(dims: object) -> None:
    with pytest.raises(UsageError, match="dims=dict"):
        loss_probes(POINTS, dims)  # type: ignore[arg-type]


def test_short_keeps_eight_bits() -> None:
    assert significant_bits([short(x) for x in np.geomspace(1e-3, 1e4, 99)]) <= 8
    assert all(abs(short(x) / x - 1) <= 2**-8 for x in np.geomspace(1e-3, 1e4, 99))
