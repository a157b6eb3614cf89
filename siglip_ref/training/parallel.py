"""What a training knows of other ranks: their number, sums over all, the loss of all pairs. One process is alone."""

from pathlib import Path
from typing import Protocol

import numpy as np

from siglip_ref.model.loss import LossAndGrads, sigmoid_loss
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.process.interrupt import tell
from siglip_ref.training.saved.standing import where_it_stands


class Parallel(Protocol):
    """One rank of a training, as the loop sees it; `mpi.training.train.Ranks` has the same."""

    rank: int
    size: int

    def sum(self, array: Array) -> Array:
        """The sum over all ranks, the same bits on each."""

    def sigmoid(self, x: Array, y: Array, log_scale: Array, bias: Array, ops: Ops) -> LossAndGrads:
        """The loss of all ranks' pairs, its derivatives by the own ones."""

    def softmax(self, x: Array, y: Array, log_scale: Array, sizes: list[int], ops: Ops) -> LossAndGrads:
        """CLIP's loss of all ranks' pairs."""

    def at(self, step: int, phase: str) -> None:
        """What happens now; for messages, should this rank fail."""

    def keeps_in(self, out: Path) -> None:
        """Where the checkpoints are; for the sentence, should the training be interrupted."""


class Alone:
    """The only rank."""

    rank, size = 0, 1

    def sum(self, array: Array) -> Array:
        return array

    def sigmoid(self, x: Array, y: Array, log_scale: Array, bias: Array, ops: Ops) -> LossAndGrads:
        return sigmoid_loss(x, y, log_scale, bias, ops=ops)

    def softmax(self, x: Array, y: Array, log_scale: Array, sizes: list[int], ops: Ops) -> LossAndGrads:
        loss, d_x, d_y, d_log_scale = ops.softmax_loss(x, y, log_scale)
        return LossAndGrads(loss, d_x, d_y, d_log_scale, np.zeros_like(log_scale))

    def at(self, step: int, phase: str) -> None:
        pass

    def keeps_in(self, out: Path) -> None:
        tell(lambda: where_it_stands(out))


def share(count: int, rank: int, size: int) -> slice:
    """A rank's part of `count` things: as even as possible, in order.

    >>> [share(7, rank, 3) for rank in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(count * rank // size, count * (rank + 1) // size)
