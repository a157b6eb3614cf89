"""`siglip-ring` that knows the size "mini" and compiles nothing: a training with many short steps."""

import sys
from pathlib import Path

import siglip_ring

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))


def command():
    """In the rank's process, after the fork."""
    from pytest import MonkeyPatch
    from training_cases import mini

    from mpi.cli import app

    mini(MonkeyPatch())
    app()
    return 0


if __name__ == "__main__":
    siglip_ring.command = command
    siglip_ring.main()
