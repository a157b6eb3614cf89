"""Runs of every scheme that can be seen in time: a block takes 10 ms a pair, a message 3 ms and what its bytes take.

The toy's real blocks last microseconds, and two cores are not eight ranks. So each rank has a clock of its own, which
goes on only by what its blocks take and by waiting for messages, as if each rank had a processor and each pair of ranks
a link of its own. What is computed, what is sent and in which order is the program's own, run on threads; when each
thing begins and ends is added up, so it is the same on a busy machine.
"""

# ruff: noqa: N802 - methods have the names that MPI gave them

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mpi import softmax
from mpi.batch import Job, bias_of, make_batch
from mpi.comm import Array, Communicator, Request, ThreadComm, Wrapper
from mpi.loss import ring_sigmoid_loss
from mpi.observe import Event, Observed
from mpi.ring import ring
from mpi.trace import Trace
from siglip_ref import ops as plain
from siglip_ref.model.specification import chosen
from siglip_ref.ops.record import Ops

SCHEMES = ("blocking", "overlapped", "bidirectional", "autograd-like", "allgather", "softmax ring")
EACH, WIDTH = 2, 3
PAIR, LATENCY, CHUNK = 10e-3, 3e-3, 22e-3  # seconds: of a pair, of any message, of the bytes of a chunk
FORWARD = 1 / 3  # of a block: logits are one matrix product of three
BYTES = EACH * WIDTH * 8


class Timed(Trace):
    """A trace whose times are those of its rank's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.heard = 0.0  # the clock, and when the latest message was there

    def __call__(self, phase: str, event: Event) -> None:
        if phase == "begin":
            event.start = self.now
        elif phase == "end":
            event.end = max(event.start, self.heard) if event.kind == "recv" else self.now
        super().__call__(phase, event)

    def hear(self, arrival: float) -> None:
        """A message that is waited for."""
        self.heard = arrival
        self.now = max(self.now, arrival)


class Links:
    """A link from each rank to each: messages follow one another on it, each as long as its bytes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: defaultdict[tuple[int, int], float] = defaultdict(float)
        self.arrivals: defaultdict[tuple[int, int, int], deque[float]] = defaultdict(deque)

    def send(self, now: float, source: int, dest: int, tag: int, nbytes: int) -> None:
        with self.lock:
            begin = max(now, self.free[source, dest])
            self.free[source, dest] = end = begin + LATENCY + CHUNK * nbytes / BYTES
            self.arrivals[source, dest, tag].append(end)

    def arrival(self, source: int, dest: int, tag: int) -> float:
        with self.lock:
            return self.arrivals[source, dest, tag].popleft()


class Slow(Wrapper):
    """A communicator whose messages need their time on a link."""

    def __init__(self, comm: Communicator, links: Links, trace: Timed) -> None:
        super().__init__(comm)
        self.links, self.trace = links, trace

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        self.links.send(self.trace.now, self.rank, dest, sendtag, sendbuf.nbytes)
        self.comm.Sendrecv(sendbuf, dest, sendtag, recvbuf, source, recvtag)
        self.trace.hear(self.links.arrival(source, self.rank, recvtag))

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        self.links.send(self.trace.now, self.rank, dest, tag, buf.nbytes)
        return self.comm.Isend(buf, dest, tag)

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        return _Late(
            self.comm.Irecv(buf, source, tag), lambda: self.trace.hear(self.links.arrival(source, self.rank, tag))
        )

    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> None:
        self.comm.Allreduce(sendbuf, recvbuf)
        clocks, found = np.zeros(self.size), np.empty(self.size)
        clocks[self.rank] = self.trace.now
        self.comm.Allreduce(clocks, found)  # it ends for all when the last has come
        self.trace.now = float(found.max())


class _Late:
    """A message that is known to be there when it is waited for: what a test finds would depend on the threads."""

    def __init__(self, request: Request, hear: Callable[[], None]) -> None:
        self.request, self.hear = request, hear

    def Test(self) -> bool:
        return False

    def Wait(self) -> bool:
        self.request.Wait()
        self.hear()
        return True


