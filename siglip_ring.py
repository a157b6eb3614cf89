"""Where the command `siglip-ring` starts: it finds the package `mpi`, or says which other `mpi` stands in the way."""

import sys


def main() -> None:
    """Hand over to `mpi.cli`."""
    try:
        from mpi.cli import main as start
    except ImportError as error:
        module = sys.modules.get("mpi")
        if module is None or hasattr(module, "__path__"):
            raise
        print(
            "siglip-ring: wrong use\n"
            "expected: the package `mpi` that is installed beside siglip_ref\n"
            f"got:      {getattr(module, '__file__', module)} ({error})\n"
            "cause:    a file mpi.py of yours stands before it on Python's path\n"
            "repair:   rename that file, or start in another folder and without PYTHONPATH",
            file=sys.stderr,
        )
        sys.exit(2)
    start()
