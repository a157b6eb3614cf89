"""Files that are whole or not there at all, and locks that die with their process."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, content: bytes) -> None:
    """A file that holds either what it held before or all of the content, whatever happens meanwhile."""
    with written_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name once all is written; if anything is raised, nothing has happened.

    What a killed process left of an earlier attempt is swept away; what a living one is writing is not touched.
    """
    sweep(path.parent, f"{path.name}.*.part")
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _locked_new(beside) as descriptor:
            with open(descriptor, "wb", closefd=False) as file:
                yield file
                file.flush()
            os.fsync(descriptor)
            beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    with contextlib.suppress(OSError):  # the folder's own entry; not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def sweep(folder: Path, pattern: str = "*.part") -> None:
    """Remove what processes that are gone were writing: a living one holds a lock on its file."""
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDWR)
            try:
                if lock(descriptor) is not False:
                    left.unlink()
            finally:
                os.close(descriptor)


def lock(descriptor: int) -> bool | None:
    """Lock an open file for this process; the lock dies with it. False: another has it; None: there are no locks here.

    Locks are what Linux and macOS have as flock; Windows and some network file systems have none.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _locked_new(path: Path) -> Iterator[int]:
    """A new, locked file; on another try if somebody swept it away between its making and its lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            locked = lock(descriptor)
            if locked is None or (locked and path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino):
                yield descriptor
                return
        finally:
            os.close(descriptor)
