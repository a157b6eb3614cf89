"""Where `siglip-ring` and `python -m siglip_ring` start: the watcher is forked before anything that takes long.

It also finds the package `mpi`, or says which other `mpi` stands in the way.
"""

import os
import sys


def main() -> None:
    """Watch a process that runs `mpi.cli`."""
    # before numpy is loaded: ranks share the cores, and threads of matrix products that fight for them crawl
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        from mpi.watchdog.progress import COMMAND
        from mpi.watchdog.watch import supervise
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
    sys.exit(supervise(command, COMMAND))


def command() -> int:
    """The command, in the process of the rank."""
    from mpi.cli import run_app

    return run_app()


if __name__ == "__main__":
    main()
