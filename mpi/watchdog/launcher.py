"""What the launcher told this process through its environment, and whether that can be believed.

Variables leak: a shell in an allocation has them, and so has everything that is started in it. So only those count
that are set for each process, and a process that was not started by the launcher itself is asked nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from siglip_ref.errors import UsageError

RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
# of the whole job, or of this machine: MPICH and Intel MPI, Open MPI, Slurm's steps. SLURM_NTASKS is the allocation's
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
ALONE = "SIGLIP_RING_ALONE"
STARTED = os.getpid()  # the process that the launcher started: the rank is its fork, and has loaded this before
# programs that only start the next one: with these between, it is still the launcher that started us
STARTERS = {
    *("sh", "bash", "dash", "zsh", "ksh", "fish"),
    *("env", "nice", "taskset", "numactl", "timeout", "time", "stdbuf"),
}


def launchers_rank() -> str | None:
    """The rank that the launcher gave this process, known before MPI is; None without a launcher."""
    return next((os.environ[name] for name in RANKS if name in os.environ), None)


def is_launched(others: tuple[str, ...] = ()) -> bool:
    """Whether an MPI launcher started this process, whose end is the end of the job.

    others : more variables that say so
    """
    return any(name in os.environ and is_from_launcher(name) for name in (*RANKS, *others))


def local_ranks() -> set[int]:
    """All ranks of the job, if all are on this machine and their number is known; else none."""
    for all_, here in (("PMI_SIZE", "MPI_LOCALNRANKS"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")):
        if os.environ.get(all_, "").isdecimal() and os.environ[all_] == os.environ.get(here):
            return set(range(int(os.environ[all_])))
    return set()


def require_one_world(size: int) -> None:
    """Refuse to go on alone where a launcher started several: each would be rank 0 of 1, in the same folder.

    Parameters
    ----------
    size : of the world that MPI sees
    """
    told = {name: int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdecimal()}
    if size > 1 or 1 in told.values() or not any(told.values()) or os.environ.get(ALONE) == "1":
        return
    name, count = max(told.items(), key=lambda item: item[1])
    if not is_from_launcher(name):
        return
    raise UsageError(
        expected="an MPI library that sees the processes its launcher started",
        got=f"{count} processes were started ({name}={count}), MPI sees 1",
        cause="the mpiexec or srun of one MPI, the library of another: every process would be rank 0 of 1",
        repair=f"start with the mpiexec that belongs to mpi4py's MPI; to go on alone all the same, set {ALONE}=1",
    )


def is_from_launcher(name: str) -> bool:
    """Whether the launcher started this process: its parent has not got the variable, or only started it.

    A program that was launched may start others, and these inherit all variables: they are not ranks. Neither is what
    is typed in a shell within a job.
    """
    value = os.environ.get(name, "")
    first = above = _parent(STARTED)
    while above > 1 and _has(above, f"{name}={value}"):
        if _command(above) not in STARTERS or _is_interactive(above):
            return False
        above = _parent(above)
    return above != 1 or first == 1  # a launcher that is gone has left what it started to process 1


def start_of(command: str) -> float | None:
    """When the nearest process of this name above this one began, as `time.time` counts; None if none is in sight."""
    above = _parent(STARTED)
    while above > 0 and _command(above) != command:
        above = _parent(above)
    ticks = _stat(above, 19)
    if not ticks:
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _parent(process: int) -> int:
    return _stat(process, 1)


def _stat(process: int, field: int) -> int:
    """A number that the system tells of a process, counted from the one after its name; 0 if there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
        return int(stat.rpartition(")")[2].split()[field])
    except (OSError, ValueError, IndexError):
        return 0


def _has(process: int, setting: str) -> bool:
    try:
        return setting.encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _is_interactive(process: int) -> bool:
    """A shell somebody types into: its input is a terminal."""
    try:
        return os.readlink(f"/proc/{process}/fd/0").startswith(("/dev/pts/", "/dev/tty"))
    except OSError:
        return False
