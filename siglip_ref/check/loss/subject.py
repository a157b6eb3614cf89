"""A loss in one process as a subject of the engine: every probe, every clause of the contract, larger batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from siglip_ref.check.call.answers import in_a_line
from siglip_ref.check.call.contract_clauses import CLAUSES, Clause
from siglip_ref.check.call.frameworks import ALONE, Framework, Inputs, Outcome, Setting, Way, describe
from siglip_ref.check.call.refusals import refuses_everything
from siglip_ref.check.call.resources import Cost, measured
from siglip_ref.check.diagnosis.predict import loss_sight
from siglip_ref.check.engine.expected.captions import with_captions
from siglip_ref.check.engine.expected.convention import Objective
from siglip_ref.check.engine.expected.expected import Convention, Truth, conventions_of, judge, truth
from siglip_ref.check.engine.expected.probes import POINTS, Dims, Probe, loss_probes, points_of
from siglip_ref.check.engine.expected.repeated import Size, repeated_probe
from siglip_ref.check.engine.single_edits.shipped import shipped
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.check.loss.behaviour import speaks_for
from siglip_ref.check.loss.case import worst_of
from siglip_ref.check.loss.computed import tell_what_it_computes
from siglip_ref.check.loss.explain import explained, refused_values
from siglip_ref.check.loss.large import affordable, looks_for, points_at
from siglip_ref.check.loss.measured.single_edits import key_of, plain_setting
from siglip_ref.check.loss.messages import (
    blind_spots,
    convention_finding,
    conventions_in_words,
    next_steps,
    not_asked,
    objective_finding,
)
from siglip_ref.check.loss.registered import NONE, Registered, registered
from siglip_ref.check.loss.zero_rows import excuse
from siglip_ref.errors import UsageError
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Edits, Report, Sight

Loss = Callable[..., Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Refusal:
    """A call that raised. words: what, in a line; memory: for want of it, which is nobody's mistake."""

    probe: Probe
    label: str
    words: str
    memory: bool
    clause: Clause | None = None

    def __str__(self) -> str:
        return f"{self.label}: {self.words}"

    def as_row(self) -> Row:
        """For a refusal that is a mistake."""
        nan = float("nan")
        return Row("the call", "value", nan, nan, nan, nan, "", "FAIL", self.words, self.label, trouble="refused")


@dataclass(frozen=True)
class Called:
    """A call that came back, and what is right there. clause : of the contract that it tried, if it is no plain one."""

    probe: Probe
    outcome: Outcome
    right: Truth
    clause: Clause | None = None


@dataclass
class ComparedLoss(Compared):
    """What came under one convention: by label plain calls, those that tried a clause, and large batches."""

    convention: Convention
    setting: Setting
    left_out: list[str]
    plain: dict[str, Called] = field(default_factory=dict)
    clauses: dict[str, Called] = field(default_factory=dict)
    large: dict[str, Called] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    registered: Registered = NONE

    @property
    def called(self) -> dict[str, Called]:
        """All of them."""
        return self.plain | self.clauses | self.large


