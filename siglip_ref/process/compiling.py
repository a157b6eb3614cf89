"""Whether kernels are being compiled, or linked from the cache: then nobody may raise an exception in between."""

import threading

_lock = threading.Lock()
_depth = 0


def now() -> bool:
    """Whether any thread of this process is inside the compiler, or waits for it."""
    return _depth > 0


def begin() -> None:
    """A thread goes in; `end` must follow."""
    global _depth
    with _lock:
        _depth += 1


def end() -> None:
    """It has come out."""
    global _depth
    with _lock:
        _depth -= 1
