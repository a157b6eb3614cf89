"""Ways to bring every image together with every text. All give the same result; they differ in what is sent and kept.

A scheme is a function (comm, text_embed, sizes, home) -> d_text_embed. It shows every rank's texts to `home`, which
keeps what belongs to the images, and brings the gradient of the own texts home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from mpi.comm import Array, Communicator, Request
from mpi.ring import ANSWER, CHUNK, pair_of_buffers, ring, tag

if TYPE_CHECKING:
    from mpi.loss import Home

Scheme = Callable[[Communicator, Array, Sequence[int], "Home"], Array]


def blocking(comm: Communicator, text_embed: Array, sizes: Sequence[int], home: Home) -> Array:
    """The ring as it stands."""
    return ring(comm, text_embed, sizes, home.visit, home.combine)


def overlapped(comm: Communicator, text_embed: Array, sizes: Sequence[int], home: Home) -> Array:
    """The same ring with every message under way while a block is computed.

    The next texts come while the present ones are met; a gradient may arrive late, for it is only added. One half
    of the own block hides the first message, the other half the last.
    """
    rank, world = comm.rank, comm.size
    left, right = (rank - 1) % world, (rank + 1) % world
    held = np.ascontiguousarray(text_embed)
    at_home = travelling = home.zeros(held)

    def start(kind: int, held: Array, buffers: list[Array], hop: int) -> tuple[Array, list[Request]]:
        owner = (rank + hop) % world
        coming = buffers[hop % 2][: sizes[owner]]
        return coming, [
            comm.Irecv(coming, right, tag(kind, owner)),
            comm.Isend(held, left, tag(kind, (owner - 1) % world)),
        ]

    own_block = home.tiles(rank, held, at_home)
    if world == 1:
        _compute(own_block, [])
        return at_home
    chunks, answers = pair_of_buffers(held, sizes), pair_of_buffers(at_home, sizes)

    following, waiting = start(CHUNK, held, chunks, 1)
    _compute(islice(own_block, ceil(len(held) / home.tile) ** 2 // 2), waiting)
    _finish(waiting)
    for hop in range(1, world):
        held, waiting = following, []
        if hop < world - 1:
            following, waiting = start(CHUNK, held, chunks, hop + 1)
        if hop > 1:
            arriving, more = start(ANSWER, travelling, answers, hop)
            waiting += more
        answer = home.zeros(held)
        _compute(home.tiles((rank + hop) % world, held, answer), waiting)
        _finish(waiting)
        travelling = answer if hop == 1 else home.combine(arriving, answer)
    arriving, waiting = start(ANSWER, travelling, answers, world)
    _compute(own_block, waiting)
    _finish(waiting)
    return home.combine(at_home, arriving)


def bidirectional(comm: Communicator, text_embed: Array, sizes: Sequence[int], home: Home) -> Array:
    """Two rings at once: the first half of the rows goes left, the second right. Uses both directions of a link."""
    rank, world = comm.rank, comm.size
    first = [min(n, ceil(n / 2 / home.granule) * home.granule) for n in sizes]
    halves = [first, [n - half for n, half in zip(sizes, first, strict=True)]]

    def move(kind: int, held: list[Array], hop: int) -> list[Array]:
        coming, waiting = [], []
        for way, step in enumerate((1, -1)):  # the owner's distance grows by this step at every hop
            owner = (rank + step * hop) % world
            coming.append(np.empty((halves[way][owner], *held[way].shape[1:]), held[way].dtype))
            waiting += [
                comm.Irecv(coming[way], (rank + step) % world, tag(kind + 2 * way, owner)),
                comm.Isend(held[way], (rank - step) % world, tag(kind + 2 * way, (owner - step) % world)),
            ]
        _finish(waiting)
        return coming

    own = np.ascontiguousarray(text_embed)
    at_home = home.visit(rank, own)
    travelling: list[Array] = []
    if world == 1:
        return at_home
    held = [own[: halves[0][rank]], own[halves[0][rank] :]]
    for hop in range(1, world):
        held = move(CHUNK, held, hop)
        answer = [home.visit((rank + step * hop) % world, held[way]) for way, step in enumerate((1, -1))]
        if hop > 1:
            travelling = move(ANSWER, travelling, hop)
            answer = [home.combine(mine, theirs) for mine, theirs in zip(answer, travelling, strict=True)]
        travelling = answer
    return home.combine(at_home, np.concatenate(move(ANSWER, travelling, world)))


def autograd_like(comm: Communicator, text_embed: Array, sizes: Sequence[int], home: Home) -> Array:
    """What autograd makes of a ring: a forward trip that keeps everything, and a backward trip the other way."""
    rank, world = comm.rank, comm.size
    left, right = (rank - 1) % world, (rank + 1) % world
    x, scale, softplus = home.image_embed, np.exp(home.log_scale), home.ops.softplus
    held = np.ascontiguousarray(text_embed)
    tape = []
    for hop in range(world):
        owner = (rank + hop) % world
        if hop > 0:
            coming = np.empty((sizes[owner], *held.shape[1:]), held.dtype)
            comm.Sendrecv(held, left, tag(CHUNK, (owner - 1) % world), coming, right, tag(CHUNK, owner))
            held = coming
        scaled = scale * (x @ held.T)
        match = np.eye(len(x), len(held), dtype=bool) & (hop == 0)
        logits = np.where(match, -1, 1).astype(x.dtype) * (scaled + home.bias)
        home.sums[0] += softplus(logits).sum()
        tape.append((owner, held, scaled, match))

    returning = np.zeros_like(held)
    for hop in reversed(range(world)):
        owner, held, scaled, match = tape.pop()
        sign = np.where(match, -1, 1).astype(x.dtype)
        d_logits = sign * home.ops.sigmoid(sign * (scaled + home.bias))
        home.sums[1:] += (d_logits * scaled).sum(), d_logits.sum()
        home.d_image_embed += scale * (d_logits @ held)
        returning = returning + scale * (d_logits.T @ x)
        if hop > 0:  # back to the neighbour these texts came from
            coming = np.empty((sizes[(owner - 1) % world], *held.shape[1:]), held.dtype)
            comm.Sendrecv(returning, right, tag(ANSWER, owner), coming, left, tag(ANSWER, (owner - 1) % world))
            returning = coming
    return returning


def allgather(comm: Communicator, text_embed: Array, sizes: Sequence[int], home: Home) -> Array:
    """All texts to every rank, then every gradient to its owner; as direct exchanges, so that each is counted."""
    rank, world = comm.rank, comm.size
    ends = np.cumsum([0, *sizes])
    rows = [slice(ends[owner], ends[owner + 1]) for owner in range(world)]
    texts = np.empty((ends[-1], *text_embed.shape[1:]), text_embed.dtype)
    texts[rows[rank]] = text_embed
    for step in range(1, world):
        to, source = (rank - step) % world, (rank + step) % world
        comm.Sendrecv(texts[rows[rank]], to, tag(CHUNK, rank), texts[rows[source]], source, tag(CHUNK, source))
    order = [(rank + step) % world for step in range(world)]
    answers = {owner: home.visit(owner, texts[rows[owner]]) for owner in order}
    mine, part = answers[rank], np.empty_like(answers[rank])
    for step in range(1, world):
        to, source = (rank + step) % world, (rank - step) % world
        comm.Sendrecv(answers[to], to, tag(ANSWER, to), part, source, tag(ANSWER, rank))
        home.combine(mine, part, out=mine)
    return mine


def masked_allreduce(comm: Communicator, text_embed: Array, sizes: Sequence[int], home: Home) -> Array:
    """W sums to which all ranks but one give zeros, and W more for the gradients (big_vision, 2023)."""
    for owner in range(comm.size):
        shape = (sizes[owner], *text_embed.shape[1:])
        mine = np.ascontiguousarray(text_embed) if owner == comm.rank else np.zeros(shape, text_embed.dtype)
        texts, d_texts = np.empty_like(mine), np.empty_like(mine)
        comm.Allreduce(mine, texts)
        comm.Allreduce(home.visit(owner, texts), d_texts)
        if owner == comm.rank:
            d_own = d_texts
    return d_own


def _compute(tiles: Iterator[None], waiting: list[Request]) -> None:
    """Compute tile by tile; between tiles, let the messages move on (MPI need not do so by itself)."""
    for _ in tiles:
        for request in waiting:
            request.Test()


def _finish(waiting: list[Request]) -> None:
    for request in waiting:
        request.Wait()


SCHEMES: dict[str, Scheme] = {
    "blocking": blocking,
    "overlapped": overlapped,
    "bidirectional": bidirectional,
    "autograd-like": autograd_like,
    "allgather": allgather,
    "masked-allreduce": masked_allreduce,
}
# can carry tallies: they combine, and only combine
REPRODUCIBLE = ["blocking", "overlapped", "bidirectional", "allgather"]
