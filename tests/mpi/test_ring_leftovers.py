"""A job of Slurm's is not held up by what a killed job of its number left in shared memory (`test_ring_slurm.py`)."""

import fcntl
import os
import shutil
import subprocess
import threading
import time
import uuid

import pytest
from launch import PYTHON

from mpi.watchdog import leftovers
from mpi.watchdog.leftovers import memory_of, number_of, remove_older


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "MEMORY", tmp_path)
    return tmp_path


def test_the_names_are_those_of_mpich(folder):
    """As the MPICH wheel 5.0 names them for the jobs 1.0 and 3.0."""
    for name in ("mpich_shm_eb421bf2_0", "mpich_shm_eb421bf2_1", "mpich_shm_c141a9dc_0", "mpich_vci_c141a9dc_0"):
        (folder / name).touch()
    assert {path.name for path in memory_of("1.0")} == {"mpich_shm_eb421bf2_0", "mpich_shm_eb421bf2_1"}
    assert {path.name for path in memory_of("3.0")} == {"mpich_shm_c141a9dc_0", "mpich_vci_c141a9dc_0"}
    assert not memory_of("2.0")


@pytest.mark.parametrize(
    "daemon, older, stays", [("slurmstepd", 60, False), ("slurmstepd", 0, True), ("bash", 60, True)]
)
def test_what_is_older_than_the_step_is_removed(daemon, older, stays, tmp_path):
    """Below Slurm's daemon, known by its name, with a shell between; what is of the step itself stays."""
    job = f"test-{uuid.uuid4()}"
    name = leftovers.MEMORY / f"mpich_shm_{number_of(job + '.0')}_0"
    name.touch()
    os.utime(name, (time.time() - older,) * 2)
    (tmp_path / daemon).symlink_to(shutil.which("bash"))
    line = f"bash -c '{PYTHON} -m siglip_ring --version; exit $?'; exit $?"
    env = os.environ | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0"}
    try:
        run = subprocess.run([tmp_path / daemon, "-c", line], env=env, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0 and "siglip-ring 0." in run.stdout, run
        assert name.exists() == stays
    finally:
        name.unlink(missing_ok=True)


def test_a_late_rank_removes_nothing_of_an_early_one(folder):
    """It saw the old memory, too; while it waited, the early one removed that and made its own."""
    path = folder / "mpich_shm_1_0"
    path.touch()
    with path.open("rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        late = threading.Thread(target=remove_older, args=(path, time.time() + 60))
        late.start()
        time.sleep(0.2)
        path.unlink()
        path.touch()
    late.join(10)
    assert not late.is_alive() and path.exists()
    remove_older(path, time.time() + 60)
    assert not path.exists()
