"""What a killed job of the same number left in shared memory: removed before MPICH takes it for its own.

MPICH names the memory that the ranks of a machine share after what the launcher calls the job. Slurm calls it by the
numbers of job and step, and a job that is started again (--requeue) has the same ones, as has the first job of a
cluster that begins anew. If the one before was killed, its memory is still there. It says that every rank is ready;
so none waits for the others, messages get lost, and MPI's start hangs.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from mpi.watchdog.launcher import start_of

MEMORY = Path("/dev/shm")
DAEMON = "slurmstepd"  # starts the ranks of a step on this machine
SLACK = 1.0  # seconds by which a file's time may be behind the clock


def remove_leftovers() -> None:
    """Remove them; every rank calls it before it loads MPI, for none knows which comes first."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    began = start_of(DAEMON) if sys.platform == "linux" and job and step else None
    if began is None:
        return
    for path in memory_of(f"{job}.{step}"):
        with contextlib.suppress(OSError):  # another rank has removed it, or it is another user's
            remove_older(path, began - SLACK)


def memory_of(job: str) -> list[Path]:
    """What there is of MPICH's under the name that the launcher gives a job."""
    return [path for kind in ("shm", "vci") for path in MEMORY.glob(f"mpich_{kind}_{number_of(job)}_*")]


def number_of(job: str) -> str:
    """What MPICH makes of the name: FNV-1a of 32 bits."""
    number = 2166136261
    for byte in job.encode():
        number = ((number ^ byte) * 16777619) % 2**32
    return f"{number:x}"


def remove_older(path: Path, began: float) -> None:
    """Remove a file that is older than the step, as the only one: who holds its lock, and finds it still in its place.

    Without the lock a late rank could remove what an early one has put there since.
    """
    import fcntl

    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        old = os.fstat(file.fileno())
        if old.st_mtime < began and os.path.samestat(old, path.stat()):
            path.unlink()
