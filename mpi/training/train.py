"""Training over ranks: what `siglip_ref.training` asks of its parallel object, answered with messages."""

from pathlib import Path

import numpy as np

from mpi.comm import Array, Communicator
from mpi.loss import ring_sigmoid_loss
from mpi.observe import Observed
from mpi.softmax import ring_softmax_loss
from mpi.watchdog.progress import Progress
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops


class Ranks:
    """One rank of a training: towers data-parallel, the loss on the ring, gradients summed up."""

    def __init__(self, comm: Communicator, progress: Progress, slot: int, sums: str) -> None:
        self.comm, self.progress, self.slot, self.sums = comm, progress, slot, sums
        self.rank, self.size = comm.rank, comm.size
        self.listener = progress.listener(slot, comm.rank)
        self.step = 0

    def sum(self, array: Array) -> Array:
        comm = Observed(self.comm, self.listener)
        if self.sums == "ring":
            return ring_sum(comm, array)
        total = np.empty_like(array)
        comm.Allreduce(array, total)
        return total

    def sigmoid(self, x: Array, y: Array, log_scale: Array, bias: Array, ops: Ops) -> LossAndGrads:
        comm = Observed(self.comm, self.listener)
        return ring_sigmoid_loss(comm, x, y, log_scale, bias, ops=comm.ops(ops))

    def softmax(self, x: Array, y: Array, log_scale: Array, sizes: list[int], ops: Ops) -> LossAndGrads:
        found = ring_softmax_loss(Observed(self.comm, self.listener), x, y, log_scale, sizes)
        return LossAndGrads(*found, np.zeros_like(found.loss))

    def at(self, step: int, phase: str) -> None:
        self.step = step if step >= 0 else self.step
        self.progress.note(self.slot, f"step {self.step}, {phase}")

    def keeps_in(self, out: Path) -> None:
        self.progress.keeps_in(out)


def ring_sum(comm: Communicator, array: Array) -> Array:
    """Allreduce in the open: 2(W-1) messages of a W-th of the array each, the fewest bytes there can be.

    At hop s rank r sends part r + s to the left and receives part r + s + 1 from the right. For W-1 hops it adds what
    comes to its own part: then part r - 1 is complete on rank r. For W-1 more hops complete parts go round and are kept
    as they come. So every rank ends with the same bits.

    Parameters
    ----------
    array : shape (n,), any n; the same on every rank
    """
    rank, world = comm.rank, comm.size
    parts = np.array_split(np.array(array), world)  # pieces of one copy
    for hop in range(2 * (world - 1)):
        going, coming = (rank + hop) % world, (rank + hop + 1) % world
        buffer = np.empty_like(parts[coming])
        comm.Sendrecv(parts[going], (rank - 1) % world, 4 * going + 2, buffer, (rank + 1) % world, 4 * coming + 2)
        parts[coming] = parts[coming] + buffer if hop < world - 1 else buffer
    return np.concatenate(parts)
