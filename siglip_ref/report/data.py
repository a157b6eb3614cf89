"""What a check found: rows, findings, the verdict, and the ways to keep it."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from siglip_ref.errors import UsageError, few
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Row
from siglip_ref.report.verdict import Unjudged, Verdict

FORMAT = "siglip-ref report 1"
_NAMED = 6  # mistakes in the line that says what was not seen; the list has them all
_MUCH = 0.25  # of what a check is there for: blind to more, it says so in its first line
_JUDGED = ("pass", "zero by structure", "FAIL")


class CheckFailed(AssertionError):  # noqa: N818  # a verdict, as pytest's own Failed
    """A check that did not pass; its text is the report."""


FindingKind = Literal["mistake", "suspicion", "convention", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What was found, with its evidence and its repair.

    id : of the catalogue, "convention", or "unknown"; kind : a mistake explains all that is wrong, a suspicion a part
    tensor, rows : where it begins, or all that it explains, for people; tensors : the same as data
    numbers : by name, what was measured: a share, a factor
    """

    id: str
    tensor: str
    rows: str
    evidence: str
    repair: str
    kind: FindingKind = "mistake"
    tensors: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id == "convention" or self.id == "unknown":
            object.__setattr__(self, "kind", self.id)
        if self.tensor and not self.tensors:
            object.__setattr__(self, "tensors", (self.tensor,))


@dataclass(frozen=True)
class Sight:
    """What a check would have seen: every id of the catalogue stands once in these three.

    seen, blind : ids of the mistakes that this kind of check is there for, at `dtype`
    elsewhere : ids of all others, each with the reason why it is not of this check
    """

    seen: tuple[str, ...]
    blind: tuple[str, ...]
    elsewhere: Mapping[str, str]
    dtype: str

    @property
    def of(self) -> int:
        """How many this check is there for."""
        return len(self.seen) + len(self.blind)

    @property
    def poor(self) -> bool:
        """Blind to so many that a PASS says little."""
        return len(self.blind) > _MUCH * self.of

    def __str__(self) -> str:
        parts = [f"would have detected {len(self.seen)} of {self.of} known mistakes"]
        parts += [f"not detectable in {self.dtype}: {few(self.blind, _NAMED)}"] if self.blind else []
        return "; ".join(parts)

    def beside(self) -> list[str]:
        """What is not of this check, by reason."""
        return [
            f"{sum(why == reason for why in self.elsewhere.values())} {reason}"
            for reason in dict.fromkeys(self.elsewhere.values())
        ]


@dataclass(frozen=True)
class Edits:
    """Of all single edits of the specification those that change a number: how many, and which a check does not see.

    survivors : the edit in words, and how many times what is allowed it is off, at most, at inputs that are no probe
    """

    changing: int
    survivors: Mapping[str, float]

    def __str__(self) -> str:
        seen = self.changing - len(self.survivors)
        return f"would have detected {seen:,} of {self.changing:,} single-edit mutations of the reference"


@dataclass(frozen=True)
class Hop:
    """The loss that a rank told of one hop, or (hop -1) a block that it never met; text: what the number is."""

    rank: int
    hop: int
    loss: float
    text: str
    right: bool


@dataclass(frozen=True)
class Meeting:
    """One cell of a matrix over ranks. kind: "met", whose texts a rank's images met, or "held", whose block's gradient
    a rank holds; part: of the block: its positives, its negatives, its diagonal as negatives, or all pairs as against
    zeros; weight: how many times, besides a factor of the whole tensor."""

    kind: Literal["met", "held"]
    tensor: str
    world: int
    rank: int
    images: int
    texts: int
    part: str
    weight: float


@dataclass(frozen=True)
class Case:
    """The worst probe: arrays by name ("input/...", "got/...", "expected/..."), and a program that shows the fault."""

    arrays: dict[str, Array]
    program: str


