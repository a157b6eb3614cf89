"""A folder that one process at a time writes into, held by a lock that dies with its process."""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from siglip_ref.errors import UsageError
from siglip_ref.process.atomic import lock
from siglip_ref.process.outputs import refusals

PATIENCE = 5.0  # seconds in which a process that was just killed may end, and give the folder back
_held: set[Path] = set()  # folders that this process has locked: its own calls may nest


@contextlib.contextmanager
def one_owner(folder: Path, name: str, what: str, harm: str, say: Callable[[str], None]) -> Iterator[None]:
    """Keep the folder to this process for as long as the context lasts, or the process lives.

    Parameters
    ----------
    name : of the file that is locked; what : makes use of the folder, "training"; harm : what two of them would do

    Raises
    ------
    UsageError : another process has it, and still has it after some patience
    """
    place = folder.resolve()
    if place in _held:
        yield
        return
    cause = "no right to write there, or a file of this name"
    with refusals("--out FOLDER that can be written to", cause, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + PATIENCE
        while (got := lock(descriptor)) is False:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
                raise UsageError(
                    expected=f"a folder that no other {what} is using",
                    got=f"{folder} is in use by {_named(holder)}",
                    cause=harm,
                    repair="wait until that one has ended, or end it; or give another --out",
                )
            time.sleep(0.05)
        if got is None:
            say(f"note: {folder} cannot be locked on this system: start no second {what} there")
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{platform.node()} {os.getpid()}\n".encode(), 0)
        _held.add(place)
        yield
    finally:
        if place in _held:
            _held.discard(place)
            os.truncate(descriptor, 0)
        os.close(descriptor)


def _named(holder: str) -> str:
    host, _, process = holder.strip().partition(" ")
    return f"process {process} on {host}" if process.isdecimal() else "another process"
