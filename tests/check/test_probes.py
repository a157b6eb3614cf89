"""The probe points: exact numbers, unit rows, shapes that kernels can take."""

import numpy as np
import pytest

from siglip_ref.check.engine.expected.probes import (
    FINE_POINTS,
    POINTS,
    RAW_POINTS,
    SOFTMAX_POINTS,
    UNIT_POINTS,
    Probe,
    loss_probes,
    points_of,
    short,
)
from siglip_ref.check.engine.expected.rows import unit_rows
from siglip_ref.errors import UsageError

PROBES = loss_probes(POINTS)[0]
NARROW = [probe for kind in ("unit", "raw") for probe in loss_probes(points_of(kind, "bfloat16"))[0]]


def significant_bits(values: np.ndarray) -> int:
    """How many bits the numbers need, leading to last."""
    mantissas = np.frexp(np.asarray(values, float))[0]
    return next(bits for bits in range(54) if (mantissas * 2.0**bits == np.rint(mantissas * 2.0**bits)).all())


@pytest.mark.parametrize("probe", NARROW, ids=lambda probe: probe.name)
def test_all_numbers_are_exact_in_bfloat16_and_float16(probe: Probe) -> None:
    for values in (probe.image_embed, probe.text_embed, [probe.log_scale, probe.scale, probe.bias]):
        assert significant_bits(values) <= 8
        sizes = np.abs(np.asarray(values))
        assert sizes.max() <= 65504 and sizes[sizes > 0].min() >= 2.0**-14


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_rows_are_exactly_unit(probe: Probe) -> None:
    for rows in (probe.image_embed, probe.text_embed):
        assert ((rows * rows).sum(-1) == 1).all() and not rows.flags.writeable


def has_full_mantissas(probe: Probe, bits: int) -> bool:
    """Whether rounding to fewer bits would change all rows, and the scale and the bias, which have 48 bits at least."""
    rows = [row for rows in (probe.image_embed, probe.text_embed) for row in rows]
    scalars = [probe.log_scale, probe.scale, probe.bias]
    return all(significant_bits(row) >= bits - 3 for row in rows) and all(
        significant_bits(number) >= min(bits, 48) - 6 for number in scalars
    )


@pytest.mark.parametrize("embeddings", ["unit", "raw"])
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_half_of_the_probes_have_full_mantissas(embeddings: str, dtype: str, bits: int) -> None:
    probes, _ = loss_probes(points_of(embeddings, dtype), None, dtype, dtype)
    full = [probe for probe in probes if has_full_mantissas(probe, bits)]
    assert 2 * len(full) >= len(probes)
    for probe in full:
        assert significant_bits(probe.image_embed) == significant_bits(probe.text_embed) == bits
        if probe.name != "rows of many lengths":
            for rows in (probe.image_embed, probe.text_embed):
                assert np.abs((rows.astype(np.longdouble) ** 2).sum(-1) - 1).max() < 3 * 2.0**-bits


def test_scalars_of_fewer_bits_stay_exact_in_them() -> None:
    for probe in loss_probes(points_of("unit", "float32"), None, "float32", "bfloat16")[0]:
        assert significant_bits([probe.log_scale, probe.scale, probe.bias]) <= 8


def test_ties_zeros_and_what_float16_holds_badly() -> None:
    found = {p.name: p for kind in ("unit", "raw") for p in loss_probes(points_of(kind, "float32"), None, "float32")[0]}
    logits = {p.name: p.scale * p.image_embed @ p.text_embed.T + p.bias for p in found.values()}
    ties = logits["zero logits"] == 0
    assert ties.sum() > 60 and 0 < np.diag(ties).sum() < len(ties)
    zeros = found["rows of zeros"]
    assert 0 < (zeros.image_embed == 0).all(1).sum() < len(zeros.image_embed)
    assert 0 < (zeros.text_embed == 0).all(1).sum() < len(zeros.text_embed)
    below = found["numbers below 2^-14"]
    for rows in (below.image_embed, below.text_embed):
        small = np.abs(rows[(rows != 0) & (np.abs(rows) < 0.5)])
        assert small.size and small.max() < 2.0**-14
    assert np.abs(below.image_embed @ below.text_embed.T).max() < 2.0**-13
    assert max(p.shape[1] for p in found.values()) > 1024


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
    assert all(point.hunts for point in POINTS + FINE_POINTS + UNIT_POINTS + RAW_POINTS + SOFTMAX_POINTS)


def test_every_usual_tile_divides_some_batch_and_some_width_and_none_divides_others() -> None:
    shapes = {probe.shape for probe in PROBES}
    for tile in (2, 4, 8, 16, 32, 64, 128):
        assert {b % tile == 0 for b, _ in shapes} == {True, False}
        assert tile > 64 or {d % tile == 0 for _, d in shapes} == {True, False}
    # of which the batch, which the width: at no single shape both, from 32 on
    assert not {b for b, _ in shapes if b % 32 == 0} & {b for b, d in shapes if d % 32 == 0}


def test_scales_below_one_and_moderate_biases_above_zero() -> None:
    [small] = [probe for probe in PROBES if probe.log_scale < 0]
    assert small.log_scale < -0.5 and 0.5 < small.bias < 1 and small.scale < 1


def test_points_for_a_shape_are_left_out_where_multiples_give_it_to_another() -> None:
    names = [[probe.name for probe in loss_probes(POINTS, dims)[0]] for dims in (None, {"batch": 128, "dim": 64})]
    assert set(names[0]) - set(names[1]) == {"one pair", "whole tiles", "balanced, B > D", "trained, B > D"}
    kept = [probe.name for probe in loss_probes(POINTS, {"dim": 8})[0]]
    assert "whole tiles" in kept


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


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_all_logits_of_the_point_of_its_own_that_softmax_has_underflow_in_exp(dtype: str) -> None:
    (probe,) = loss_probes(SOFTMAX_POINTS, None, dtype, dtype if dtype != "bfloat16" else "float32")[0]
    logits = probe.scale * probe.image_embed @ probe.text_embed.T
    assert logits.max() < -800 and (np.exp(logits) == 0).all()
    assert np.ptp(logits, 1).min() > 4  # and no row is even
