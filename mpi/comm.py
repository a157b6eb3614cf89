"""What a communicator is here, and two things that are one: a wrapper to build on, and ranks as threads."""

# ruff: noqa: N802, N818 - methods have the names that MPI gave them, exceptions say what happened

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from siglip_ref.ops.elementary import Array

__all__ = ["Array", "Communicator", "PeerFailed", "RankFailed", "Request", "ThreadComm", "Wrapper"]

T = TypeVar("T")


class Request(Protocol):
    """A message under way; the two methods of mpi4py that we use."""

    def Test(self) -> bool: ...
    def Wait(self) -> Any: ...


class Communicator(Protocol):
    """All that the ring knows of MPI; mpi4py's communicators have it, and so does `ThreadComm`.

    Arrays are contiguous. Allreduce adds.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> Any: ...
    def Isend(self, buf: Array, dest: int, tag: int) -> Request: ...
    def Irecv(self, buf: Array, source: int, tag: int) -> Request: ...
    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> Any: ...


class Wrapper:
    """A communicator that hands everything on to another; what wraps changes the methods it cares for."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.rank, self.size = comm.rank, comm.size

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        self.comm.Sendrecv(sendbuf, dest, sendtag, recvbuf, source, recvtag)

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        return self.comm.Isend(buf, dest, tag)

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        return self.comm.Irecv(buf, source, tag)

    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> None:
        self.comm.Allreduce(sendbuf, recvbuf)


class RankFailed(RuntimeError):
    """One of the threads failed; `.rank` says which, `__cause__` why."""

    def __init__(self, rank: int, cause: BaseException) -> None:
        super().__init__(f"rank {rank}: {type(cause).__name__}: {cause}")
        self.rank = rank
        self.__cause__ = cause


class PeerFailed(RuntimeError):
    """Raised in the ranks that wait for a rank that will never answer."""


class _World:
    """The letter boxes that the threads of one `ThreadComm.run` share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.boxes: dict[tuple[int, int, int], deque[Array]] = defaultdict(deque)  # (source, dest, tag)
        self.news = threading.Condition()
        self.failed: RankFailed | None = None

    def put(self, source: int, dest: int, tag: int, array: Array) -> None:
        copy = np.array(array)  # as a buffered send: the sender may go on at once
        with self.news:
            self.boxes[source, dest, tag].append(copy)
            self.news.notify_all()

    def take(self, source: int, dest: int, tag: int, into: Array, wait: bool = True) -> bool:
        """Fill `into` with the next letter of this box; False if there is none and we do not wait."""
        with self.news:
            box = self.boxes[source, dest, tag]
            while not box:
                if self.failed:
                    raise PeerFailed(f"rank {self.failed.rank} failed")
                if not wait:
                    return False
                self.news.wait()
            letter = box.popleft()
        if letter.shape != into.shape or letter.dtype != into.dtype:
            raise ValueError(
                f"message {tag} from rank {source} is {letter.shape} {letter.dtype}, "
                f"the buffer {into.shape} {into.dtype}"
            )
        into[...] = letter
        return True

    def fail(self, rank: int, cause: BaseException) -> None:
        with self.news:
            self.failed = self.failed or RankFailed(rank, cause)
            self.news.notify_all()


class _Transfer:
    """A message under way; `take` tries, or waits, and says whether it is over."""

    def __init__(self, take: Callable[[bool], bool]) -> None:
        self.take, self.done = take, False

    def Test(self) -> bool:
        self.done = self.done or self.take(False)
        return self.done

    def Wait(self) -> bool:
        self.done = self.done or self.take(True)
        return True


class ThreadComm:
    """Ranks as threads of one process: the same few methods, without MPI.

    Examples
    --------
    >>> def hello(comm):
    ...     total = np.zeros(1)
    ...     comm.Allreduce(np.array([comm.rank + 1.0]), total)
    ...     return float(total[0])
    >>> ThreadComm.run(3, hello)
    [6.0, 6.0, 6.0]
    """

    _SUM_UP, _SUM_DOWN = -1, -2

    def __init__(self, world: _World, rank: int) -> None:
        self._world, self.rank, self.size = world, rank, world.size

    @staticmethod
    def alone() -> "ThreadComm":
        """A world of one rank: this thread."""
        return ThreadComm(_World(1), 0)

    @staticmethod
    def run(size: int, work: Callable[["ThreadComm"], T], timeout: float | None = None) -> list[T]:
        """Run work(comm) on `size` threads and return what each rank returned.

        Raises
        ------
        RankFailed : a rank raised an exception; the others are stopped where they wait
        TimeoutError : `timeout` seconds have passed; threads that compute cannot be stopped and are left behind
        """
        world = _World(size)
        results: list[Any] = [None] * size

        def rank_main(rank: int) -> None:
            try:
                results[rank] = work(ThreadComm(world, rank))
            except PeerFailed:
                pass
            except BaseException as cause:
                world.fail(rank, cause)

        threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(size)]
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if world.failed:
            raise world.failed
        slow = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        if slow:
            late = TimeoutError(f"ranks {slow} did not end within {timeout} s")
            world.fail(slow[0], late)
            raise late
        return results

    def Sendrecv(self, sendbuf: Array, dest: int, sendtag: int, recvbuf: Array, source: int, recvtag: int) -> None:
        if np.shares_memory(sendbuf, recvbuf):
            raise ValueError("MPI forbids that what is sent and what is received share memory")
        self._world.put(self.rank, dest, sendtag, sendbuf)
        self._world.take(source, self.rank, recvtag, recvbuf)

    def Isend(self, buf: Array, dest: int, tag: int) -> Request:
        self._world.put(self.rank, dest, tag, buf)
        return _Transfer(lambda wait: True)  # the letter is in the box

    def Irecv(self, buf: Array, source: int, tag: int) -> Request:
        return _Transfer(lambda wait: self._world.take(source, self.rank, tag, buf, wait))

    def Allreduce(self, sendbuf: Array, recvbuf: Array) -> None:
        """Rank 0 adds in the order of the ranks, so the sum does not depend on who came first."""
        if self.rank == 0:
            recvbuf[...] = sendbuf
            part = np.empty_like(recvbuf)
            for source in range(1, self.size):
                self._world.take(source, 0, self._SUM_UP, part)
                recvbuf += part
            for dest in range(1, self.size):
                self._world.put(0, dest, self._SUM_DOWN, recvbuf)
        else:
            self._world.put(self.rank, 0, self._SUM_UP, sendbuf)
            self._world.take(0, self.rank, self._SUM_DOWN, recvbuf)
