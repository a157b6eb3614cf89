"""BLAS on one thread, for as long as anybody needs it so.

The number of threads belongs to the process, so those who need it are counted: the first sets it, the last sets it
back.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import LibController, ThreadpoolController

_lock = threading.Lock()
_before: list[list[int]] = []  # one entry for each user: the threads of each library before that user came


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Hold every BLAS of this process to one thread.

    Raises
    ------
    ImportError : there is no BLAS that can be held to one thread
    """
    libraries = _blas()
    with _lock:
        _before.append([library.get_num_threads() for library in libraries])
        for library in libraries:
            library.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            if len(_before) == 1:
                for library, number in zip(libraries, _before[0], strict=True):
                    library.set_num_threads(number)
                _before.clear()
            else:
                _before.pop()  # the first entry is the one to go back to


@cache
def _blas() -> list[LibController]:
    import numpy  # noqa: F401  # loaded, so that both are found
    import scipy.linalg.cython_blas  # noqa: F401

    libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    if not libraries:
        raise ImportError("the BLAS of NumPy and SciPy cannot be held to one thread")
    return libraries
