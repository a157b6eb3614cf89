"""Where every rank is: a few numbers in memory that its watcher shares, and what they say in words."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mpi.watchdog.launcher import launchers_rank
from siglip_ref.training.saved.standing import where_it_stands

if TYPE_CHECKING:
    from mpi.observe import Event  # not at run time: nothing heavy is loaded before the watcher's fork

STARTING, JOINING, COMPUTING, WAITING, OVER = range(5)
FIELDS = ("rank", "state", "hop", "chunk", "peer", "gradient", "since")
# of all: number of ranks in this process, seconds after which they count as stalled, whether the process is the whole
# job, when the watcher was last awake, whether kernels compile, the slot of the rank that --fault lets fail now
HEAD = ("ranks", "limit", "alone", "beat", "compiling", "asked")
NOTE = 64  # bytes for what a job says of itself, beside its numbers
MOST = 256  # ranks of one process


class Progress:
    """Where each rank of this process is, in memory that the watcher shares; see `listener`."""

    def __init__(self, ranks: int = 1) -> None:
        self._notes = mmap.mmap(-1, MOST * NOTE)
        self._folder = mmap.mmap(-1, 4096)
        self._memory = mmap.mmap(-1, (len(HEAD) + MOST * len(FIELDS)) * 8)
        self._cells = memoryview(self._memory).cast("d")
        self.tell(ranks=ranks, limit=60.0, beat=time.monotonic(), asked=-1)
        for slot in range(MOST):
            self._set(slot, rank=-1, since=time.monotonic())

    @property
    def ranks(self) -> int:
        """Of this process: 1, or so many threads."""
        return int(self.told("ranks"))

    def tell(self, **values: float) -> None:
        """Set numbers of the whole process; see `HEAD`."""
        for name, value in values.items():
            self._cells[HEAD.index(name)] = value

    def told(self, name: str) -> float:
        """One of them."""
        return self._cells[HEAD.index(name)]

    def listener(self, slot: int, rank: int) -> Callable[[str, Event], None]:
        """A listener for `mpi.observe.Observed` that keeps this rank's record."""
        self._set(slot, rank=rank, chunk=rank, state=COMPUTING, since=time.monotonic())

        def listen(phase: str, event: Event) -> None:
            if phase == "wait":
                self._set(slot, state=WAITING, peer=event.peer, gradient=event.what == "gradient")
            elif phase == "end" or event.kind == "block":
                self._set(slot, state=COMPUTING)
            if event.chunk >= 0 and (event.kind == "block" or (event.kind == "recv" and phase != "begin")):
                self._set(slot, hop=event.hop, chunk=event.chunk)
            self._set(slot, since=time.monotonic())

        return listen

    def note(self, slot: int, text: str) -> None:
        """What the rank does now, in words; those of the ring follow where the note speaks of the loss."""
        self._notes[slot * NOTE : (slot + 1) * NOTE] = text.encode()[:NOTE].ljust(NOTE)
        self._set(slot, state=COMPUTING, since=time.monotonic())

    def keeps_in(self, out: Path) -> None:
        """Where checkpoints are, for the sentence that is said when the job is interrupted."""
        path = str(out.resolve()).encode(errors="surrogateescape")
        if len(path) <= len(self._folder):
            self._folder[:] = path.ljust(len(self._folder), b"\0")

    def saved(self) -> str:
        """In words; "" where nothing is kept."""
        path = self._folder[:].rstrip(b"\0").decode(errors="surrogateescape")
        return where_it_stands(Path(path)) if path else ""

    def joins(self) -> None:
        """MPI is asked for the other ranks, and may have to wait for them."""
        self._set(0, state=JOINING, since=time.monotonic())

    def moves(self) -> None:
        """Nobody noted anything, but the process works: it compiles."""
        for slot in range(self.ranks):
            self._set(slot, since=time.monotonic())

    def over(self) -> None:
        """The work is done; MPI ends."""
        for slot in range(self.ranks):
            self._set(slot, state=OVER, since=time.monotonic())

    def slot_of(self, rank: int) -> int:
        """Where this rank's record is."""
        return next((slot for slot in range(self.ranks) if self._get(slot, "rank") == rank), 0)

    def is_joining(self) -> bool:
        """Whether it waits for others to join."""
        return self._get(0, "state") == JOINING

    def stalled(self, limit: float, awake: float = 0.0, others: float = 0.0) -> int | None:
        """The slot that has not moved for too long. Who waits is given longer: the one waited for is to blame.

        Parameters
        ----------
        awake : since when the watcher itself has not slept: what happened before, it cannot judge
        others : when another rank was last known to work, for which this one may be waiting
        """
        now, waits = time.monotonic(), 1.5 * limit + 1
        allowed_in = {COMPUTING: limit, WAITING: waits, STARTING: limit + 60, JOINING: waits + 60, OVER: limit + 60}
        for state, allowed in allowed_in.items():
            known = max(awake, others) if state in (WAITING, JOINING, OVER) else awake
            for slot in range(self.ranks):
                if self._get(slot, "state") == state and now - max(known, self._get(slot, "since")) > allowed:
                    return slot
        return None

    def where(self, slot: int) -> str:
        """In words."""
        place, note = self._on_the_ring(slot), self._notes[slot * NOTE : (slot + 1) * NOTE].strip(b"\0 ").decode()
        if note and not note.endswith("the loss"):
            place = note + ", while it waited for the others" * (self._get(slot, "state") == WAITING)
        elif note:
            place = f"{note}, {place}"
        return place + ", while kernels compiled" * bool(self.told("compiling"))

    def hit(self) -> tuple[str, str]:
        """What a signal to this process hit: the rank and where it was; among threads only one that asked for it."""
        slot = int(self.told("asked"))
        if slot < 0 < self.ranks - 1:
            return "", f"rank {self.rank(0)} was in {self.where(0)}; ranks are threads of one process here"
        slot, others = max(slot, 0), "; ranks are threads of one process here, so all ended"
        return self.rank(slot), self.where(slot) + others * (self.ranks > 1)

    def _on_the_ring(self, slot: int) -> str:
        rank, state, hop, chunk, peer = (int(self._get(slot, name)) for name in FIELDS[:5])
        block = f"hop {hop}, block (images of rank {rank}, texts of rank {chunk})"
        if state in (STARTING, JOINING):
            return "before the first hop, while " + ("it started" if state == STARTING else "MPI joined the ranks")
        if state == OVER:
            return "after the last hop, while MPI ended"
        if state == WAITING and peer < 0:
            return "in a sum over all ranks"
        if state == WAITING:
            what = f"the gradient of the texts of rank {chunk}" if self._get(slot, "gradient") else "that chunk"
            place = block if chunk != rank else f"hop {hop}, the way home"
            return f"{place}, while it waited for {what} from rank {peer}"
        return f"{block}, while it computed"

    def rank(self, slot: int) -> str:
        """Its number, from MPI or from the launcher."""
        rank = int(self._get(slot, "rank"))
        return str(rank) if rank >= 0 else launchers_rank() or "unknown"

    def _set(self, slot: int, **values: float) -> None:
        for name, value in values.items():
            self._cells[len(HEAD) + slot * len(FIELDS) + FIELDS.index(name)] = value

    def _get(self, slot: int, name: str) -> float:
        return self._cells[len(HEAD) + slot * len(FIELDS) + FIELDS.index(name)]


COMMAND = Progress()  # of the command siglip-ring: its watcher shares it from the fork on
