"""No hang and no riddle: a watcher beside every rank says who failed, where and why, and then everything ends.

The process that mpiexec starts becomes the watcher. Before anything heavy is loaded it forks the rank, so whatever
happens to the rank - an exception, a stall, SIGKILL - the watcher is alive to tell; and because it still holds the
launcher's sockets, the launcher notices nothing, and kills nobody, until the watcher has spoken and ends. Should
somebody stop or kill the watcher, its guard says so, and the rank is ended (`mpi.watchdog.watched`).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mpi.watchdog.crowd import Crowd
from mpi.watchdog.launcher import local_ranks
from mpi.watchdog.leftovers import remove_leftovers
from mpi.watchdog.messages import WRONG_USE, ended, failed, killed
from mpi.watchdog.progress import Progress
from mpi.watchdog.watched import AT_ITS_END, GRACE, die_with, guard, run_watched, wake_with_parent, without_watcher

PATIENCE = 5.0  # seconds in which the others end when one has aborted them all, or all refuse alike
TICK = 0.1  # seconds between two looks
ASLEEP = 2.0  # seconds without a look: the watcher was stopped itself, and judges nothing that was before
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = ("T", "t")  # as /proc tells the state of a process


def supervise(work: Callable[[], int], progress: Progress, stall_limit: float = 60.0) -> int:
    """Run work() in a forked process, watched by this one; return the exit code for this process.

    Call it before MPI is loaded, and pass the result to sys.exit: it returns in both processes. In the rank's process
    Ctrl-C and SIGTERM end at once what runs, for the watcher says what there is to say; work() may set handlers.
    """
    progress.tell(limit=stall_limit)
    remove_leftovers()
    if not hasattr(os, "fork"):
        return without_watcher(work, progress)
    report_out, report_in = os.pipe()
    answer_out, answer_in = os.pipe()
    life_out, life_in = os.pipe()
    crowd = Crowd()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none may come before the forks and be heard after them
    watcher = os.getpid()
    rank_process = os.fork()
    if rank_process == 0:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        close(report_out, answer_in, life_out, life_in)
        die_with(watcher)
        return run_watched(work, progress, crowd, report_in, answer_out)
    close(report_in, answer_out)
    if os.fork() == 0:
        close(report_out, answer_in, life_in)
        guard(progress, crowd, life_out, watcher)
    os.close(life_out)
    code = Watcher(rank_process, report_out, answer_in, progress, crowd).watch()
    with contextlib.suppress(OSError):  # the guard is gone
        os.write(life_in, AT_ITS_END)
    return code


def close(*descriptors: int) -> None:
    """All of them."""
    for descriptor in descriptors:
        os.close(descriptor)


class Watcher:
    """The process that the launcher started."""

    def __init__(self, rank_process: int, reports: int, answers: int, progress: Progress, crowd: Crowd) -> None:
        self.rank_process, self.reports, self.answers, self.progress = rank_process, reports, answers, progress
        self.crowd, self.launcher = crowd, os.getppid()
        self.crowd.open()
        self.told = 0  # the signal that ended us
        self.code: int | None = None  # what to end with, once that is known
        self.quiet = False  # somebody has said why
        self.awake = self.looked = time.monotonic()
        self.others = self.sent = -math.inf  # when another rank was known to work; when we said that ours does
        self.stopped = self.deadline = math.inf  # since when the rank is stopped; until when it may end by itself
        wake_with_parent()
        for number in SIGNALS:
            signal.signal(number, self.end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def end(self, number: int, _: object) -> None:
        """Ctrl-C or SIGTERM, from somebody or from the launcher."""
        self.told = self.told or number
        self.kill()

    def kill(self) -> None:
        """End the rank."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rank_process, signal.SIGKILL)

    def watch(self) -> int:
        """The watcher's whole life; the exit code."""
        while (text := self.look()) is not None:
            if text:
                self.report(text)
            self.judge()
            if time.monotonic() >= self.deadline:  # it cannot end by itself
                self.kill()
        _, status = os.waitpid(self.rank_process, 0)
        return self.explain(os.waitstatus_to_exitcode(status))

    def look(self) -> bytes | None:
        """Wait for news, a moment at most; what the rank said, None if it is gone."""
        boxes = [box.fileno() for box in self.crowd.boxes]
        ready, _, _ = select.select([self.reports, *boxes], [], [], TICK)
        now = time.monotonic()
        self.awake = now if now - self.looked > ASLEEP else self.awake
        self.looked = now
        self.progress.tell(beat=now)
        if self.progress.told("alone"):
            self.crowd.close()
        for word in self.crowd.heard():
            if word == "moving":
                self.others = now
            elif word.startswith("spoken "):
                self.quiet = True
                self.deadline = min(self.deadline, now + (PATIENCE if word.endswith("itself") else 0))
        if self.progress.told("compiling") and now - self.sent > 1:
            self.sent = now
            self.crowd.tell("moving")
        return (os.read(self.reports, 1 << 16) or None) if self.reports in ready else b""

    def report(self, text: bytes) -> None:
        """The rank says itself why it failed."""
        self.code = 2 if text.startswith(WRONG_USE.encode()) else 1
        self.say(text.decode(errors="replace"), "by itself")
        with contextlib.suppress(OSError):
            os.write(self.answers, b"!")
        self.deadline = time.monotonic() + GRACE

    def judge(self) -> None:
        """Does the rank move, and is the launcher there?"""
        if self.quiet or self.told or self.code is not None:
            return
        progress, limit, now = self.progress, self.progress.told("limit"), time.monotonic()
        if self.crowd.job and os.getppid() != self.launcher:
            self.blame(progress.rank(0), progress.where(0), "its launcher, or the launcher's helper here, was killed")
            return
        self.stopped = min(self.stopped, now) if self.is_stopped() else math.inf
        slot = progress.stalled(limit, self.awake, self.others)
        stopped = now - max(self.stopped, self.awake) > limit  # whatever it was waiting for when it was stopped
        if slot is None and not stopped:
            return
        cause = f"it did not move for {limit:g} s (--stall-limit)"
        repair = "look at what that rank does there; raise the limit if a block takes so long"
        if self.stopped < now:
            cause, repair = f"{cause}: it is stopped (SIGSTOP)", "start the job again"
        absent = local_ranks() - self.crowd.ranks() if progress.is_joining() else set()
        if absent:
            rank, where = ", ".join(map(str, sorted(absent))), "before it could be watched"
            self.blame(rank, where, f"the others waited for it for {1.5 * limit + 61:g} s", "start the job again")
        elif stopped or slot is None:
            self.blame(*progress.hit(), cause, repair)
        else:
            self.blame(progress.rank(slot), progress.where(slot), cause, repair)

    def blame(self, rank: str, where: str, cause: str, repair: str = "start the job again") -> None:
        """Say who is to blame, and end the rank."""
        self.code = 1
        self.say(failed(rank, where, cause, repair))
        self.kill()

    def say(self, text: str, ends: str = "now") -> None:
        """Unless it was said; the other ranks end by themselves, or are to be ended now."""
        if not self.quiet:
            self.quiet = True
            self.crowd.speak(text.encode(errors="backslashreplace"), ends)

    def is_stopped(self) -> bool:
        """Whether the rank's process is."""
        try:
            stat = Path(f"/proc/{self.rank_process}/stat").read_text(errors="replace")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in STOPPED

    def explain(self, code: int) -> int:
        """The rank is gone: say why, if nobody has; the exit code for this process."""
        number = self.told or (-code if -code in SIGNALS else 0)
        if self.code is None and number:
            self.code = 128 + number
        elif self.code is None:
            self.code = code if code >= 0 else 1
        if code < 0 or self.told:
            time.sleep(0.05)  # who ends the whole job may have told the others first
            self.look()
            self.say(ended(self.progress, number, not self.crowd.job) if number else killed(self.progress, -code))
        return self.code
