"""No hang and no riddle: a watcher beside every rank says who failed, where and why, and then everything ends.

The process that mpiexec starts becomes the watcher. Before MPI is loaded it forks the rank, so whatever happens to
the rank - an exception, a stall, SIGKILL - the watcher is alive to tell; and because it still holds the launcher's
sockets, the launcher notices nothing, and kills nobody, until the watcher has spoken and ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from siglip_ref.errors import UsageError

if TYPE_CHECKING:
    from mpi.observe import Event  # not at run time: nothing heavy is loaded before the fork

STARTING, COMPUTING, WAITING, OVER = range(4)
FIELDS = ("rank", "state", "hop", "chunk", "peer", "gradient", "since")
GRACE = 1.0  # seconds that the rank that knows the cause may speak before those that only feel its loss


class Progress:
    """Where each rank of this process is, in memory that the watcher shares; see `listener`."""

    def __init__(self, ranks: int = 1) -> None:
        self._memory = mmap.mmap(-1, max(1, ranks) * len(FIELDS) * 8)
        self._cells = memoryview(self._memory).cast("d")
        self.ranks = ranks
        for slot in range(ranks):
            self._set(slot, rank=-1, since=time.monotonic())

    def listener(self, slot: int, rank: int) -> Callable[[str, Event], None]:
        """A listener for `mpi.observe.Observed` that keeps this rank's record."""
        self._set(slot, rank=rank, chunk=rank, state=COMPUTING, since=time.monotonic())

        def listen(phase: str, event: Event) -> None:
            if phase == "wait":
                self._set(slot, state=WAITING, peer=event.peer, gradient=event.what == "gradient")
            elif phase == "end" or event.kind == "block":
                self._set(slot, state=COMPUTING)
            if event.chunk >= 0 and (event.kind == "block" or (event.kind == "recv" and phase != "begin")):
                self._set(slot, hop=event.hop, chunk=event.chunk)
            self._set(slot, since=time.monotonic())

        return listen

    def over(self) -> None:
        for slot in range(self.ranks):
            self._set(slot, state=OVER, since=time.monotonic())

    def slot_of(self, rank: int) -> int:
        return next((slot for slot in range(self.ranks) if self._get(slot, "rank") == rank), 0)

    def stalled(self, limit: float) -> int | None:
        """The slot that has not moved for too long. Who waits is given longer: the one waited for is to blame."""
        allowed_in = {COMPUTING: limit, WAITING: 1.5 * limit + 1, STARTING: limit + 60, OVER: limit + 60}
        for state, allowed in allowed_in.items():
            for slot in range(self.ranks):
                if self._get(slot, "state") == state and time.monotonic() - self._get(slot, "since") > allowed:
                    return slot
        return None

    def where(self, slot: int) -> str:
        """In words."""
        rank, state, hop, chunk, peer = (int(self._get(slot, name)) for name in FIELDS[:5])
        block = f"hop {hop}, block (images of rank {rank}, texts of rank {chunk})"
        if state == STARTING:
            return "before the first hop, while it started"
        if state == OVER:
            return "after the last hop, while MPI ended"
        if state == WAITING and peer < 0:
            return "in a sum over all ranks"
        if state == WAITING:
            what = f"the gradient of the texts of rank {chunk}" if self._get(slot, "gradient") else "that chunk"
            place = block if chunk != rank else f"hop {hop}, the way home"
            return f"{place}, while it waited for {what} from rank {peer}"
        return f"{block}, while it computed"

    def rank(self, slot: int) -> str:
        rank = int(self._get(slot, "rank"))
        return str(rank) if rank >= 0 else launchers_rank() or "unknown"

    def _set(self, slot: int, **values: float) -> None:
        for name, value in values.items():
            self._cells[slot * len(FIELDS) + FIELDS.index(name)] = value

    def _get(self, slot: int, name: str) -> float:
        return self._cells[slot * len(FIELDS) + FIELDS.index(name)]


def launchers_rank() -> str | None:
    """The rank that the launcher gave this process, known before MPI is; None without a launcher."""
    names = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), None)


def first_to_speak() -> socket.socket | None:
    """One voice for all ranks of a job on this machine: whoever binds the job's name. It is free again when we end."""
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
    return (
        f"siglip-ring: rank {rank} failed and ended the job\nwhere:    {where}\ncause:    {cause}\nrepair:   {repair}\n"
    )


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
        if isinstance(cause, UsageError):  # every rank raised the same one: rank 0 speaks
            if progress.rank(slot) in ("0", "unknown") or hasattr(error, "rank"):
                report(f"siglip-ring: wrong use\n{cause}\n".encode())
                heard()
            return 2
        if type(cause).__module__.startswith("mpi4py"):  # most likely another rank is gone: it may speak first
            time.sleep(GRACE)
        frame = traceback.extract_tb(cause.__traceback__)[-1:]
        place = "".join(f" (line {at.lineno} of {os.path.basename(at.filename)}, in {at.name})" for at in frame)
        repair = "the cause names the line; --threads runs the same in one process, under a debugger"
        text = message(progress.rank(slot), progress.where(slot), f"{type(cause).__name__}: {cause}{place}", repair)
        report(text.encode())
        heard()
        _abort()
        return 1


def _abort() -> None:
    """End the other ranks too, where the launcher would not; the last line this process runs."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)


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
    reported = False
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
            reported, voice = True, _speak(text)
            with contextlib.suppress(BrokenPipeError):
                os.write(answers, b"!")
            last_resort = threading.Timer(GRACE, _kill, [rank_process])  # if it cannot end by itself
            last_resort.daemon = True
            last_resort.start()
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
    return code if code >= 0 else 1


def _speak(text: bytes) -> socket.socket | None:
    """Say it, unless another rank's watcher has said what happened; keep what is returned until the end."""
    voice = first_to_speak()
    if voice is not None:
        os.write(2, text)
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
