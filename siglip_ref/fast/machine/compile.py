"""How kernels are compiled: on first use, with one line that says so, and kept on disk where a place can be found."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import event

from siglip_ref.process import compiling

F = TypeVar("F", bound=Callable[..., Any])

# Values are computed strictly, but for fused multiply-adds. Only the loops that add them up may reorder: freedom
# to reassociate inside exp would undo the rounding trick there (wrong by 40 %, and fast).
STRICT = {"contract"}
SUMS = {"contract", "reassoc", "nsz"}

# Numba compiles a kernel, and all that it calls, anew for each Python constant among what it is given, for a number
# and for the unsigned counter of a prange. So kernels hand one another numbers of one kind: COUNT(thread), ZERO, ONE.
# An index is unsigned, INDEX(thread) and FIRST: with one that might be below zero, loops stay scalar.
COUNT: Any = np.int64
INDEX: Any = np.uintp
ZERO, ONE, FIRST = COUNT(0), COUNT(1), INDEX(0)


def kernel(*, fastmath: set[str] = STRICT, parallel: bool = False) -> Callable[[F], F]:
    """Compile a function with Numba on its first call; the result is kept in Numba's cache on disk.

    The cache lies beside the source, else in the user's cache folder (`NUMBA_CACHE_DIR` overrules both). Where no
    folder can be written, the kernel is compiled anew in each process: slower, never broken.

    Parameters
    ----------
    fastmath : LLVM's freedoms for the arithmetic written in this very function (not for what it calls)
    parallel : `prange` spreads over Numba's threads
    """
    settings: Any = {"fastmath": fastmath, "parallel": parallel, "nogil": True, "error_model": "numpy"}
    settings["no_cfunc_wrapper"] = True  # nobody calls kernels from C, and it takes 5 % of the time to compile

    def compiled(function: F) -> F:
        try:
            dispatcher = numba.njit(cache=True, **settings)(function)
            stamped = dispatcher._cache._cache_file
            stamped._source_stamp = (stamped._source_stamp, package_stamp())
        except (RuntimeError, AttributeError):  # no folder to write to, or a Numba whose cache cannot be stamped
            dispatcher = numba.njit(**settings)(function)
        return dispatcher  # type: ignore[no-any-return]

    return compiled


@cache
def package_stamp() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of all files that kernels come from: Numba looks only at a kernel's own file."""
    files = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return tuple((file.name, (found := file.stat()).st_mtime_ns, found.st_size) for file in files)


class _Inside(event.Listener):
    """Tells who has to know that a thread is inside the compiler, or links what lies in the cache."""

    def on_start(self, event: event.Event) -> None:
        compiling.begin()

    def on_end(self, event: event.Event) -> None:
        compiling.end()


class _Progress(event.Listener):
    """Says once per process, on stderr, that kernels are being compiled; a cached kernel says nothing."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: event.Event) -> None:
        dispatcher = event.data["dispatcher"]
        module = dispatcher.py_func.__module__ or ""  # none: a function made by exec
        if not self.said and module.startswith(__package__):
            self.said = True
            print("siglip-ref: compiling kernels for this machine, a minute or two, once ...", file=sys.stderr)

    def on_end(self, event: event.Event) -> None:
        """Nothing to say."""


event.register("numba:compiler_lock", _Inside())
event.register("numba:compile", _Progress())
