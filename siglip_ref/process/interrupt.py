"""Ctrl-C and SIGTERM end a command with one sentence and exit code 130 or 143, whatever it does, and never in a crash.

An exception cannot do it alone: thrown into the compiler it ends in a segmentation fault, and a call into native code
does not even see it. So a thread hears of the signal at once, from the handler in C. Where an exception is safe the
main thread raises one and cleans up; while kernels compile, or if cleaning up takes too long, the thread says the
sentence and ends the process as it stands. Files are written whole or not at all, so nothing is lost.
"""

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from siglip_ref.process import compiling

SIGNALS = {signal.SIGINT: "interrupted (Ctrl-C)", signal.SIGTERM: "ended by SIGTERM"}
GRACE = 2.0  # seconds for the main thread to clean up
NOTHING = "nothing was written; the same command begins anew"


class Interrupted(BaseException):  # not an Exception, and no KeyboardInterrupt, which libraries catch
    """Raised in the main thread, so that what is open gets closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Guard:
    """Handlers, the thread that hears, and what is to be said."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.words: Callable[[], str] = lambda: NOTHING
        self.temporary: set[Path] = set()
        self.raised = self.heard = False  # in the main thread; by the thread that hears
        self.over, self.ending = threading.Event(), threading.Lock()
        self.mouth, self.ear = socket.socketpair()
        self.mouth.setblocking(False)

    def install(self) -> None:
        """Begin to hear."""
        self.before = {number: signal.signal(number, self.handle) for number in SIGNALS}
        self.wakeup = signal.set_wakeup_fd(self.mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self.listen, name="hears Ctrl-C", daemon=True).start()

    def remove(self) -> None:
        """All as it was."""
        self.over.set()
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.mouth.close()

    def handle(self, number: int, _: object) -> None:
        """In the main thread, between two of its steps."""
        if not (self.raised or self.over.is_set() or compiling.now()):
            self.raised = True
            raise Interrupted(number)

    def listen(self) -> None:
        """In the thread."""
        while byte := self.ear.recv(1):
            if byte[0] not in SIGNALS:
                continue
            again, self.heard = self.heard, True
            if not again and not compiling.now() and self.over.wait(GRACE):
                break
            self.end(byte[0])
        self.ear.close()

    def end(self, number: int) -> NoReturn:
        """The sentence, and the end of the process: no destructor runs, of whatever was half made."""
        while not self.ending.acquire(blocking=False):
            time.sleep(1)  # the other thread is ending the process
        try:
            words = self.words()
        except Exception:  # never without a sentence
            words = "the same command begins anew, or goes on"
        text = f"{self.command}: {SIGNALS[signal.Signals(number)]}; {words}\n"
        with contextlib.suppress(OSError):
            text = "\x1b[?25h\n" * os.isatty(2) + text  # a progress bar had hidden the cursor
            os.write(2, text.encode(errors="backslashreplace"))
        for folder in list(self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
        os._exit(128 + number)


_guards: list[Guard] = []  # the one that is installed, if one is


@contextlib.contextmanager
def guarded(command: str) -> Iterator[None]:
    """Whatever happens inside, Ctrl-C and SIGTERM end the process with a sentence of this command."""
    if _guards or threading.current_thread() is not threading.main_thread():
        yield
        return
    guard = Guard(command)
    guard.install()
    _guards.append(guard)
    try:
        yield
    except Interrupted as heard:
        guard.end(heard.number)
    finally:
        guard.remove()
        _guards.remove(guard)


def tell(words: Callable[[], str]) -> None:
    """What the sentence says of what is saved; called when it is said."""
    for guard in _guards:
        guard.words = words


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, also if the process is interrupted."""
    folder = Path(tempfile.mkdtemp(prefix="siglip-ref-"))
    for guard in _guards:
        guard.temporary.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
