"""The sbatch script of docs/ring-manual.md runs, and a failing rank ends its job, on a Slurm of one machine."""

import os
import subprocess
from pathlib import Path

import pytest
from launch import PYTHON, ring
from slurm import end_jobs, jobs, possible, slurm

from mpi.watchdog.leftovers import memory_of

pytestmark = pytest.mark.nightly
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ring.sbatch"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = possible()
    assert not reason, f"no Slurm on this machine: {reason}"
    with slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield env | {"PATH": os.pathsep.join([str(Path(PYTHON).parent), env["PATH"]])}


class Batch:
    """Submitted, and awaited: .code, .out, and .left, what MPICH left of it in shared memory, which is removed here."""

    def __init__(self, cluster, folder, text, *options):
        (folder / "job").write_text(text)
        command = ["sbatch", "--wait", *options, "job"]
        try:  # longer than the watchers give ranks that join: they say who hangs, and the job fails
            self.code = subprocess.run(command, env=cluster, cwd=folder, capture_output=True, timeout=240).returncode
        except subprocess.TimeoutExpired:
            self.code = f"none after 240 s; squeue: {jobs(cluster).stdout}"
            end_jobs(cluster)
        (out,) = folder.glob("ring-*.out")
        self.out = out.read_text()
        self.left = memory_of(f"{out.stem.removeprefix('ring-')}.0")
        for path in self.left:
            path.unlink()

    def __repr__(self):
        return f"exit code {self.code}, left {self.left}\n{self.out}"


def test_the_script_of_the_page_runs(cluster, tmp_path):
    run = Batch(cluster, tmp_path, SCRIPT.read_text())
    assert run.code == 0 and not run.left, run
    assert run.out == ring("loss", ranks=4, threads=True).out  # the same table, to the last digit


def test_mpiexec_inside_an_allocation_runs(cluster, tmp_path):
    run = Batch(cluster, tmp_path, SCRIPT.read_text().replace("srun --mpi=pmi2 --kill-on-bad-exit", "mpiexec -n 4"))
    assert run.code == 0 and "check       PASS" in run.out, run


def test_a_killed_rank_ends_the_job_with_its_name(cluster, tmp_path):
    run = Batch(cluster, tmp_path, SCRIPT.read_text().rstrip() + " --fault 1:2:kill\n")
    assert isinstance(run.code, int) and run.code != 0, run
    assert "rank 1 failed" in run.out and "hop 2" in run.out and "SIGKILL" in run.out, run


def test_a_job_that_is_started_again_is_not_held_up_by_what_it_left(cluster, tmp_path):
    """Its number is the same, and so is MPICH's name for the memory of its ranks; the first time they are killed."""
    *head, line = SCRIPT.read_text().splitlines()
    again = [f'[ "$SLURM_RESTART_COUNT" ] && exec {line}', f"{line} --fault 1:2:kill"]
    text = "\n".join([*head, *again, 'scontrol requeue "$SLURM_JOB_ID"', "sleep 60", ""])
    run = Batch(cluster, tmp_path, text, "--requeue", "--open-mode=append")
    assert run.code == 0 and "rank 1 failed" in run.out and "check       PASS" in run.out, run
    assert not run.left, run  # who finds old memory and takes it never removes it
