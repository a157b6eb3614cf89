"""check_distributed_loss on real Torch processes, on JAX's ranks, and on threads."""

from dataclasses import replace

import pytest
from distributed_losses import (
    detached_texts,
    global_loss_with_grad,
    hangs,
    jax_device_by_device,
    jax_gathered_others,
    jax_ring,
    jax_ring_stopped,
    jax_whole_loss,
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
    report = sr.check_distributed_loss(hangs, 3, "torch", limit=300.0)
    assert report.verdict == "FAIL"
    assert report.findings[0].id == "p2p-order-deadlock"
    assert "balanced (W=3" in report.findings[0].evidence
    assert "ranks 0, 2 have returned, rank 1 waits in recv from rank 2" in report.findings[0].evidence


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


def test_a_jax_loss_that_asks_for_its_devices_sees_as_many_as_there_are_ranks():
    report = sr.check_distributed_loss(jax_device_by_device, 3, "jax", axis_name="batch")
    assert report.verdict == "PASS", report
    assert any("a dict (lowest): not looked at" in note for note in report.notes)


def test_a_jax_loss_with_an_axis_of_its_own_is_told_how_to_say_so():
    with pytest.raises(sr.UsageError) as error:
        sr.check_distributed_loss(jax_gathered_others, 3, "jax")
    assert error.value.repair == 'check_ranks(fn, axis_name="batch")'


@pytest.mark.nightly
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_jax_losses_of_every_form_pass(world_size):
    for fn, how in ((jax_gathered_others, {"axis_name": "batch"}), (jax_whole_loss, {"value": "global"})):
        report = sr.check_distributed_loss(fn, world_size, "jax", **how)
        assert report.verdict == "PASS", report


def test_where_vmap_gives_other_numbers_it_is_said_and_shard_map_judges():
    from siglip_ref.check.call.frameworks import Setting
    from siglip_ref.check.ranks.check import calls_of
    from siglip_ref.check.ranks.jax import run, second_opinion
    from siglip_ref.check.ranks.world import Task

    setting = Setting("float32", "float32", "cpu", False)
    splits = calls_of(2, False, ["log"], setting)[0][:1]
    task = Task(jax_ring, None, setting, splits, 2, "", 60.0)
    same = run(task, "vmap")
    assert second_opinion(task, same) == ""
    other = [[replace(rank, loss=2 * rank.loss) for rank in call] for call in same]
    assert second_opinion(task, other).startswith("judged by shard_map alone: under vmap it gives other numbers")
    assert "it raises" in second_opinion(replace(task, axis="ranks", fn=jax_gathered_others), same)


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
    assert 'declared was reduce="sum"' in report.findings[0].evidence


def test_wrong_use_is_explained():
    with pytest.raises(sr.UsageError, match="ThreadComm"):
        sr.check_distributed_loss(lambda *a: a, 4, "numpy")
    with pytest.raises(sr.UsageError, match="from 2 to 8"):
        sr.check_distributed_loss(own_slot, 1, "torch")


@pytest.mark.parametrize(
    ("how", "got", "repair"),
    [
        ({"backend": "smoke"}, "backend='smoke'", 'backend="gloo"'),
        ({"backend": "mpi"}, "backend='mpi'", "a group that is running is used as it is"),
        ({"device": "meta"}, "meta", 'device="cpu"'),
        ({"device": "abacus"}, "'abacus'", 'device="cpu"'),
        ({"ranks": ThreadComm.run}, "ranks=", "framework='numpy'"),
    ],
)
def test_backends_and_devices_are_refused_before_a_process_starts(how, got, repair):
    with pytest.raises(sr.UsageError) as error:
        sr.check_distributed_loss(own_slot, 3, "torch", **how)
    assert got in error.value.got and repair in error.value.repair


def test_ranks_that_would_share_a_gpu_in_nccl_are_refused(monkeypatch):
    import torch

    from siglip_ref.check.ranks.torch import require_group

    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: True)
    for gpus, device, words in ((1, "cuda", "share a GPU"), (4, "cuda:1", "share a GPU"), (4, "cpu", "GPU memory")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with pytest.raises(sr.UsageError) as error:
            require_group("nccl", device, 4)
        assert words in error.value.cause and 'backend="gloo"' in error.value.repair
    require_group("nccl", "cuda", 4)
    require_group("gloo", "cuda", 8)
