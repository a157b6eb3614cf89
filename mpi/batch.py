"""What `siglip-ring loss` is told, the batch that it makes of it, and what it finds."""

import math
from dataclasses import dataclass

import numpy as np

from mpi.comm import Array
from mpi.observe import Event


@dataclass(frozen=True)
class Job:
    """What to compute; `fault` is rank:hop:kind, for demonstrations and tests."""

    pairs: int
    dim: int
    scheme: str
    dtype: str = "float64"
    tile: int = 128
    unequal: bool = False
    seed: int = 0
    log_scale: float = math.log(10.0)
    bias: float | None = None  # -log(pairs - 1)
    check: bool = True
    fault: str = ""


@dataclass(frozen=True)
class Outcome:
    """What every rank knows at the end; `worst` is the largest error against one process, if checked."""

    events: list[Event]
    sizes: list[int]
    loss: float
    d_log_scale: float
    d_bias: float
    worst: tuple[float, str] | None


def shard_sizes(pairs: int, world: int, unequal: bool) -> list[int]:
    """Pairs of every rank: as even as possible, or (unequal) in proportion 1 : 2 : ... : W."""
    weights = np.arange(1, world + 1) if unequal else np.ones(world)
    ends = np.floor(pairs * np.cumsum(weights) / weights.sum() + 1e-9).astype(int)
    return [int(n) for n in np.diff([0, *ends])]


def make_batch(job: Job, pairs: int) -> tuple[Array, Array]:
    """Unit rows from the seed, every row different; texts lean towards their images, as in a trained model."""
    rng = np.random.default_rng(job.seed)
    images = rng.normal(size=(pairs, job.dim))
    texts = images + rng.normal(size=(pairs, job.dim))
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    return images.astype(job.dtype), texts.astype(job.dtype)


def bias_of(job: Job) -> float:
    """By default the bias at which positives and negatives balance."""
    return -math.log(max(job.pairs - 1, 1)) if job.bias is None else job.bias
