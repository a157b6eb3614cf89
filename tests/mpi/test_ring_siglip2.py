"""SigLIP 2's recipe over ranks of unequal size: the numbers of one process, and the same teacher everywhere."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from launch import program
from siglip2_cases import CFG, CHOICES, PARAMS, TEACHER, WEIGHTS, farthest, held, shard, trained, trained_alone

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.training.siglip2 import objective_over_ranks
from siglip_ref.siglip2 import RECIPE, Weights


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
    first, second = ThreadComm.run(2, lambda comm: trained(comm, (3, 1)))
    assert farthest(first, trained_alone((3, 1))) <= 1e-9
    assert all(np.array_equal(value, held(second)[name]) for name, value in held(first).items())


def test_two_steps_on_mpi() -> None:
    """Real processes: the decoder's, the heads' and the towers' parameters, teacher and centres are one process's."""
    run = program("siglip2_steps.py", 3, 1, ranks=2)
    assert run.code == 0 and not run.left, run
    found = json.loads(run.out)
    assert found["sizes"] == [3, 1] and found["same"] and found["moved"] > 0
    assert found["farthest"] <= 1e-9, found


def test_a_mean_over_all_tokens_is_refused() -> None:
    choices = replace(CHOICES, captioning=replace(CHOICES.captioning, mean="token"))
    with pytest.raises(sr.UsageError, match="other"):
        RECIPE.over_ranks(PARAMS, [shard(1, 2)] * 2, TEACHER, CFG, choices, WEIGHTS)
