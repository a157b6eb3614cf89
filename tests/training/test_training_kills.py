"""A training that is killed at any instant goes on bit for bit; a rank that dies ends the job, with its name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "mpi"))
from launch import PYTHON, Run, mpiexec

PROGRAMS = Path(__file__).parent / "programs"
SMALL = [
    "--data",
    "digits",
    "--model",
    "mini",
    "--steps",
    "4",
    "--batch",
    "9",
    "--save-every",
    "2",
    "--judge-every",
    "2",
]
EVERYONES = (
    "preparing the data and the model",
    "reading its batch",
    "the towers",
    "the loss",
    "the way back through the towers",
    "summing up the gradients",
    "the optimiser",
    "comparing the ranks",
)
OF_RANK_0 = ("judging the model", "writing a checkpoint", "writing the model")
STEP = {"preparing the data and the model": 0, "writing the model": 4, "comparing the ranks": 4} | dict.fromkeys(
    ("judging the model", "writing a checkpoint"), 4
)


def killed(folder, kills, seed, recipe="siglip"):
    command = [sys.executable, str(PROGRAMS / "killed.py"), str(folder), str(kills), str(seed), recipe]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60 + 60 * kills)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_killed_at_five_instants_it_ends_with_the_same_bits(tmp_path):
    found = killed(tmp_path, 5, 1)
    assert found["killed"] == 5 and found["files"] >= 5 and not found["different"], found


def test_so_it_does_with_a_teacher_centres_and_heads_as_its_state(tmp_path):
    found = killed(tmp_path, 2, 3, "siglip2")
    assert found["killed"] == 2 and not found["different"], found


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", ["siglip", "siglip2"])
def test_killed_at_fifty_instants_it_ends_with_the_same_bits(recipe, tmp_path):
    found = killed(tmp_path, 50, 2, recipe)
    assert found["killed"] == 50 and not found["different"], found


def ring(out, ranks, fault=None, timeout=90):
    environment = [f"FAULT={fault}"] if fault else []
    program = [PYTHON, str(PROGRAMS / "faulty_ring.py"), "train", *SMALL, "--out", str(out)]
    return Run([*mpiexec(ranks), "env", *environment, *program], timeout)


def dies(out, ranks, rank, phase, kind):
    """The job ends at once, with one message that names rank, step and phase; nothing runs on."""
    step = STEP.get(phase, 3)
    run = ring(out, ranks, f"{rank}:{step}:{phase}:{kind}")
    assert run.code != 0 and not run.left, run
    assert run.err.count("siglip-ring:") == 1 and f"siglip-ring: rank {rank} failed" in run.err, run
    assert f"step {step}, {phase}" in run.err, run
    assert ("SIGKILL" if kind == "kill" else "asked for") in run.err, run


def test_a_killed_rank_ends_the_job_which_then_goes_on_bit_for_bit(tmp_path):
    whole = ring(tmp_path / "whole", 2)
    assert whole.code == 0 and not whole.left, whole
    dies(tmp_path / "killed", 2, 1, "the loss", "kill")
    again = ring(tmp_path / "killed", 2)
    assert again.code == 0 and "going on from step 2" in again.out, again
    for file in ("model/model.safetensors", "history.csv", "checkpoints/step-00000004.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


@pytest.mark.parametrize(
    "rank, phase, kind", [(0, "writing a checkpoint", "raise"), (1, "summing up the gradients", "raise")]
)
def test_a_failing_rank_ends_the_job(rank, phase, kind, tmp_path):
    dies(tmp_path, 2, rank, phase, kind)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["kill", "raise"])
@pytest.mark.parametrize("phase", (*EVERYONES, *OF_RANK_0))
@pytest.mark.parametrize("rank", range(4))
def test_every_rank_of_four_killed_in_every_phase(rank, phase, kind, tmp_path):
    if rank and phase in OF_RANK_0:
        return
    dies(tmp_path, 4, rank, phase, kind)
