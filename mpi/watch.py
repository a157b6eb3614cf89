"""No hang and no riddle: a watcher beside every rank says who failed, where and why, and then everything ends.

The process that mpiexec starts becomes the watcher. Before MPI is loaded it forks the rank, so whatever happens to
the rank - an exception, a stall, SIGKILL - the watcher is alive to tell; and because it still holds the launcher's
sockets, the launcher notices nothing, and kills nobody, until the watcher has spoken and ends.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

from mpi.progress import Progress, launchers_rank
from siglip_ref.errors import UsageError
from siglip_ref.training.settings import TrainingStopped

WRONG_USE = "siglip-ring: wrong use"
GRACE = 1.0  # seconds that the rank that knows the cause may speak before those that only feel its loss


def first_to_speak() -> socket.socket | None:
    """One voice for all ranks of a job on this machine: whoever binds its name, which is free again when we end."""
    voice = socket.socket(socket.AF_UNIX)
    job = os.getpid() if launchers_rank() is None else os.getppid()
    if sys.platform != "linux":
        return voice
    try:
        voice.bind(f"\0siglip-ring-{os.getuid()}-{job}")
    except OSError:
        return None
    return voice


def message(rank: str, where: str, cause: str, repair: str) -> str:
    head = f"siglip-ring: rank {rank} failed and ended the job"
    return f"{head}\nwhere:    {where}\ncause:    {cause}\nrepair:   {repair}\n"


def supervise(work: Callable[[], int], progress: Progress, stall_limit: float) -> int:
    """Run work() in a forked process, watched by this one; return the exit code for this process.

    Call it before MPI is loaded, and pass the result to sys.exit: it returns in both processes.
    """
    if not hasattr(os, "fork"):
        return _guarded(work, progress, lambda text: os.write(2, text), lambda: True)
    report_out, report_in = os.pipe()
    answer_out, answer_in = os.pipe()
    sys.stdout.flush()
    rank_process = os.fork()
    if rank_process == 0:
        os.close(report_out)
        os.close(answer_in)
        heard = threading.Event()
        threading.Thread(target=_listen_to_watcher, args=(answer_out, heard, progress), daemon=True).start()
        return _guarded(work, progress, lambda text: os.write(report_in, text), lambda: heard.wait(GRACE))
    os.close(report_in)
    os.close(answer_out)
    return _watch(rank_process, report_out, answer_in, progress, stall_limit)


def _guarded(
    work: Callable[[], int], progress: Progress, report: Callable[[bytes], int], heard: Callable[[], bool]
) -> int:
    """Run work(); report what it raises."""
    try:
        code = work()
        progress.over()
        return code
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        cause = error.__cause__ if hasattr(error, "rank") and error.__cause__ else error
        slot = progress.slot_of(getattr(error, "rank", -1))
        if isinstance(cause, UsageError):
            on_all = error is cause and getattr(cause, "on_every_rank", False)
            if not on_all or progress.rank(slot) == "0":
                report(f"{WRONG_USE}\n{cause}\n".encode())
                heard()
            if not on_all:
                _abort(2)
            return 2
        if type(cause).__module__.startswith("mpi4py"):  # most likely another rank is gone: it may speak first
            time.sleep(GRACE)
        frame = traceback.extract_tb(cause.__traceback__)[-1:]
        place = "".join(f" (line {at.lineno} of {os.path.basename(at.filename)}, in {at.name})" for at in frame)
        words = f"{type(cause).__name__}: {cause}{place}"
        repair = "the cause names the line; --threads runs the same in one process, under a debugger"
        if isinstance(cause, TrainingStopped):  # it says itself what happened and what to do
            words, repair = cause.cause, cause.repair
        text = message(progress.rank(slot), progress.where(slot), words, repair)
        report(text.encode())
        heard()
        _abort(1)
        return 1


def _abort(code: int) -> None:
    """End the other ranks too, where the launcher would not; the last line this process runs."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(code)


def _watch(rank_process: int, reports: int, answers: int, progress: Progress, stall_limit: float) -> int:
    """The watcher's whole life."""
    told_to_end = False

    def end_quietly(number: int, _: object) -> None:
        nonlocal told_to_end
        told_to_end = True
        _kill(rank_process)

    signal.signal(signal.SIGTERM, end_quietly)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank hears Ctrl-C as well, and ends
    voice: socket.socket | None = None
    reported, wrong_use, deadline = False, False, math.inf
    while True:
        ready, _, _ = select.select([reports], [], [], 0.1)
        text = os.read(reports, 1 << 16) if ready else b""
        if ready and not text:
            break  # the rank is gone
        slot = None if text or reported else progress.stalled(stall_limit)
        if slot is not None:
            cause = f"it did not move for {stall_limit:g} s (--stall-limit)"
            repair = "look at what that rank does there; raise the limit if a block takes so long"
            text = message(progress.rank(slot), progress.where(slot), cause, repair).encode()
            _kill(rank_process)
        if text:
            reported, voice, wrong_use = True, _speak(text), text.startswith(WRONG_USE.encode())
            with contextlib.suppress(BrokenPipeError):
                os.write(answers, b"!")
            deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:  # it cannot end by itself
            _kill(rank_process)
    _, status = os.waitpid(rank_process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not reported:
        time.sleep(0.05)  # a launcher that ends the whole job tells the watcher as well
        if not told_to_end:
            cause = f"killed by signal {-code} ({signal.Signals(-code).name})"
            repair = "SIGKILL: the memory was full, or someone killed it; SIGSEGV, SIGBUS: a crash in native code"
            voice = _speak(message(progress.rank(0), progress.where(0), cause, repair).encode())
    if voice is not None:
        time.sleep(0.1)  # the launcher passes the message on before it hears that we ended
    return code if code >= 0 else 1 + wrong_use  # also where it was too slow to end by itself, and was killed


def _speak(text: bytes) -> socket.socket | None:
    """Say it, unless another rank's watcher has said what happened; keep what is returned until the end."""
    voice = first_to_speak()
    if voice is not None:
        os.write(2, text)
        time.sleep(0.1)  # before anybody aborts: a launcher drops what it has not read by then
    return voice


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _listen_to_watcher(answers: int, heard: threading.Event, progress: Progress) -> None:
    """In the rank: the watcher's answer, or the end of the watcher, which is the end of the rank."""
    while os.read(answers, 1):
        heard.set()
    cause = "its watcher, the process that the launcher started, was killed"
    if first_to_speak():
        os.write(2, message(progress.rank(0), progress.where(0), cause, "start the job again").encode())
        time.sleep(0.1)
    os._exit(1)
