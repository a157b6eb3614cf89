"""Memory: keeping it from one step to the next, and how much of it is free."""

import contextlib
import ctypes
import sys
from pathlib import Path

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # as malloc.h of the GNU C library numbers them
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = (  # of control groups, version 2 and version 1: the limit, what is used, and what of that is kept of files
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and take it again: for programs that do the same step many times.

    The C library gives large arrays back to the system when they die. The next step then gets fresh pages, which the
    system zeroes one by one: a fifth of the time of a step. Afterwards the process stays as large as it once was.
    A setting of the whole process, so only a program calls it when it starts (`siglip-ref train`, `zeroshot`,
    `embed` do), never a library.

    Returns
    -------
    whether it could be set: with the GNU C library (most Linux); elsewhere nothing changes

    Source: mallopt(3).

    Examples
    --------
    >>> kept = keep_freed_memory()
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return all([mallopt(TRIM_THRESHOLD, 2**31 - 1), mallopt(MMAP_MAX, 0)])


def free_memory() -> int | None:
    """Bytes that this process could still take without anything being swapped out; None where the system does not say.

    On Linux what the kernel calls available, or what is left of the control group's limit (containers), if that is
    less. Source: proc(5), the kernel's cgroup-v2.rst.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used, statistics, name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            room = int((_CGROUPS / limit).read_text()) - int((_CGROUPS / used).read_text())
            kept = (_CGROUPS / statistics).read_text().split()
            found.append(room + int(kept[kept.index(name) + 1]))
    return min(found, default=None)
