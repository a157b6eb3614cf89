"""The ring: every rank's chunk visits every rank, and the sum of the answers it meets comes home.

Chunks move to the left: at hop s, rank r holds chunk (r + s) mod W. With four ranks:

              hop 0   hop 1   hop 2   hop 3
    rank 0      0       1       2       3       A chunk leaves home alone. Its first answer is born
    rank 1      1       2       3       0       at hop 1 and travels behind it from then on;
    rank 2      2       3       0       1       after hop 3 the answers make one more move, the
    rank 3      3       0       1       2       move home. The answer of hop 0 never leaves.

So each rank sends W-1 chunks and W-1 answers, in W rounds.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mpi.comm import Array, Communicator

CHUNK, ANSWER = 0, 1


def tag(kind: int, owner: int) -> int:
    """A message's label: what it is, and whose. No message can be taken for another."""
    return 4 * owner + kind


def ring(
    comm: Communicator,
    chunk: Array,
    sizes: Sequence[int],
    visit: Callable[[int, Array], Array],
    combine: Callable[..., Array] = np.add,
) -> Array:
    """Carry this rank's chunk round the ring; return what all ranks answered to it.

    Parameters
    ----------
    comm : communicator of W ranks
    chunk : array, shape (sizes[rank], ...); stays as it is
    sizes : rows of every rank's chunk; they may differ, also be 0
    visit : visit(owner, chunk) -> answer, an array with the chunk's rows; called once for each owner
    combine : how two answers become one; combine(answer, other, out=answer) changes the first instead

    Returns
    -------
    array like one answer, the rows of this rank's chunk: the W answers, combined
    """
    rank, world = comm.rank, comm.size
    left, right = (rank - 1) % world, (rank + 1) % world

    def move(kind: int, held: Array, buffers: list[Array], hop: int) -> Array:
        """Hand what is held to the left; what comes from the right belongs to the next owner."""
        owner = (rank + hop) % world
        coming = buffers[hop % 2][: sizes[owner]]  # the other buffer is the one being sent
        comm.Sendrecv(held, left, tag(kind, (owner - 1) % world), coming, right, tag(kind, owner))
        return coming

    held = np.ascontiguousarray(chunk)
    at_home = visit(rank, held)
    if world == 1:
        return at_home
    chunks, answers = pair_of_buffers(held, sizes), pair_of_buffers(at_home, sizes)

    for hop in range(1, world):
        held = move(CHUNK, held, chunks, hop)
        answer = visit((rank + hop) % world, held)
        if hop == 1:
            travelling = answer
        else:
            travelling = move(ANSWER, travelling, answers, hop)
            combine(travelling, answer, out=travelling)

    return combine(at_home, move(ANSWER, travelling, answers, world))


def pair_of_buffers(like: Array, sizes: Sequence[int]) -> list[Array]:
    """Two buffers, each with room for the largest chunk: one is filled while the other is sent."""
    return [np.empty((max(sizes), *like.shape[1:]), like.dtype) for _ in range(2)]
