"""Those whom the watcher forks: the rank, which reports what went wrong, and a guard, which watches the watcher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from mpi.watchdog.crowd import Crowd
from mpi.watchdog.messages import WRONG_USE, failed
from mpi.watchdog.progress import Progress
from siglip_ref.errors import UsageError
from siglip_ref.process import compiling
from siglip_ref.training.settings import TrainingStopped

GRACE = 1.0  # seconds that the rank that knows the cause may speak before those that only feel its loss
TICK = 0.25  # seconds between two looks at the watcher
ASLEEP = 2.0  # seconds without a look: the guard was stopped itself, and judges nothing that was before
AT_ITS_END = b"."  # what a watcher tells its guard when it ends as it should
PR_SET_PDEATHSIG = 1


def wake_with_parent(number: int = signal.SIGCONT) -> None:
    """Get this signal when the parent dies: even who is stopped is continued, and may notice, and end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def die_with(parent: int) -> None:
    """End when the parent does, by the system: in MPI's start no thread of Python can run, and it may wait for ever."""
    wake_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def run_watched(work: Callable[[], int], progress: Progress, crowd: Crowd, reports: int, answers: int) -> int:
    """Run work() and report what it raises; the exit code."""
    link = Link(progress, crowd, reports, answers)
    threading.Thread(target=link.listen, name="listens to the watcher", daemon=True).start()
    return run(work, progress, link.report, lambda: link.heard.wait(GRACE))


def without_watcher(work: Callable[[], int], progress: Progress) -> int:
    """The same where a process cannot be forked."""
    from siglip_ref.process.interrupt import guarded

    with guarded("siglip-ring"):
        return run(work, progress, lambda text: os.write(2, text), lambda: True)


def run(
    work: Callable[[], int], progress: Progress, report: Callable[[bytes], object], heard: Callable[[], bool]
) -> int:
    """Run work(); report what it raises, and see to it that the other ranks end, too."""
    try:
        code = work()
        progress.over()
        return code
    except SystemExit as ended:  # --help, or an option that is none
        progress.over()
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except (Exception, KeyboardInterrupt) as error:
        cause = error.__cause__ if hasattr(error, "rank") and error.__cause__ else error
        slot = progress.slot_of(getattr(error, "rank", -1))
        if isinstance(cause, UsageError):
            on_all = error is cause and cause.on_every_rank
            if not on_all or progress.rank(slot) == "0":
                report(f"{WRONG_USE}\n{cause}\n".encode(errors="backslashreplace"))
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
        text = failed(progress.rank(slot), progress.where(slot), words, repair)
        report(text.encode(errors="backslashreplace"))
        heard()
        _abort(1)
        return 1


def _abort(code: int) -> None:
    """End the other ranks too, where the launcher would not; the last line this process runs."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(code)


class Link:
    """What joins a rank to its watcher."""

    def __init__(self, progress: Progress, crowd: Crowd, reports: int, answers: int) -> None:
        self.progress, self.crowd, self.reports, self.answers = progress, crowd, reports, answers
        self.heard = threading.Event()

    def report(self, text: bytes) -> None:
        """To the watcher, which will say it."""
        with contextlib.suppress(OSError):  # it is gone, which `listen` notices
            os.write(self.reports, text)

    def listen(self) -> None:
        """In a thread: the watcher's answers; with its end the rank ends, where the system does not see to it."""
        worked = 0.0
        try:
            while True:
                if select.select([self.answers], [], [], TICK)[0]:
                    if not os.read(self.answers, 64):
                        break
                    self.heard.set()
                worked = self.note_compiling(worked)
        finally:
            os._exit(1)  # whatever happens

    def note_compiling(self, worked: float) -> float:
        """A rank whose process works while kernels compile does move, however long that takes."""
        inside = compiling.now()
        self.progress.tell(compiling=inside)
        others = time.process_time() - time.thread_time()  # what the other threads have used
        if inside and others - worked > 0.002:
            self.progress.moves()
            return others
        return worked


def guard(progress: Progress, crowd: Crowd, life: int, watcher: int) -> NoReturn:
    """The watcher's own watcher: should that one be killed, say so; should it be stopped, end it, and the rank with it.

    life : a pipe that is closed when the watcher is gone; what comes through it before is AT_ITS_END
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the watcher, with which this process ends
        signal.signal(number, signal.SIG_IGN)
    wake_with_parent()
    awake = looked = time.monotonic()
    cause = "its watcher, the process that the launcher started, was killed"
    try:
        while not (gone := bool(select.select([life], [], [], TICK)[0])):
            now, limit = time.monotonic(), progress.told("limit")
            awake, looked = now if now - looked > ASLEEP else awake, now
            if now - max(awake, progress.told("beat")) > limit:
                stopped = f"its watcher, process {watcher}, did not move for {limit:g} s (--stall-limit)"
                cause = f"{stopped}: it is stopped (SIGSTOP)"
                break
        if gone and os.read(life, 1) == AT_ITS_END:
            os._exit(0)
        text = failed(progress.rank(0), progress.where(0), cause, "start the job again")
        crowd.speak(text.encode(errors="backslashreplace"))
        if not gone:
            os.kill(watcher, signal.SIGKILL)
    finally:
        os._exit(1)
