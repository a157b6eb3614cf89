"""What is said when a job ends before its time: which rank, where it was, why, what to do."""

from __future__ import annotations

import signal

from mpi.watchdog.progress import Progress

WRONG_USE = "siglip-ring: wrong use"
CAUSES = {
    signal.SIGKILL: "the memory was full, or somebody killed it",
    signal.SIGTERM: "somebody ended it, or a batch system at its time limit",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a crash in native code, or a file that shrank while it was mapped",
    signal.SIGABRT: "native code gave up",
}


def failed(rank: str, where: str, cause: str, repair: str) -> str:
    """The message of a failure; rank "": of threads it cannot be told which one."""
    who = f"rank {rank}" if rank else "the process of all ranks"
    return f"siglip-ring: {who} failed and ended the job\nwhere:    {where}\ncause:    {cause}\nrepair:   {repair}\n"


def ended(progress: Progress, number: int, alone: bool) -> str:
    """The message of Ctrl-C or SIGTERM; what is saved stands in it.

    alone : the process is the whole job
    """
    who = "the job" if alone else f"rank {progress.rank(0)}"
    what = "was interrupted (Ctrl-C)" if number == signal.SIGINT else "was told to end (SIGTERM)"
    saved = progress.saved() or "nothing was being kept; the same command begins anew"
    head = f"siglip-ring: {who} {what}" + " and ended the job" * (not alone)
    return f"{head}\nwhere:    {progress.where(0)}\nsaved:    {saved}\n"


def killed(progress: Progress, number: int) -> str:
    """The message of a rank, or of the process of all, that a signal ended."""
    name = signal.Signals(number).name
    repair = f"{name}: {CAUSES.get(signal.Signals(number), 'somebody sent it')}"
    return failed(*progress.hit(), f"killed by signal {number} ({name})", repair)
