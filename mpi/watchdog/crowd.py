"""What the watchers of one job on one machine tell each other: who has spoken, who is moving; so there is one voice.

Every watcher has a mailbox, a datagram socket with a name that the others find in the system's list; the names are
abstract (Linux), so nothing lies on a disk and nothing is left behind. Elsewhere every watcher is alone, and speaks.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mpi.watchdog.launcher import is_launched, launchers_rank

SETTLE = 0.1  # seconds: a launcher passes on what was said before it hears that somebody ended


class Crowd:
    """The watchers of a job, which have one parent: the launcher, or its helper on this machine.

    job : the parent's process number, which they have in common; 0 for a job of one process
    """

    def __init__(self) -> None:
        self.job = os.getppid() if is_launched() else 0
        self.name = f"siglip-ring-{os.getuid()}-{self.job or os.getpid()}"
        self.boxes: list[socket.socket] = []
        self.voice: socket.socket | None = None

    def open(self) -> None:
        """Have a mailbox."""
        if sys.platform == "linux":
            self.boxes.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self.boxes[0].setblocking(False)
            self.boxes[0].bind(f"\0{self.name}-{os.getpid()}-{launchers_rank() or ''}")

    def close(self) -> None:
        """This process turned out to be the whole job: what the launcher's others say is not for it."""
        if self.job:
            self.job, self.name = 0, f"siglip-ring-{os.getuid()}-{os.getpid()}"
        while self.boxes:
            self.boxes.pop().close()

    def tell(self, word: str) -> None:
        """Send a word to all the others."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.setblocking(False)
            for name in self.others():
                with contextlib.suppress(OSError):  # it is gone, or its box is full
                    mouth.sendto(word.encode(), f"\0{name}")

    def heard(self) -> Iterator[str]:
        """Words that came since."""
        for box in self.boxes:
            with contextlib.suppress(BlockingIOError):
                while True:
                    yield box.recv(64).decode()

    def others(self) -> list[str]:
        """Names of the mailboxes of this job on this machine, one's own left out."""
        try:
            lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
        except OSError:
            return []
        return [name for name in _names(lines, f"{self.name}-") if not name.startswith(f"{self.name}-{os.getpid()}-")]

    def ranks(self) -> set[int]:
        """Ranks that have a watcher here, as far as their launcher gave them a number."""
        words = [name.rpartition("-")[2] for name in self.others()] + [launchers_rank() or ""]
        return {int(word) for word in words if word.isdigit()}

    def speak(self, text: bytes, ends: str = "now") -> bool:
        """Say it on stderr and tell the others that it was said, unless somebody else was first.

        ends : how the others' ranks will end: "now", or "by itself"
        """
        if not self._is_first():
            return False
        with contextlib.suppress(OSError):  # whoever would read it is gone
            if select.select([], [2], [], 1)[1]:  # nor does anybody read: a launcher that is stopped
                os.write(2, text)
        time.sleep(SETTLE)
        self.tell(f"spoken {ends}")
        return True

    def _is_first(self) -> bool:
        if sys.platform != "linux":
            return True
        self.voice = socket.socket(socket.AF_UNIX)  # kept until this process ends: the name is free again then
        try:
            self.voice.bind(f"\0{self.name}")
        except OSError:
            return False
        return True


def _names(lines: list[str], beginning: str) -> list[str]:
    """Abstract names in the system's list of sockets that begin so."""
    names = (line.rpartition("@")[2] for line in lines)
    return sorted({name for name in names if name.startswith(beginning)})
