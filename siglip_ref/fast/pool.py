"""One pool of threads: Numba's. While it works, BLAS runs single-threaded inside each of its tasks.

Two pools would spin against each other: on small tiles that costs up to a factor of 5.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numba

from siglip_ref.one_thread import blas_on_one_thread

_one_at_a_time = threading.RLock()


@contextmanager
def threads() -> Iterator[int]:
    """The number of threads to work with, for one Python thread at a time; BLAS keeps to one thread meanwhile.

    Ranks that are threads of one process take turns here, so they never share the pool or BLAS's setting.
    """
    with _one_at_a_time, blas_on_one_thread():
        yield numba.get_num_threads()


# In multiplications. Up to LONE BLAS stays on the calling thread by itself; below SHARED a task is over before a second
# thread has started, or, on a busy machine, has been given a core at all.
LONE, SHARED = 1 << 18, 1 << 21
ELEMENT = 32  # multiplications that take as long as one element of an element-wise kernel


class _Alone:
    """A context of one part, which costs nothing."""

    def __enter__(self) -> int:
        return 1

    def __exit__(self, *problem: object) -> None:
        """Nothing to give back."""


_ALONE = _Alone()


def parts_for(work: int) -> AbstractContextManager[int]:
    """Into how many parts, one a thread, to cut this many multiplications: `with parts_for(work) as parts`."""
    return _ALONE if work <= LONE else _shared(work)


def parts_for_elements(size: int) -> AbstractContextManager[int]:
    """The same for so many elements of a kernel that calls no BLAS."""
    return _ALONE if ELEMENT * size < SHARED else _shared(ELEMENT * size)


@contextmanager
def _shared(work: int) -> Iterator[int]:
    with threads() as number:
        yield number if work >= SHARED else 1
