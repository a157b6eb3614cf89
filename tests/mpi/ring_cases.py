"""What the ring's tests share: batches whose ranks all differ, the answer of one process, the error of a result."""

import math

import numpy as np

from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from siglip_ref.model.loss import LossAndGrads, sigmoid_loss

LOG_SCALE, BIAS = math.log(10.0), -2.5  # near the balance of positives and negatives: a lost block is seen


def batch(sizes, dim=6, seed=0, dtype=np.float64):
    """Unit rows, cut into the ranks' shards: (images of each rank), (texts of each rank)."""
    rng = np.random.default_rng(seed)
    sides = []
    for _ in range(2):
        rows = rng.normal(size=(sum(sizes), dim))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        sides.append(np.split(rows.astype(dtype), np.cumsum(sizes)[:-1]))
    return sides


def one_process(images, texts, log_scale=LOG_SCALE, bias=BIAS):
    return sigmoid_loss(np.concatenate(images), np.concatenate(texts), log_scale, bias)


def on_threads(images, texts, log_scale=LOG_SCALE, bias=BIAS, **options):
    def work(comm):
        return ring_sigmoid_loss(comm, images[comm.rank], texts[comm.rank], log_scale, bias, **options)

    return ThreadComm.run(len(images), work, timeout=120)


def errors(parts, whole: LossAndGrads):
    """max|a-b| / max|b| for each field; every rank's copy of a global number is compared."""
    found = {}
    for name in whole._fields:
        b = np.asarray(getattr(whole, name))
        of_ranks = [getattr(part, name) for part in parts]
        a = np.concatenate(of_ranks) if b.ndim else np.stack(of_ranks)
        found[name] = float(np.abs(a - b).max() / np.abs(b).max())
    return found


def assert_same(parts, whole, tolerance=1e-13):
    for name, error in errors(parts, whole).items():
        assert error <= tolerance, f"{name}: {error:.1e}"
