"""BLAS on one thread, for as long as anybody needs it so.

The number of threads belongs to the process, so those who need it are counted: the first sets it, the last sets it
back.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import product

from threadpoolctl import LibController, ThreadpoolController

_lock = threading.Lock()
_before: list[list[int]] = []  # one entry for each user: the threads of each library before the first one came


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Hold every BLAS of this process to one thread.

    Raises
    ------
    ImportError : there is no BLAS that can be held to one thread
    """
    hold()
    try:
        yield
    finally:
        release()


def one_pool(compiled: bool) -> AbstractContextManager[None]:
    """`blas_on_one_thread` beside compiled kernels, which have a pool of their own; else nothing is held."""
    return blas_on_one_thread() if compiled else nullcontext()


def hold() -> None:
    """What `blas_on_one_thread` does first, for those who feel a context's microseconds; `release` must follow."""
    libraries = _blas()
    with _lock:
        if not _before:
            _before.append([number() for number, _ in libraries])
            for _, put in libraries:
                put(1)
        else:
            _before.append(_before[0])


def release() -> None:
    """What `blas_on_one_thread` does last."""
    with _lock:
        numbers = _before.pop()
        if not _before:
            for (_, put), number in zip(_blas(), numbers, strict=True):
                put(number)


@cache
def _blas() -> list[tuple[Callable[[], int], Callable[[int], object]]]:
    """Of each library, what tells its number of threads and what sets it."""
    import numpy  # noqa: F401  # loaded, so that both are found
    import scipy.linalg.cython_blas  # noqa: F401

    libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    if not libraries:
        raise ImportError("the BLAS of NumPy and SciPy cannot be held to one thread")
    return [_openblas(library) or (library.get_num_threads, library.set_num_threads) for library in libraries]


def _openblas(library: LibController) -> tuple[Callable[[], int], Callable[[int], object]] | None:
    """OpenBLAS's own functions: ten times as quick as to ask threadpoolctl, which a small model's step would feel."""
    for prefix, suffix in product(("scipy_", ""), ("64_", "_64", "")):
        names = [f"{prefix}openblas_{way}_num_threads{suffix}" for way in ("get", "set")]
        if all(hasattr(library.dynlib, name) for name in names):
            return getattr(library.dynlib, names[0]), getattr(library.dynlib, names[1])
    return None
