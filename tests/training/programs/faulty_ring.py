"""`siglip-ring train` on the small model, where one rank is killed or raises: FAULT=rank:step:phase:kind in front."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from pytest import MonkeyPatch
from training_cases import mini

from mpi import cli
from mpi.training import train


def fault(at):
    rank, when, where, kind = os.environ["FAULT"].split(":")

    def failing(self, step, phase):
        at(self, step, phase)
        if (str(self.rank), str(self.step), phase) == (rank, when, where):
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this failure was asked for")

    return failing


if __name__ == "__main__":
    mini(MonkeyPatch())
    if "FAULT" in os.environ:
        train.Ranks.at = fault(train.Ranks.at)
    cli.main()
