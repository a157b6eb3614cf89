"""The sbatch script of docs/ring.md runs, and a failing rank ends its job, on a Slurm of one machine."""

import os
import subprocess
from pathlib import Path

import pytest
from launch import PYTHON, ring
from slurm import possible, slurm

pytestmark = pytest.mark.nightly
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ring.sbatch"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    reason = possible()
    assert not reason, f"no Slurm on this machine: {reason}"
    with slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield env | {"PATH": os.pathsep.join([str(Path(PYTHON).parent), env["PATH"]])}


def batch(cluster, folder, text):
    """Submit, wait; the exit code and what was printed."""
    (folder / "job").write_text(text)
    run = subprocess.run(
        ["sbatch", "--wait", "job"], env=cluster, cwd=folder, capture_output=True, text=True, timeout=120
    )
    (out,) = folder.glob("ring-*.out")
    return run.returncode, out.read_text()


def test_the_script_of_the_page_runs(cluster, tmp_path):
    code, out = batch(cluster, tmp_path, SCRIPT.read_text())
    assert code == 0, out
    assert out == ring("loss", ranks=4, threads=True).out  # the same table, to the last digit


def test_mpiexec_inside_an_allocation_runs(cluster, tmp_path):
    code, out = batch(
        cluster, tmp_path, SCRIPT.read_text().replace("srun --mpi=pmi2 --kill-on-bad-exit", "mpiexec -n 4")
    )
    assert code == 0 and "check       PASS" in out, out


def test_a_killed_rank_ends_the_job_with_its_name(cluster, tmp_path):
    code, out = batch(cluster, tmp_path, SCRIPT.read_text().rstrip() + " --fault 1:2:kill\n")
    assert code != 0, out
    assert "rank 1 failed" in out and "hop 2" in out and "SIGKILL" in out, out