def slowed(ops: Any, trace: Timed, ended: Callable[[float], None]) -> Ops:
    """The operations, which move the clock; `ended` hears when a block of autograd's backward pass began."""
    record = chosen(ops)

    def pair_block(*arguments: Any) -> Any:
        trace.now += PAIR * arguments[-1].size
        return record.pair_block(*arguments)

    def softplus(logits: Array) -> Array:
        trace.now += PAIR * FORWARD * logits.size
        return record.softplus(logits)

    def sigmoid(logits: Array) -> Array:
        begin = trace.now
        trace.now += PAIR * (1 - FORWARD) * logits.size
        ended(begin)
        return record.sigmoid(logits)

    return replace(record, pair_block=pair_block, softplus=softplus, sigmoid=sigmoid)


def recorded(scheme: str, world: int) -> list[Event]:
    """What the ranks of one run did, in seconds."""
    job = Job(EACH * world, WIDTH, scheme)
    images, texts = make_batch(job, job.pairs)
    x, y = np.split(images, world), np.split(texts, world)
    links = Links()

    def work(comm: ThreadComm) -> list[Event]:
        trace, rank, hops = Timed(), comm.rank, list(range(world))
        observed = Observed(Slow(comm, links, trace), trace)

        def backward(begin: float) -> None:
            hop = hops.pop()
            owner = (rank + hop) % world
            trace.events.append(Event(rank, "block", "back", owner, hop, start=begin, end=trace.now))

        slow = observed.ops(slowed(plain, trace, backward))
        if scheme == "softmax ring":
            softmax.ring_softmax_loss(observed, x[rank], y[rank], job.log_scale, [EACH] * world)
        else:
            ring_sigmoid_loss(observed, x[rank], y[rank], job.log_scale, bias_of(job), scheme=scheme, tile=1, ops=slow)
        return trace.events

    plain_ring, softmax.ring = softmax.ring, two_trips
    try:
        ranks = ThreadComm.run(world, work, timeout=60)
    finally:
        softmax.ring = plain_ring
    return [event for events in ranks for event in events]


def two_trips(comm: Any, chunk: Array, sizes: Any, visit: Any, combine: Any = np.add) -> Array:
    """The ring of the softmax loss, whose visits are told: the first trip computes logits only, the second all."""
    first = chunk.shape[1] == WIDTH
    (trace,) = comm.listeners

    def watched(owner: int, rows: Array) -> Array:
        begin = trace.now
        trace.now += PAIR * EACH * len(rows) * (FORWARD if first else 1)
        answer: Array = visit(owner, rows)
        hop = (owner - comm.rank) % comm.size
        trace.events.append(Event(comm.rank, "block", "" if first else "back", owner, hop, start=begin, end=trace.now))
        return answer

    return ring(comm, chunk, sizes, watched, combine)


def told(scheme: str, world: int) -> list[list[Any]]:
    """For the page, in microseconds: [rank, what, chunk, hop, peer, bytes, start, end, sent].

    what: "block", "back" (the second part of a block), "chunk" or "gradient" (a message at its receiver, who waited
    from start to end; it left its sender at `sent`), "sum".
    """
    events = recorded(scheme, world)
    if scheme != "softmax ring":  # the others begin by agreeing on their inputs, each with one sum
        agreed = [next(event for event in events if (event.rank, event.kind) == (rank, "sum")) for rank in range(world)]
        events = [event for event in events if not any(event is one for one in agreed)]
    zero = min(event.start for event in events)
    left: defaultdict[tuple[Any, ...], deque[float]] = defaultdict(deque)
    for e in sorted(events, key=lambda e: e.start):
        if e.kind == "send":
            left[e.rank, e.peer, e.what, e.chunk, e.bytes].append(e.start)
    out = []
    for e in sorted(events, key=lambda e: e.start):
        if e.kind == "send":
            continue
        what, sent = {"block": e.what or "block", "sum": "sum"}.get(e.kind, e.what), e.start
        if e.kind == "recv":
            sent = left[e.peer, e.rank, e.what, e.chunk, e.bytes].popleft()
        times = [round(1e6 * (moment - zero)) for moment in (e.start, e.end, sent)]
        out.append([e.rank, what, e.chunk, e.hop, e.peer, e.bytes, *times])
    return joined(out)


def joined(rows: list[list[Any]]) -> list[list[Any]]:
    """The tiles of a block, computed one after the other, as one bar."""
    out: list[list[Any]] = []
    latest: dict[int, list[Any]] = {}
    for row in rows:
        last = latest.get(row[0])
        if row[1] in ("block", "back"):
            latest[row[0]] = row
            if last and last[1:3] == row[1:3] and row[6] == last[7]:
                last[7], latest[row[0]] = row[7], last
                continue
        out.append(row)
    return out
