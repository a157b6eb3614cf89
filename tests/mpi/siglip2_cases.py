"""A step of SigLIP 2's recipe on ranks of unequal size: the same data for threads, for MPI and for one process."""

from dataclasses import replace
from typing import Any

import numpy as np

import siglip_ref as sr
from mpi.comm import Communicator
from mpi.training.siglip2 import objective_over_ranks
from siglip_ref.architecture.sizes import Tower
from siglip_ref.siglip2 import RECIPE, Batch, Choices, Momentum, Target, Weights, captioning, distillation
from siglip_ref.siglip2.params import born, shapes

CFG = sr.config("tiny")
HEAD = distillation("dino", 11, hidden=14, bottleneck=6, teacher_temperature=0.07)
CHOICES = Choices(captioning("big_vision", Tower(12, 2, 17, 2)), HEAD, HEAD, shared_head=False, patch_centre="masked")
WEIGHTS = Weights(1.0, 1.0, 0.25, 0.0625)


def shard(key: int, count: int) -> Batch:
    """Captions and masks of unequal length; every rank's data differs."""
    rng = np.random.default_rng(key)
    labels = rng.integers(2, CFG.vocabulary, (count, 9))
    labels = np.where(np.arange(9) < rng.integers(2, 10, (count, 1)), labels, 0)
    tasks = [Target(labels, labels != 0, rng.random(count) < 0.5) for _ in range(3)]
    images, whole = rng.standard_normal((2, count, *CFG.image_size, 3))
    crops = rng.standard_normal((count, 2, 8, 16, 3))
    return Batch(images, labels, tasks, crops, whole, rng.random((count, 21)) < rng.random((count, 1)))


PARAMS = {
    name: 0.4 * np.random.default_rng(i).standard_normal(shape) + name.endswith(("gamma", "gain"))
    for i, (name, shape) in enumerate(shapes(CFG, CHOICES).items())
}
TEACHER = born({name: value + 0.05 for name, value in PARAMS.items()}, CHOICES)
MOMENTUM, RATE = Momentum(0.9, "cosine", 4), 0.05


def two_steps(sizes: tuple[int, ...]) -> list[list[Batch]]:
    """Of each step a batch for each rank."""
    return [[shard(60 + 10 * k + rank, count) for rank, count in enumerate(sizes)] for k in range(2)]


def trained(comm: Communicator, sizes: tuple[int, ...]) -> Any:
    """What a rank holds after two steps: parameters, teacher, centres."""

    def over_ranks(params: Any, shards: Any, *rest: Any) -> Any:
        return objective_over_ranks(comm, params, *shards, *rest)

    own = [[shards[comm.rank]] for shards in two_steps(sizes)]
    ops = replace(RECIPE, over_ranks=over_ranks)
    return ops.several_steps(PARAMS, own, TEACHER, CFG, CHOICES, WEIGHTS, RATE, MOMENTUM)


def trained_alone(sizes: tuple[int, ...]) -> Any:
    """The same in one process."""
    return RECIPE.several_steps(PARAMS, two_steps(sizes), TEACHER, CFG, CHOICES, WEIGHTS, RATE, MOMENTUM)


def held(done: Any) -> dict[str, Any]:
    """Every number of it, by name."""
    kept = (("student", done.params), ("teacher", done.teacher.params), ("centre", done.teacher.centres))
    return {f"{part} {name}": value for part, arrays in kept for name, value in arrays.items()}


def farthest(done: Any, wanted: Any) -> float:
    """The largest difference of two trainings, in units of a tensor's maximum where that is above 1."""
    theirs = held(wanted)
    return max(
        float(np.abs(value - theirs[name]).max() / max(np.abs(theirs[name]).max(), 1.0))
        for name, value in held(done).items()
    )
