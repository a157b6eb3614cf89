"""A rank in its own process: what it is to do, and the files by which it says how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siglip_ref.check.ranks.pulse import Heart, put
from siglip_ref.check.ranks.stop import tell
from siglip_ref.check.ranks.world import RankOutcome, write

RETURNED = "returned from "  # how a stage begins when the user's function has ended, and the rank waits for the others


class Child:
    """One process of `siglip_ref.check.ranks.processes.run_processes`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.heart = Heart(folder / f"pulse-{number}")

    def begins(self, stage: str) -> None:
        put(self.folder / f"stage-{self.number}", stage)

    def joined(self) -> None:
        """All is imported and ready: from when all ranks say so the clock runs."""
        (self.folder / f"joined-{self.number}").touch()

    def brings(self, rank: int, call: int, outcome: RankOutcome) -> None:
        write(self.folder / f"{rank}-{call}.npz", outcome)

    def finished(self) -> None:
        """Everything is written; what happens from now on is nobody's business."""
        (self.folder / f"finished-{self.number}").touch()


@contextmanager
def child(folder: str, number: str) -> Iterator[Child]:
    """Its pulse is written while it works; what ends it is told, also what a function raises that wants to exit."""
    one = Child(Path(folder), int(number))
    one.heart.start()
    try:
        yield one
    except BaseException as cause:
        tell(one.folder / f"error-{one.number}", cause)
        raise
