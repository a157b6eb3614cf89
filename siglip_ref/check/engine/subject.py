"""What can be checked: the questions that the engine asks a subject, and the records in which it is answered."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Edits, Finding, Report, Sight, worst_rows
from siglip_ref.report.verdict import Judgement, Verdict, judgement


@dataclass
class Compared:
    """What came at all inputs beside what is right there, under one convention. details : a row for every tensor at
    every input. A subject adds what it needs to explain them."""

    details: list[Row]

    @property
    def wrong(self) -> list[Row]:
        """Those that are not right."""
        return [row for row in self.details if row.verdict == "FAIL"]


C = TypeVar("C", bound=Compared)


@dataclass(frozen=True)
class Answer(Generic[C]):
    """What a run that is not simply right comes to. compared : what is shown in place of the first comparison, where
    that was made under another convention."""

    findings: list[Finding]
    verdict: Verdict = "FAIL"
    compared: C | None = None


@dataclass(frozen=True)
class Worst:
    """The input at which one tensor is furthest off. arrays : "input/...", "got/...", "expected/..."; again : lines of
    Python that make the check once more, with `sr` and `case` at hand."""

    row: Row
    arrays: Mapping[str, Array]
    again: str


class Subject(Protocol[C]):
    """One thing that is checked: a loss, ranks, a model, a step, a file. Its methods are called in this order."""

    def compare(self) -> C:
        """Run at every input, and hold what comes against exact values and their noise, as declared."""

    def judge(self, compared: C) -> Judgement:
        """The verdict of the rows."""
        return judgement(compared.details)

    def others(self, compared: C) -> Iterator[Answer[C]]:
        """Other conventions under which everything is right; the first of them is the answer."""
        yield from ()

    def explain(self, compared: C) -> Answer[C]:
        """Why something is wrong."""

    def title(self, compared: C) -> str:
        """What was checked, in which numbers, and how."""

    def count(self, compared: C) -> Sight | None:
        """Which mistakes of the catalogue would have been seen."""

    def edits(self, compared: C) -> Edits | None:
        """Which single edits of the specification would have been seen; None where that is not known of such a run."""
        return None

    def rows(self, compared: C) -> list[Row]:
        """One row for each tensor."""
        return worst_rows(compared.details)

    def tell(self, compared: C, report: Report) -> None:
        """Add what stands beside the rows: conventions, what was not checked, what could not have been seen, notes."""

    def worst(self, compared: C, report: Report) -> Worst | None:
        """The input that shows most; None where nothing was compared."""
