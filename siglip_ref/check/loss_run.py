"""One check of a loss from beginning to end: the convention, every probe, every clause of the contract."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from siglip_ref.check.compare import Row
from siglip_ref.check.contract import CLAUSES
from siglip_ref.check.frameworks import Framework, Inputs, Outcome, Setting, Way, describe
from siglip_ref.check.loss_case import case_of
from siglip_ref.check.loss_words import blind_spots, convention_finding, conventions_in_words, hints, next_steps
from siglip_ref.check.probes import POINTS, RAW_POINTS, Dims, Probe, loss_probes
from siglip_ref.check.report import Finding, Report, verdict_of, worst_rows
from siglip_ref.check.truth import CONVENTIONS, Convention, Truth, judge, truth
from siglip_ref.errors import UsageError

Loss = Callable[..., Any]
Progress = Callable[[int, int, str], None]


@dataclass
class Run:
    """One check: what is called, how, and what came back."""

    fn: Loss
    framework: Framework
    setting: Setting
    dims: Dims
    progress: Progress | None
    planned: int = 0
    done: int = 0
    refused: list[str] = field(default_factory=list)
    first_refusal: Exception | None = None
    outcomes: dict[str, tuple[Probe, Outcome, Truth]] = field(default_factory=dict)

    def call(self, probe: Probe, convention: Convention, way: Way, label: str) -> Outcome | None:
        """None where fn refuses; why is then in `refused`."""
        if self.progress:
            self.progress(self.done, max(self.planned, self.done), label)
        self.done += 1
        scale = probe.scale if convention.scale == "linear" else probe.log_scale
        inputs = Inputs(probe.image_embed, probe.text_embed, scale, probe.bias)
        try:
            return self.framework.call(self.fn, inputs, self.setting, way)
        except UsageError:
            raise
        except Exception as refusal:  # whatever a user's function raises is its answer
            self.first_refusal = self.first_refusal or refusal
            self.refused.append(f"{label}: {_in_a_line(refusal)}")
            return None


def run_check(run: Run, declared: Sequence[Convention]) -> Report:
    probes, left_out = loss_probes(POINTS, run.dims)
    best = _observed(run, probes, CONVENTIONS)
    if best in declared:
        return _full(run, best, declared, left_out)
    wanted = _observed(run, probes, declared)
    other = _full(run, best, declared, left_out)
    if other.passed:
        other.verdict = "OTHER CONVENTION"
        other.findings.insert(0, convention_finding(best, wanted))
        return other
    return _full(run, wanted, declared, left_out)


def _observed(run: Run, probes: list[Probe], candidates: Sequence[Convention]) -> Convention:
    """The convention under which fn is right, or least wrong, at the first probe that it accepts."""
    for probe in probes:
        outcomes = {c.scale: run.call(probe, c, "plain", "finding the convention") for c in candidates}
        scores = []
        for convention in candidates:
            outcome = outcomes[convention.scale]
            if outcome is not None:
                rows = judge(outcome, truth(probe, convention, run.setting), "")
                off = rows[0].excess
                scores.append((sum(row.verdict == "FAIL" for row in rows), off))
            else:
                scores.append((9, np.inf))
        if min(scores) < (9, np.inf):
            run.refused.clear()
            return candidates[scores.index(min(scores))]
    raise UsageError(
        expected="a loss that can be called with (image_embed, text_embed, log_scale, bias)",
        got=f"{_in_a_line(run.first_refusal)} at every probe",
        cause="shapes, dtype or device that the loss cannot take, or another order of arguments",
        repair="give the shapes it needs, dims=dict(batch=16, dim=32); another dtype=; or wrap it: "
        "lambda image, text, log_scale, bias: fn(...)",
    ) from run.first_refusal


def _full(run: Run, convention: Convention, declared: Sequence[Convention], left_out: list[str]) -> Report:
    """Every probe, then every clause of the contract, under one convention."""
    run.refused.clear()
    run.outcomes.clear()
    points = POINTS + RAW_POINTS if convention.embeddings == "raw" else POINTS
    probes, _ = loss_probes(points, run.dims)
    run.planned = run.done + len(probes) + len(run.framework.ways)
    details: list[Row] = []
    for probe in probes:
        outcome = run.call(probe, convention, "plain", probe.label)
        if outcome is not None:
            right = truth(probe, convention, run.setting)
            run.outcomes[probe.label] = probe, outcome, right
            details += judge(outcome, right, probe.label)
    findings = _contract(run, convention, details)
    report = Report(
        title=f"{describe(run.fn)} ({run.framework.name}, {run.setting.words})",
        verdict=verdict_of(details),
        rows=worst_rows(details),
        findings=findings + hints(details),
        conventions=conventions_in_words(convention, declared),
        not_checked=left_out + run.refused,
        blind=blind_spots(details, run.setting),
        details=details,
    )
    report.case = case_of(report, run.fn, run.framework.name, run.setting, convention, run.outcomes)
    report.notes = next_steps(report, len(run.outcomes), convention)
    return report


def _contract(run: Run, convention: Convention, details: list[Row]) -> list[Finding]:
    """The clauses at the first probe that worked; only tensors that a plain backward gets right can break one."""
    if not run.outcomes:
        return []
    probe, _, right = next(iter(run.outcomes.values()))
    good = {row.name for row in details if row.right and row.probe == probe.label}
    findings = []
    for way in run.framework.ways:
        clause = CLAUSES[way]
        label = f"{probe.name}, {clause.label}"
        outcome = run.call(probe, convention, way, label)
        if outcome is None:
            continue
        run.outcomes[label] = probe, outcome, right
        rows = [row for row in judge(outcome, right, label, clause.times) if row.name in good]
        details += rows
        wrong = [row for row in rows if row.verdict == "FAIL"]
        if wrong:
            evidence = f"{clause.suspicion} ({', '.join(row.name for row in wrong)}; ratio {wrong[0].ratio:.4f})"
            findings.append(Finding(clause.id, wrong[0].name, wrong[0].rows, evidence, clause.repair))
    return findings


def _in_a_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
