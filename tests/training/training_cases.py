"""Small trainings for the tests: seconds, float64, the specification's own operations."""

import dataclasses

import numpy as np

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.sizes import SIZES, Config, Tower
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.training import siglip2, task
from siglip_ref.training.loop import Quiet, train
from siglip_ref.training.parallel import Alone
from siglip_ref.training.settings import Settings

# digits at a quarter of their size: 4 patches, 24 bytes
MINI = Config("mini", Tower(8, 1, 12, 2), Tower(8, 1, 12, 2), (16, 16), 8, 259, 24, conventions=PRESETS["huggingface"])


def mini(monkeypatch):
    """The model "mini", and plain NumPy for speed: nothing is compiled."""
    monkeypatch.setitem(SIZES, "mini", MINI)
    for room in (task, siglip2):
        monkeypatch.setattr(room, "best_ops", lambda: SPECIFICATION)


def settings(**changes):
    small = {"data": "digits", "model": "mini", "steps": 50, "batch": 24, "dtype": "float64", "lr": 3e-3}
    return dataclasses.replace(Settings(), **small | changes)


def alone(out, show=None, force=False, **changes):
    """One process; never judged before the end."""
    return train(settings(**changes), out, Alone(), show or Quiet(), judge_every=10**6, force=force)


def on_ranks(world, out, sums="allreduce", **changes):
    """The same on threads; every rank's run."""
    from mpi.comm import ThreadComm
    from mpi.training.train import Ranks
    from mpi.watchdog.progress import Progress

    progress = Progress(world)

    def rank(comm):
        ranks = Ranks(comm, progress, comm.rank, sums)
        return train(settings(**changes), out, ranks, Quiet(), judge_every=10**6)

    return ThreadComm.run(world, rank, timeout=120)


def worst(a, b):
    """Largest error of all parameters, and whose."""
    errors = {name: np.abs(a[name] - b[name]).max() / (np.abs(b[name]).max() or 1.0) for name in b}
    name = max(errors, key=errors.get)
    return errors[name], name
