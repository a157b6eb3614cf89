"""Any number of ranks trains the model that one process trains; the Sendrecv sum adds like MPI's."""

import numpy as np
import pytest
from training_cases import alone, mini, on_ranks, worst

from mpi.comm import ThreadComm
from mpi.training.train import ring_sum
from mpi.wrappers import Counted
from siglip_ref.training import task
from siglip_ref.use.inference import best_ops


@pytest.fixture(autouse=True)
def small(monkeypatch):
    mini(monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimiser": "big_vision"},
        {"loss": "softmax", "micro": 5},
        {"loss": "labels", "batch": 23},
        {"bottleneck": 3, "batch": 23},
    ],
    ids=["adamw", "big_vision", "softmax in micro-batches", "labels, unequal shares", "a bottleneck, unequal shares"],
)
def test_parameters_after_50_steps_do_not_depend_on_the_number_of_ranks(changes, tmp_path):
    one = alone(tmp_path / "1", **changes)
    assert worst(one.task.params, one.params)[0] > 1e-2  # it has learnt
    for world in (1, 2, 3, 4):
        runs = on_ranks(world, tmp_path / f"on-{world}", "ring" if world == 3 else "allreduce", **changes)
        for run in runs:
            error, name = worst(run.params, one.params)
            print(world, name, error)
            assert error <= 1e-9, (world, name, error)
            assert np.allclose(np.array(run.history), np.array(one.history), rtol=1e-9)


@pytest.mark.nightly
def test_the_same_with_compiled_operations_and_the_model_of_the_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "best_ops", best_ops)
    one = alone(tmp_path / "1", model="")
    for world in (2, 3, 4):
        error, name = worst(on_ranks(world, tmp_path / f"on-{world}", model="")[0].params, one.params)
        print(world, name, error)
        assert error <= 1e-9, (world, name, error)


@pytest.mark.parametrize("length", [0, 1, 7, 1000])
def test_ring_sum_is_the_sum_with_the_same_bits_everywhere(length):
    for world in (1, 2, 3, 5):
        parts = np.random.default_rng(length).normal(size=(world, length))

        def rank(comm, parts=parts):
            counted = Counted(comm)
            return ring_sum(counted, parts[comm.rank]), counted.messages, counted.bytes

        found = ThreadComm.run(world, rank)
        for total, messages, sent in found:
            assert np.array_equal(total, found[0][0])
            assert np.abs(total - parts.sum(0)).max(initial=0.0) <= 1e-14 * world
            assert messages == 2 * (world - 1)
            assert sent <= 2 * (world - 1) * 8 * -(-length // world)