@dataclass
class Report:
    """The result of a check.

    rows : one per tensor, in network order, each at its worst probe; details : every tensor at every probe
    conventions : what the implementation was judged by; blind : mistakes this run could not have seen
    hops : what the ranks of a ring told hop by hop; blocks : the matrices over ranks, cell by cell
    sight : how much of the catalogue it would have seen; edits : of single edits, None where nobody measured it
    unjudged : why the verdict is NOT JUDGED; None for every other verdict
    computes : what a loss computes, worked out by experiments; empty where nobody asked
    """

    title: str
    verdict: Verdict
    rows: list[Row]
    findings: list[Finding] = field(default_factory=list)
    conventions: dict[str, str] = field(default_factory=dict)
    not_checked: list[str] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list[Row] = field(default_factory=list)
    case: Case | None = None
    unjudged: Unjudged | None = None
    sight: Sight | None = None
    edits: Edits | None = None
    hops: list[Hop] = field(default_factory=list)
    computes: list[str] = field(default_factory=list)
    blocks: list[Meeting] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Right under the declared convention."""
        return self.verdict == "PASS"

    @property
    def headline(self) -> str:
        """The verdict, and beside a PASS that says little, how little."""
        if self.passed and self.sight and self.sight.poor:
            return f"{self.verdict}, but cannot detect {len(self.sight.blind)} of {self.sight.of} mistakes"
        return self.verdict

    @property
    def worth(self) -> list[str]:
        """What a PASS is worth, in two lines; nothing of another verdict, or of a check that does not count."""
        if not self.passed or not self.sight:
            return []
        return [str(self.sight), str(self.edits or "mutations of the reference: not measured for this run")]

    @property
    def first_divergent(self) -> Row | None:
        """Where the deviation begins: the first wrong value in forward order, else the first wrong gradient on the
        way back, which is the last in network order."""
        wrong = [row for row in self.rows if row.verdict == "FAIL"]
        forward = [row for row in wrong if row.kind != "gradient"]
        return next(iter(forward or wrong[::-1]), None)

    @property
    def closest(self) -> Row | None:
        """The row with the largest error in units of noise: it says which multiple of the noise would just pass."""
        judged = [row for row in self.rows if row.verdict in _JUDGED and not math.isnan(row.times)]
        return max(judged, key=lambda row: row.times, default=None)

    @property
    def smallest_tolerance(self) -> float:
        """The smallest tolerance that would pass, as a multiple of the noise; infinite where no tolerance would help,
        not a number where nothing was judged by noise."""
        if any(row.verdict == "FAIL" and math.isnan(row.times) for row in self.rows):
            return math.inf
        return self.closest.times if self.closest else math.nan

    def __str__(self) -> str:
        from siglip_ref.report.text import to_text

        return to_text(self)

    def __rich__(self) -> object:
        from siglip_ref.report.text import renderable

        return renderable(self)

    def raise_if_failed(self) -> None:
        """Nothing if the verdict is PASS; else CheckFailed, an AssertionError, with the whole report."""
        if not self.passed:
            raise CheckFailed("\n" + str(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; numbers that are not finite become strings, as JSON has none."""
        content: dict[str, Any] = _plain(replace(self, case=None))
        del content["case"]
        first = self.first_divergent
        head = {"format": FORMAT, "passed": self.passed, "first_divergent": first.name if first else None}
        return head | {"smallest_tolerance": _plain(self.smallest_tolerance)} | content

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the report: `.json` with everything (report.schema.json), or `.html`, one page to look at."""
        path = Path(path)
        if path.suffix == ".json":
            path.write_text(self.to_json(), encoding="utf-8")
        elif path.suffix == ".html":
            from siglip_ref.report.html import to_html

            path.write_text(to_html(self), encoding="utf-8")
        else:
            raise UsageError(
                expected="a file name that ends in .json or .html",
                got=str(path),
                cause="the ending chooses the format",
                repair=f'report.save("{path.with_suffix(".json").name}")',
            )
        return path

    def save_case(self, folder: str | Path) -> Path:
        """Write the worst probe to a folder: case.npz (no pickles), reproduce.py, report.json."""
        if self.case is None:
            raise UsageError(
                expected="a report that holds a case",
                got=f"a report with the verdict {self.verdict} and no case",
                cause="nothing was compared",
                repair="read report.not_checked",
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "case.npz", **self.case.arrays)
        (folder / "reproduce.py").write_text(self.case.program, encoding="utf-8")
        self.save(folder / "report.json")
        return folder


def worst_rows(details: Iterable[Row]) -> list[Row]:
    """One row per tensor and kind, in order of first appearance: the wrong one with the largest excess, else the right
    one with the largest, else one that could not be judged."""
    chosen: dict[tuple[str, str], Row] = {}
    for row in details:
        key = (row.name, row.kind)
        if key not in chosen or _severity(row) > _severity(chosen[key]):
            chosen[key] = row
    return list(chosen.values())


def _severity(row: Row) -> tuple[int, float]:
    rank = {"not checked": 0, "out of range": 1, "zero by structure": 2, "pass": 2, "FAIL": 3}[row.verdict]
    return rank, row.excess if rank >= 2 else 0.0


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