@dataclass
class LossSubject(Subject[ComparedLoss]):
    """What is called, how, and as what it was declared."""

    fn: Loss
    framework: Framework
    setting: Setting
    declared: Sequence[Convention]
    dims: Dims = None
    progress: Progress | None = None
    size: Size = "small"
    says_more: bool = False  # what a right loss computes, too
    costs: list[Cost] = field(default_factory=list)
    first_refusal: Exception | None = None

    @property
    def objective(self) -> Objective:
        """What it was declared to compute."""
        return self.declared[0].objective

    @property
    def ways(self) -> list[Way]:
        """The clauses of the contract that can be tried: nobody asks a frozen input for its gradient."""
        return [way for way in self.framework.ways if ALONE.get(way) not in self.setting.frozen]

    def call(self, probe: Probe, convention: Convention, label: str, way: Way = "plain") -> Outcome | Refusal:
        """What fn gives."""
        if self.progress:
            self.progress(label)
        inputs = self.inputs(probe, convention)
        try:
            with measured(*probe.shape, self.setting.device) as cost:
                outcome = self.framework.call(self.fn, inputs, self.setting, way)
            if way == "plain":
                self.costs.append(cost)
            return outcome
        except UsageError:
            raise
        except Exception as error:  # whatever a user's function raises is its answer
            self.first_refusal = self.first_refusal or error
            memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
            return Refusal(probe, label, in_a_line(error), memory, CLAUSES.get(way))

    def inputs(self, probe: Probe, convention: Convention) -> Inputs:
        """What fn is given at a probe."""
        scale = probe.scale if convention.scale == "linear" else probe.log_scale
        return Inputs(probe.image_embed, probe.text_embed, scale, probe.bias)

    # --- run and compare

    def compare(self) -> ComparedLoss:
        """Under the declared convention that fn's own behaviour speaks for."""
        return self.compared(self.observed(self.declared), self.setting)

    def compared(self, convention: Convention, setting: Setting) -> ComparedLoss:
        """Every probe, every clause of the contract, then larger batches."""
        _, left_out = self._probes(POINTS)
        probes, _ = self._probes(points_of(convention.embeddings, setting.dtype))
        found = ComparedLoss([], convention, setting, left_out)
        for probe in probes:
            self._add(found, found.plain, probe)
        excuse(self, found)
        found.details += [one.as_row() for one in refused_values(found)]
        self._try_the_contract(found)
        found.registered = registered(self, found)
        found.details += found.registered.rows
        self._add_large(found)
        return found

    def _probes(self, points: Sequence[Any]) -> tuple[list[Probe], list[str]]:
        asked = self.dims, self.setting.dtype, self.setting.scalar_dtype
        probes, left_out = loss_probes(self.objective.points(points), *asked)
        return [with_captions(probe, self.objective.per_image) for probe in probes], left_out

    def _add(self, found: ComparedLoss, calls: dict[str, Called], probe: Probe) -> bool:
        label = probe.label
        outcome = self.call(probe, found.convention, label)
        if isinstance(outcome, Refusal):
            found.refused.append(outcome)
            return False
        right = truth(probe, found.convention, found.setting)
        calls[label] = Called(probe, outcome, right)
        found.details += judge(outcome, right, label)
        return True

    def _try_the_contract(self, found: ComparedLoss) -> None:
        """Every clause is another way to make the first call that worked; only tensors that a plain backward gets right
        can break one. One that changes the memory's layout may be refused: raising is better than reading wrongly."""
        for first in list(found.plain.values())[:1]:
            probe, plain = first.probe, first.outcome
            good = {row.name for row in found.details if row.right and row.probe == probe.label}
            for way in self.ways:
                clause = CLAUSES[way]
                label = f"{probe.name}, {clause.label}"
                outcome = self.call(probe, found.convention, label, way)
                if isinstance(outcome, Refusal):
                    found.refused.append(outcome)
                    found.details += [] if outcome.memory or clause.layout else [outcome.as_row()]
                    continue
                found.clauses[label] = Called(probe, outcome, first.right, clause)
                rows = judge(outcome, first.right, label, clause.times)
                modified = not plain.modified
                found.details += [row for row in rows if row.name in good or (row.trouble == "modified" and modified)]
                if way == "again" and not _same_bits(outcome, plain):
                    found.notes.append(
                        "two calls with the same inputs differ in bits: random numbers, or sums in changing order"
                    )

    def _add_large(self, found: ComparedLoss) -> None:
        """Every batch that can be afforded, as far as the smaller ones tell."""
        for point in points_at(self.size):
            standard = repeated_probe(point, self.dims, self.setting.dtype, self.setting.scalar_dtype)
            if standard is None:
                found.left_out.append(f"{point.name}: B = {point.shape[0]} is not among the given dims")
                continue
            probe = with_captions(standard, self.objective.per_image)
            if not affordable(self, found, probe.shape, probe.label) or not self._add(found, found.large, probe):
                break

    # --- conventions

    def observed(self, candidates: Sequence[Convention]) -> Convention:
        """The convention under which fn is right at the first probe that it accepts; where it is wrong under each, the
        one that its own behaviour speaks for."""
        for probe in self._probes(POINTS)[0]:
            called: dict[str, Outcome | Refusal] = {}
            for convention in candidates:
                kind = convention.scale
                if kind not in called:
                    called[kind] = self.call(probe, convention, "finding the convention")
                given = called[kind]
                if isinstance(given, Outcome):
                    rows = judge(given, truth(probe, convention, self.setting), "")
                    if all(row.verdict != "FAIL" for row in rows):
                        return convention
            outcomes = {kind: given for kind, given in called.items() if isinstance(given, Outcome)}
            if outcomes:
                rights = {c: truth(probe, c, self.setting) for c in candidates if c.scale in outcomes}
                return self._as_rows_are_divided(speaks_for(outcomes, rights, probe), candidates, probe)
        raise refuses_everything(self.first_refusal, self.setting.device) from self.first_refusal

    def _as_rows_are_divided(self, found: Convention, candidates: Sequence[Convention], probe: Probe) -> Convention:
        """Of conventions that differ in how rows are divided by their length, the one that very short rows speak for:
        a number beside the length makes them shorter still, whatever else is wrong."""
        alike = [one for one in candidates if replace(one, norm=found.norm) == found]
        if len(alike) == 1 or self.setting.dtype == "float16":  # which has no such rows
            return found
        rows = [(size * probe.image_embed, size * probe.text_embed) for size in _SHORT]
        short = [replace(probe, image_embed=images, text_embed=texts) for images, texts in rows]
        asked = [self.call(one, found, "finding the convention") for one in short]
        losses = [one.loss for one in asked if isinstance(one, Outcome)]
        same = len(losses) == 2 and bool(np.allclose(losses[0], losses[1], rtol=1e-3, atol=0))
        return next((one for one in alike if (one.norm == "none") == same), found)

    def others(self, compared: ComparedLoss) -> Iterator[Answer[ComparedLoss]]:
        """One that was not declared; not that of unit rows, for a loss that normalises, as was declared, without the
        gradient of that: it is right where rows are unit anyway."""
        if not compared.wrong:
            return
        for objective in self.objective.kin:
            again = replace(self, declared=conventions_of(objective), setting=self.setting.asking("bias"), costs=[])
            other = again.compare()
            if again.judge(other).verdict == "PASS":
                yield Answer([objective_finding(objective, self.objective)], "OTHER CONVENTION", other)
        every = conventions_of(self.objective)
        if set(every) <= set(self.declared):
            return
        best = self.observed(every)
        frozen = best.embeddings == "unit" != self.declared[0].embeddings
        if best in self.declared or (frozen and all(row.right for row in compared.details if row.name == "loss")):
            return
        other = self.compared(best, self.setting)
        if self.judge(other).verdict == "PASS":
            yield Answer([convention_finding(best, self.declared)], "OTHER CONVENTION", other)

    # --- what is said

    def title(self, compared: ComparedLoss) -> str:
        """Names the function, its framework and its numbers."""
        return f"{describe(self.fn)} ({self.framework.name}, {compared.setting.words})"

    def explain(self, compared: ComparedLoss) -> Answer[ComparedLoss]:
        """See `siglip_ref.check.loss.explain`."""
        return explained(self, compared)

    def count(self, compared: ComparedLoss) -> Sight:
        """Mistakes of a loss, made at every plain call; and those that no change of the reference makes, looked for."""
        tried = {CLAUSES[way].id: True for way in self.ways}
        labels = {row.probe for row in compared.details}
        first = next(iter(compared.plain.values()), None)
        for clause in (CLAUSES[way] for way in self.ways):
            tried[clause.id] &= first is not None and f"{first.probe.name}, {clause.label}" in labels
        looked_for, reasons = looks_for(compared) if self.objective.plain else ({}, {})
        plain = {label: (one.probe, one.right) for label, one in compared.plain.items()}
        return loss_sight(
            plain, compared.details, compared.convention, compared.setting.dtype, tried | looked_for, reasons
        )

    def edits(self, compared: ComparedLoss) -> Edits | None:
        """As measured for this convention and dtype: where every standard probe was called as it is."""
        plain, asked = plain_setting(compared.setting.dtype), compared.convention.objective
        plain = plain if asked.kind == "sigmoid" and asked.bias else plain.without("bias")
        measured = compared.setting == plain and self.dims is None
        measured &= not compared.refused and not compared.left_out
        return shipped(key_of(compared.convention, compared.setting.dtype)) if measured else None

    def tell(self, compared: ComparedLoss, report: Report) -> None:
        """What was judged by, what was not, and what to do next."""
        details, setting = compared.details, compared.setting
        judged_as_wrong = {row.probe for row in details if row.trouble == "refused"}
        report.conventions = conventions_in_words(compared.convention, self.declared)
        report.not_checked = compared.left_out + not_asked(setting, compared.convention.objective)
        report.not_checked += compared.registered.not_checked
        report.not_checked += [str(one) for one in compared.refused if one.label not in judged_as_wrong]
        report.blind += blind_spots(details, setting)
        report.notes = compared.notes + next_steps(report, compared)
        tell_what_it_computes(self, compared, report)

    def worst(self, compared: ComparedLoss, report: Report) -> Worst | None:
        """The probe of the tensor that deviates most (of the nearest to it, where nothing does)."""
        return worst_of(self, compared, report)


# Of the second, 1e-8 beside a length of about 1 is as large as the length; of both, rows that nothing divides give
# similarities of nothing.
_SHORT = (2.0**-20, 2.0**-26)


def _same_bits(one: Outcome, other: Outcome) -> bool:
    pairs = [(one.loss, other.loss), *((one.gradients[name], other.gradients[name]) for name in one.gradients)]
    return all((a is None and b is None) or np.array_equal(a, b, equal_nan=True) for a, b in pairs)
