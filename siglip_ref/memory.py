"""Keeping memory from one step to the next."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # as malloc.h of the GNU C library numbers them


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
