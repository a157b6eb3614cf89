"""How many single edits a check sees: each is made in the specification and run as if it were the user's program.

Whether an edit changes a number is decided away from the probes: in float64, at inputs that are held back, by more than
CHANGES times what equal forms of the specification differ by there. Of those that do, the check's own rows say which it
sees; the rest survive. A survivor is explained where no input that is held back shows it in the check's dtype either.
"""

import resource
import signal
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from siglip_ref.mistakes import Edit
from siglip_ref.ops.elementary import Array
from siglip_ref.process.memory import keep_freed_memory

CHANGES = 10.0  # times the noise
FIRST = 12  # inputs, at half of which an edit must run: else it is no program
PATIENCE = 5.0  # seconds of a run: a loop that an edit leaves without an end, or tiles of one row
MEMORY = 6 * 2**30  # bytes of a process
TOGETHER = 40  # edits that a process takes at once

Tensors = Mapping[str, Array]


@dataclass(frozen=True)
class HeldBack:
    """Inputs that are no probe. right : of the specification in float64; noise : what its equal forms differ by, by
    tensor; spared : by dtype, what the check would allow there."""

    inputs: Any
    right: Tensors
    noise: Mapping[str, float]
    spared: Mapping[str, Mapping[str, float]]


class Ground(Hashable, Protocol):
    """A subject of the check, on which edits are tried."""

    @property
    def dtypes(self) -> Sequence[str]:
        """In which the check is asked."""

    def key(self, dtype: str) -> str:
        """Of its figure."""

    def edits(self) -> Sequence[Edit]:
        """All of them."""

    def held_back(self) -> Iterator[HeldBack]:
        """Those at which most edits show first."""

    def run(self, edit: Edit, inputs: Any) -> Tensors:
        """The edited specification at inputs that are held back."""

    def sees(self, edit: Edit, dtype: str, few: int | None = None) -> bool:
        """Whether the check finds anything wrong with it; few : of its probes are left, None: all."""


@dataclass(frozen=True)
class Tried:
    """What came of an edit: it does not run, changes nothing, or is seen, or not, by dtype.

    shown : of those that are not seen, how many times what is allowed in that dtype it is off, at most, elsewhere
    """

    edit: Edit
    runs: bool
    changes: bool
    seen: Mapping[str, bool]
    shown: Mapping[str, float]


def tried(ground: Ground, inputs: Sequence[HeldBack], edit: Edit, few: int | None = None) -> Tried:
    """One edit."""
    ran, changes = 0, False
    for number, one in enumerate(inputs):
        try:
            off = _off(ground, one, edit)
        except TimeoutError:  # the larger ones are no quicker
            break
        ran += off is not None
        changes = changes or _changes(one, off)
        if number < FIRST and number - ran >= FIRST // 2:
            return Tried(edit, False, False, {}, {})
        if changes and ran >= FIRST // 2:
            break
    if not changes:
        return Tried(edit, True, False, {}, {})
    seen = {dtype: ground.sees(edit, dtype, few) for dtype in ground.dtypes}
    shown = {dtype: _most(ground, inputs, edit, dtype) for dtype in seen if not seen[dtype]} if few is None else {}
    return Tried(edit, True, True, seen, shown)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """TimeoutError in what takes longer, on the main thread."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _changes(one: HeldBack, off: Mapping[str, float] | None) -> bool:
    return off is not None and any(off[name] > CHANGES * one.noise[name] for name in off)


def _off(ground: Ground, one: HeldBack, edit: Edit) -> dict[str, float] | None:
    """How far each tensor is off; None where the edit does not run."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with at_most(PATIENCE):
                got = ground.run(edit, one.inputs)
            return {name: distance(value, one.right[name]) for name, value in got.items()}
        except TimeoutError:
            raise
        except Exception:  # whatever an edited program raises
            return None


def distance(got: Array, right: Array) -> float:
    """The largest; infinite where the shape is another, or no number came where one is right."""
    if np.shape(got) != np.shape(right) or np.iscomplexobj(got):
        return np.inf
    counts = np.isfinite(right)
    off = np.where(counts, np.abs(np.asarray(got, np.float64) - np.where(counts, right, 0)), 0.0)
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))


def _most(ground: Ground, inputs: Sequence[HeldBack], edit: Edit, dtype: str) -> float:
    """In units of what is allowed in a dtype."""
    most = 0.0
    for one in inputs:
        try:
            found = _off(ground, one, edit) or {}
        except TimeoutError:
            break
        for name, off in found.items():
            spared = one.spared[dtype][name]
            most = max(most, off / spared if spared else np.inf * (off > 0) if off else 0.0)
    return most


@lru_cache(maxsize=2)
def _inputs(ground: Ground) -> list[HeldBack]:
    with np.errstate(all="ignore"):
        return list(ground.held_back())


def _some(asked: tuple[Ground, tuple[Edit, ...], int | None]) -> list[Tried]:
    ground, edits, few = asked
    return [tried(ground, _inputs(ground), edit, few) for edit in edits]


def _limited() -> None:
    """An edit may ask for any memory: here that ends in an error that is its own."""
    keep_freed_memory()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def measured(
    ground: Ground, processes: int = 0, few: int | None = None, every: int = 1, say: Any = lambda line: None
) -> Iterable[Tried]:
    """All edits of a ground; processes : 0, this one; every : n-th alone, for tests."""
    edits = ground.edits()[::every]
    portions = [(ground, tuple(edits[k : k + TOGETHER]), few) for k in range(0, len(edits), TOGETHER)]
    if not processes:
        for portion in portions:
            yield from _some(portion)
        return
    with ProcessPoolExecutor(processes, initializer=_limited) as pool:
        for number, found in enumerate(pool.map(_some, portions), 1):
            if number % 10 == 0 or number == len(portions):
                say(f"{number} of {len(portions)}")
            yield from found
