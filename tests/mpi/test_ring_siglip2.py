"""SigLIP 2's recipe over ranks of unequal size: the numbers of one process, and the same teacher everywhere."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.training.siglip2 import objective_over_ranks
from siglip_ref.architecture.sizes import Tower
from siglip_ref.siglip2 import RECIPE, Batch, Choices, Momentum, Target, Weights, captioning, distillation
from siglip_ref.siglip2.params import born, shapes

CFG = sr.config("tiny")
HEAD = distillation("dino", 11, hidden=14, bottleneck=6, teacher_temperature=0.07)
CHOICES = Choices(captioning("big_vision", Tower(12, 2, 17, 2)), HEAD, HEAD, shared_head=False, patch_centre="masked")
WEIGHTS = Weights(1.0, 1.0, 0.25, 0.0625)


def shard(key: int, count: int) -> Batch:
    """Captions and masks of unequal length; every rank's data differs."""
    rng = np.random.default_rng(key)
    labels = rng.integers(2, CFG.vocabulary, (count, 9))
    labels = np.where(np.arange(9) < rng.integers(2, 10, (count, 1)), labels, 0)
    tasks = [Target(labels, labels != 0, rng.random(count) < 0.5) for _ in range(3)]
    images, whole = rng.standard_normal((2, count, *CFG.image_size, 3))
    crops = rng.standard_normal((count, 2, 8, 16, 3))
    return Batch(images, labels, tasks, crops, whole, rng.random((count, 21)) < rng.random((count, 1)))


PARAMS = {
    name: 0.4 * np.random.default_rng(i).standard_normal(shape) + name.endswith(("gamma", "gain"))
    for i, (name, shape) in enumerate(shapes(CFG, CHOICES).items())
}
TEACHER = born({name: value + 0.05 for name, value in PARAMS.items()}, CHOICES)


@pytest.mark.parametrize("sizes", [(3, 1), (1, 2, 2)], ids=str)
def test_ranks_agree_with_one_process(sizes: tuple[int, ...]) -> None:
    shards = [shard(50 + rank, count) for rank, count in enumerate(sizes)]
    expected = RECIPE.over_ranks(PARAMS, shards, TEACHER, CFG, CHOICES, WEIGHTS)

    def work(comm: ThreadComm) -> Any:
        return objective_over_ranks(comm, PARAMS, shards[comm.rank], TEACHER, CFG, CHOICES, WEIGHTS)

    for found in ThreadComm.run(len(sizes), work):
        assert found.loss == pytest.approx(expected.loss, rel=1e-13)
        assert found.terms.keys() == expected.terms.keys() == set(Weights._fields)
        for name, value in expected.grads.items():
            scale = np.abs(expected.grads[name.replace("k/bias", "q/bias")]).max()
            assert np.abs(found.grads[name] - value).max() <= 1e-12 * scale, name
        for head, (total, count) in expected.said.items():
            assert found.said[head][1] == count
            assert np.allclose(found.said[head][0], total, rtol=1e-12)


def test_two_steps_leave_every_rank_with_the_same_student_teacher_and_centres() -> None:
    """On two ranks with three examples and one; bit for bit among the ranks, to 1e-9 with one process."""
    steps = [[shard(60 + 10 * k + rank, count) for rank, count in enumerate((3, 1))] for k in range(2)]
    momentum, rate = Momentum(0.9, "cosine", 4), 0.05
    alone = RECIPE.several_steps(PARAMS, steps, TEACHER, CFG, CHOICES, WEIGHTS, rate, momentum)

    def work(comm: ThreadComm) -> Any:
        ops = replace(
            RECIPE, over_ranks=lambda params, shards, *rest: objective_over_ranks(comm, params, *shards, *rest)
        )
        own = [[shards[comm.rank]] for shards in steps]
        return ops.several_steps(PARAMS, own, TEACHER, CFG, CHOICES, WEIGHTS, rate, momentum)

    ranks = ThreadComm.run(2, work)
    for name, value in alone.params.items():
        assert np.abs(ranks[0].params[name] - value).max() <= 1e-9 * max(np.abs(value).max(), 1.0), name
    for part in ("params", "centres"):
        ours, theirs = (getattr(done.teacher, part) for done in ranks)
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert all(np.allclose(ours[name], getattr(alone.teacher, part)[name], rtol=1e-9) for name in ours)
    assert all((ranks[0].params[name] == ranks[1].params[name]).all() for name in PARAMS)


def test_a_mean_over_all_tokens_is_refused() -> None:
    choices = replace(CHOICES, captioning=replace(CHOICES.captioning, mean="token"))
    with pytest.raises(sr.UsageError, match="other"):
        RECIPE.over_ranks(PARAMS, [shard(1, 2)] * 2, TEACHER, CFG, choices, WEIGHTS)
