"""One pool of threads: Numba's. While it works, BLAS runs single-threaded inside each of its tasks.

Two pools would spin against each other: on small tiles that costs up to a factor of 5.
"""

import threading
from contextlib import AbstractContextManager

import numba

from siglip_ref.process.blas_threads import hold, release

_one_at_a_time = threading.RLock()


class _Threads:
    """A context of at most this many parts: plain methods, as a small model's step feels a generator's microseconds."""

    def __init__(self, most: int | None) -> None:
        self.most = most

    def __enter__(self) -> int:
        _one_at_a_time.acquire()
        try:
            hold()
        except BaseException:
            _one_at_a_time.release()
            raise
        return self.most or numba.get_num_threads()

    def __exit__(self, *problem: object) -> None:
        release()
        _one_at_a_time.release()


def threads() -> AbstractContextManager[int]:
    """The number of threads to work with, for one Python thread at a time; BLAS keeps to one thread meanwhile.

    Ranks that are threads of one process take turns here, so they never share the pool or BLAS's setting.
    """
    return _ALL


def threads_at_most() -> int:
    """Into how many parts a kernel may be cut."""
    return int(numba.get_num_threads())


# In multiplications. Up to LONE BLAS stays on the calling thread by itself; below SHARED a task is over before a second
# thread has started, or, on a busy machine, has been given a core at all.
LONE, SHARED = 1 << 18, 1 << 19
ELEMENT = 32  # multiplications that take as long as one element of an element-wise kernel


class _Alone:
    """A context of one part, which costs nothing."""

    def __enter__(self) -> int:
        return 1

    def __exit__(self, *problem: object) -> None:
        """Nothing to give back."""


_ALONE, _ONE, _ALL = _Alone(), _Threads(1), _Threads(None)


def parts_for(work: int) -> AbstractContextManager[int]:
    """Into how many parts, one a thread, to cut this many multiplications: `with parts_for(work) as parts`."""
    return _ALL if work >= SHARED else _ONE if work > LONE else _ALONE


def parts_for_elements(size: int) -> AbstractContextManager[int]:
    """The same for so many elements of a kernel that calls no BLAS."""
    return _ALL if ELEMENT * size >= SHARED else _ALONE
