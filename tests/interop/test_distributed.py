"""check_distributed_loss on real Torch processes, on JAX's ranks, and on threads."""

import pytest
from distributed_losses import (
    detached_texts,
    global_loss_with_grad,
    hangs,
    jax_ring,
    jax_ring_stopped,
    local_only,
    missing_hop,
    no_rank_offset,
    open_clip_loss,
    own_slot,
    raises_on_rank_2,
    remote_positives,
    told_with_a_hole,
)

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss

VARIANTS = ("bidir", "shift", "reduce", "gather")


def test_open_clip_passes():
    report = sr.check_distributed_loss(open_clip_loss("bidir"), framework="torch", dtype="float64")
    assert report.verdict == "PASS", report
    assert all(row.error < 1e-13 for row in report.rows)


@pytest.mark.nightly
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("world_size", [2, 4, 5, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_open_clip_passes_at_every_world_size(variant, world_size, dtype):
    report = sr.check_distributed_loss(open_clip_loss(variant), world_size, "torch", dtype=dtype)
    assert report.verdict == "PASS", report


def test_the_whole_loss_on_every_rank_passes_as_declared():
    report = sr.check_distributed_loss(global_loss_with_grad, 2, "torch", value="global")
    assert report.verdict == "PASS", report


nightly = pytest.mark.nightly  # each starts seven processes; the same mistakes are named in seconds in test_diagnose


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (own_slot, "gather-own-slot-one-over-w"),
        (missing_hop, "ring-hop-missing"),
        pytest.param(detached_texts, "gather-detached-cross-terms", marks=nightly),
        pytest.param(local_only, "no-cross-rank-negatives", marks=nightly),
        pytest.param(no_rank_offset, "label-rank-offset", marks=nightly),
        pytest.param(remote_positives, "remote-diagonal-as-positive", marks=nightly),
    ],
)
def test_mistakes_between_ranks_are_named(loss, named):
    report = sr.check_distributed_loss(loss, 4, "torch")
    assert report.verdict == "FAIL"
    assert report.findings[0].id == named, report


def test_a_hop_that_went_wrong_is_told_with_rank_and_number():
    report = sr.check_distributed_loss(told_with_a_hole, 3, "torch", scale="linear")
    assert report.findings[0].id == "ring-received-buffer-zero", report
    wrong = [(hop.rank, hop.hop) for hop in report.hops if not hop.right]
    assert wrong == [(1, 2), (1, -1)]
    assert report.case is not None


def test_a_hang_ends_and_says_where():
    report = sr.check_distributed_loss(hangs, 3, "torch", limit=20.0)
    assert report.verdict == "FAIL"
    assert report.findings[0].id == "p2p-order-deadlock"
    assert "balanced (W=3" in report.findings[0].evidence


def test_a_failing_rank_is_named():
    report = sr.check_distributed_loss(raises_on_rank_2, 3, "torch", limit=30.0)
    assert report.findings[0].id == "rank-failed"
    assert "rank 2 failed" in report.findings[0].evidence and "no such column" in report.findings[0].evidence


def test_jax_ring_passes_under_vmap_and_shard_map():
    report = sr.check_distributed_loss(jax_ring, 4, "jax", dtype="float64")
    assert report.verdict == "PASS", report


def test_jax_ring_without_gradient_is_named():
    report = sr.check_distributed_loss(jax_ring_stopped, 4, "jax")
    assert report.findings[0].id == "gather-detached-cross-terms", report


def test_our_ring_passes_also_on_unequal_shards():
    def loss(image, text, log_scale, bias, comm):
        return ring_sigmoid_loss(comm, image, text, log_scale, bias)

    report = sr.check_distributed_loss(
        loss, 5, "numpy", reduce="none", value="global", unequal=True, dtype="float64", ranks=ThreadComm.run
    )
    assert report.verdict == "PASS", report


def test_other_reduction_is_a_convention():
    report = sr.check_distributed_loss(global_loss_with_grad, 2, "torch", reduce="sum", value="global")
    assert report.verdict == "OTHER CONVENTION"
    assert 'reduce="mean"' in report.findings[0].repair


def test_wrong_use_is_explained():
    with pytest.raises(sr.UsageError, match="ThreadComm"):
        sr.check_distributed_loss(lambda *a: a, 4, "numpy")
    with pytest.raises(sr.UsageError, match="from 2 to 8"):
        sr.check_distributed_loss(own_slot, 1, "torch")
