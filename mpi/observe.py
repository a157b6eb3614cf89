"""What a rank does, told while it does it: to a trace, to the watcher, to whoever wants it to fail."""

# ruff: noqa: N802, N818 - methods have the names that MPI gave them, exceptions say what happened

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from mpi.comm import Array, Communicator, Request, Wrapper
from mpi.ring import ANSWER
from siglip_ref.model.specification import SPECIFICATION, chosen
from siglip_ref.ops.record import Ops


@dataclass
class Event:
    """Something that one rank did. Times in seconds of the machine's monotonic clock."""

    rank: int
    kind: str  # "send", "recv", "block" or "sum"
    what: str = ""  # of a message: "chunk" or "gradient"
    chunk: int = -1  # whose texts, or the gradient of whose texts
    hop: int = -1  # of a message: the hop at which it arrives; W: the gradient's way home
    peer: int = -1
    bytes: int = 0
    pairs: int = 0  # image-text pairs of a block
    loss: float = 0.0  # their loss: a sum, not yet divided by the number of images
    start: float = 0.0
    end: float = 0.0


Listener = Callable[[str, Event], None]  # called with "begin", "wait" and "end"


class NotANumber(ArithmeticError):
    """A block whose loss is NaN."""


class Observed(Wrapper):
    """Tells its listeners what the rank does: pass it as the communicator, and `.ops(...)` as the operations.

    Which texts a block was computed with is read off the memory they lie in: the buffer a chunk arrived in.
    """

    def __init__(self, comm: Communicator, *listeners: Listener) -> None:
        super().__init__(comm)
        self.listeners = listeners
        self._chunks: dict[tuple[int, int], int] = {}  # (first address, end) of a buffer: whose chunk it holds
        self._float_sums = self._hops = 0

    def ops(self, ops: Ops | ModuleType) -> Ops:
        """The same operations, with every block observed."""
        plain = chosen(ops)

        def pair_block(x: Array, y: Array, log_scale: Array, bias: Array, match: Array) -> Any:
            return self._block(self._owner(y), match.size, lambda: plain.pair_block(x, y, log_scale, bias, match))

        def softplus(logits: Array) -> Array:
            """The autograd-like scheme, which has no pair block, calls it once a hop."""
            owner, self._hops = (self.rank + self._hops) % self.size, self._hops + 1
            return self._block(owner, logits.size, lambda: (plain.softplus(logits),))[0]

        # a twin of `meet` has no blocks to observe
        meet, total = SPECIFICATION.meet, SPECIFICATION.total
        return replace(plain, pair_block=pair_block, softplus=softplus, meet=meet, total=total)

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        going = self._message("send", sendbuf, dest, sendtag)
        coming = self._message("recv", recvbuf, source, recvtag)
        self._tell("wait", coming)
        self.comm.Sendrecv(sendbuf, dest, sendtag, recvbuf, source, recvtag)
        self._tell("end", going)
        self._arrived(coming, recvbuf)

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        event = self._message("send", buf, dest, tag)
        return _ObservedRequest(self.comm.Isend(buf, dest, tag), self, event, None)

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        event = self._message("recv", buf, source, tag)
        return _ObservedRequest(self.comm.Irecv(buf, source, tag), self, event, buf)

    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> None:
        event = Event(self.rank, "sum", bytes=sendbuf.nbytes)
        self._tell("begin", event)
        self._tell("wait", event)
        self.comm.Allreduce(sendbuf, recvbuf)
        self._tell("end", event)
        if recvbuf.ndim == 2 and recvbuf.dtype.kind == "f":  # masked-allreduce: texts and gradient of rank 0, 1, ...
            self._remember(recvbuf, self._float_sums // 2)
            self._float_sums += 1

    def _block(self, owner: int, pairs: int, compute: Callable[[], Any]) -> Any:
        event = Event(self.rank, "block", chunk=owner, hop=(owner - self.rank) % self.size, pairs=pairs)
        self._tell("begin", event)
        result = compute()
        event.loss = float(np.sum(result[0]))
        if event.loss != event.loss:
            raise NotANumber("the loss of the block is NaN")
        self._tell("end", event)
        return result

    def _message(self, kind: str, buf: Array, peer: int, tag: int) -> Event:
        chunk, receiver = tag // 4, peer if kind == "send" else self.rank
        distance = chunk - receiver if tag % 4 < 2 else receiver - chunk
        what, hop = "gradient" if tag % 2 == ANSWER else "chunk", distance % self.size or self.size
        event = Event(self.rank, kind, what, chunk, hop, peer, buf.nbytes)
        self._tell("begin", event)
        return event

    def _arrived(self, event: Event, buf: Array | None) -> None:
        self._tell("end", event)
        if event.kind == "recv" and event.what == "chunk" and buf is not None:
            self._remember(buf, event.chunk)

    def _remember(self, buf: Array, owner: int) -> None:
        first, end = np.lib.array_utils.byte_bounds(buf)
        self._chunks = {(a, b): o for (a, b), o in self._chunks.items() if b <= first or end <= a}
        self._chunks[first, end] = owner

    def _owner(self, texts: Array) -> int:
        address = texts.__array_interface__["data"][0]
        return next((o for (a, b), o in self._chunks.items() if a <= address < b), self.rank)

    def _tell(self, phase: str, event: Event) -> None:
        if phase == "begin":
            event.start = time.monotonic()
        elif phase == "end":
            event.end = time.monotonic()
        for listener in self.listeners:
            listener(phase, event)


class _ObservedRequest:
    """Tells when its message has arrived, once."""

    def __init__(self, request: Request, observer: Observed, event: Event, buf: Array | None) -> None:
        self.request, self.observer, self.event, self.buf = request, observer, event, buf
        self.over = False

    def Test(self) -> bool:
        return self.over or self._close(self.request.Test())

    def Wait(self) -> bool:
        if self.over:
            return True
        self.observer._tell("wait", self.event)
        self.request.Wait()
        return self._close(True)

    def _close(self, over: bool) -> bool:
        if over:
            self.over = True
            self.observer._arrived(self.event, self.buf)
        return over


class Faults:
    """A listener that lets one rank fail while it computes its block of one hop; for tests and demonstrations."""

    def __init__(self, rank: int, hop: int, fault: Callable[[], None]) -> None:
        self.rank, self.hop, self.fault = rank, hop, fault

    def __call__(self, phase: str, event: Event) -> None:
        if (phase, event.kind, event.rank, event.hop) == ("begin", "block", self.rank, self.hop):
            self.fault()
