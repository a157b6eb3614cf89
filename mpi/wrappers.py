"""Wrappers of a communicator: one counts, one waits patiently, one is a slow network. The ring never knows of them."""

# ruff: noqa: N802 - methods have the names that MPI gave them

import time
from collections.abc import Callable
from typing import Any

from mpi.comm import Array, Communicator, Request, Wrapper


class Counted(Wrapper):
    """Counts what this rank sends: messages and their bytes, and what it puts into sums."""

    def __init__(self, comm: Communicator) -> None:
        super().__init__(comm)
        self.messages = self.bytes = self.sums = self.sum_bytes = 0

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        self._count(sendbuf)
        self.comm.Sendrecv(sendbuf, dest, sendtag, recvbuf, source, recvtag)

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        self._count(buf)
        return self.comm.Isend(buf, dest, tag)

    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> None:
        self.sums += 1
        self.sum_bytes += sendbuf.nbytes
        self.comm.Allreduce(sendbuf, recvbuf)

    def _count(self, buf: Array) -> None:
        self.messages += 1
        self.bytes += buf.nbytes


class Polled:
    """A request that is over when `done` says so; its Wait sleeps instead of burning a core."""

    def __init__(self, done: Callable[[], bool]) -> None:
        self.done = done

    def Test(self) -> bool:
        return self.done()

    def Wait(self) -> bool:
        """Sleep and ask in turn; often at first, for a library moves a message on only when it is asked."""
        start, pause = time.monotonic(), 20e-6
        while not self.done():
            time.sleep(pause)
            longest = (time.monotonic() - start) / 100
            pause = min(2 * pause, max(2e-4, longest), 1e-3)
        return True


class Patient(Wrapper):
    """An MPI communicator that sleeps while it waits.

    MPI libraries spin: with more ranks than cores the waiting ranks take the cores from those that compute.
    """

    comm: Any  # mpi4py's, which also has Iallreduce

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        coming = self.Irecv(recvbuf, source, recvtag)
        going = self.Isend(sendbuf, dest, sendtag)
        coming.Wait()
        going.Wait()

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        return Polled(self.comm.Isend(buf, dest, tag).Test)

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        return Polled(self.comm.Irecv(buf, source, tag).Test)

    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> None:
        Polled(self.comm.Iallreduce(sendbuf, recvbuf).Test).Wait()


class Throttled(Wrapper):
    """A slow network: a message takes latency + bytes / bandwidth from the moment its receive is posted.

    Messages from one neighbour follow one another; different neighbours do not disturb each other.
    """

    def __init__(self, comm: Communicator, latency: float, bandwidth: float) -> None:
        super().__init__(comm)
        self.latency, self.bandwidth = latency, bandwidth  # seconds; bytes per second
        self._free_at: dict[int, float] = {}  # when each neighbour's link can carry the next message

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        coming = self.Irecv(recvbuf, source, recvtag)
        self.Isend(sendbuf, dest, sendtag).Wait()
        coming.Wait()

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        request = self.comm.Irecv(buf, source, tag)
        start = max(time.monotonic(), self._free_at.get(source, 0.0))
        self._free_at[source] = arrival = start + self.latency + buf.nbytes / self.bandwidth
        return Polled(lambda: request.Test() and time.monotonic() >= arrival)
