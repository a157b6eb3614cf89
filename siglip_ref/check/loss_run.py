"""One check of a loss from beginning to end: the convention, every probe, every clause of the contract."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from siglip_ref.check.compare import Row
from siglip_ref.check.contract import CLAUSES
from siglip_ref.check.diagnose import explain
from siglip_ref.check.exchanged import finding as exchanged
from siglip_ref.check.exchanged import right_when_exchanged
from siglip_ref.check.frameworks import Framework, Inputs, Outcome, Setting, Way, describe
from siglip_ref.check.loss_case import case_of
from siglip_ref.check.loss_words import blind_spots, convention_finding, conventions_in_words, hints, next_steps
from siglip_ref.check.mistakes import Mistake
from siglip_ref.check.patterns import patterns
from siglip_ref.check.predict import Context, Predicted, suspects
from siglip_ref.check.probes import POINTS, Dims, Probe, loss_probes, points_of
from siglip_ref.check.report import Finding, Report, worst_rows
from siglip_ref.check.seen import seen_of
from siglip_ref.check.sight import in_the_catalogue, loss_sight
from siglip_ref.check.truth import CONVENTIONS, Convention, Truth, judge, truth
from siglip_ref.check.verdict import judgement
from siglip_ref.errors import UsageError

UNSTABLE = {"log-of-sigmoid", "log-one-plus-exp"}  # of which a hint knows one, and the reference both
_REFUSED = (True, True, 99, True, True, np.inf)  # worse than any fit
# Between the scales of about 2 and 10 that a loss is given where the convention is looked for, a loss that takes the
# scale itself changes a few times; one that exponentiates what it is given, thousands of times, up or down.
_EXPONENTIAL = 50.0

Loss = Callable[..., Any]
Progress = Callable[[str], None]


@dataclass
class Run:
    """One check: what is called, how, and what came back."""

    fn: Loss
    framework: Framework
    setting: Setting
    dims: Dims
    progress: Progress | None
    refused: list[str] = field(default_factory=list)
    first_refusal: Exception | None = None
    outcomes: dict[str, tuple[Probe, Outcome, Truth]] = field(default_factory=dict)

    def call(self, probe: Probe, convention: Convention, way: Way, label: str) -> Outcome | None:
        """None where fn refuses; why is then in `refused`."""
        if self.progress:
            self.progress(label)
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
    """The report; of a wrong loss that is right with scale and bias exchanged, that alone."""
    report = _run_check(run, declared)
    if report.verdict != "FAIL" or not run.outcomes:
        return report
    probe = next(iter(run.outcomes.values()))[0]

    def call(inputs: Inputs) -> Outcome:
        return run.framework.call(run.fn, inputs, run.setting, "plain")

    meant = right_when_exchanged(call, probe, declared, run.setting)
    if meant:
        report = _full(run, meant, declared, _probes(run)[1])
        report.findings = [exchanged()]
    return report


def _run_check(run: Run, declared: Sequence[Convention]) -> Report:
    probes, left_out = _probes(run)
    best = _observed(run, probes, CONVENTIONS)
    if best in declared:
        return _full(run, best, declared, left_out)
    other = _full(run, best, declared, left_out)
    if not other.passed or best.embeddings == "unit" != declared[0].embeddings:
        as_declared = _full(run, _observed(run, probes, declared), declared, left_out)
        # a loss that normalises, as was declared, without the gradient of that: right where rows are unit anyway
        if not other.passed or all(row.right for row in as_declared.details if row.name == "loss"):
            return as_declared
    other.verdict = "OTHER CONVENTION"
    other.findings.insert(0, convention_finding(best, declared))
    return other


def _probes(run: Run) -> tuple[list[Probe], list[str]]:
    """Those of every convention, and in words what is left out of them."""
    return loss_probes(POINTS, run.dims, run.setting.dtype, run.setting.scalar_dtype)


def _observed(run: Run, probes: list[Probe], candidates: Sequence[Convention]) -> Convention:
    """The convention under which fn is right at the first probe that it accepts; where it is wrong under each, the one
    that its own behaviour speaks for, or the first. None is chosen for being less wrong: two mistakes may leave fewer
    tensors wrong, or a nearer loss, under another one."""
    for probe in probes:
        outcomes = {c.scale: run.call(probe, c, "plain", "finding the convention") for c in candidates}
        exponential = exponentiates(outcomes.get("log"), outcomes.get("linear"))
        scores = []
        for convention in candidates:
            outcome = outcomes[convention.scale]
            if outcome is not None:
                against = exponential is not None and exponential != (convention.scale == "log")
                wrong, radial, gap = misfit(outcome, truth(probe, convention, run.setting), convention, probe)
                scores.append((wrong > 0, against, wrong, radial, convention.scale == "linear", gap))
            else:
                scores.append(_REFUSED)
        if min(scores) < _REFUSED:
            run.refused.clear()
            return candidates[scores.index(min(scores))]
    raise UsageError(
        expected="a loss that can be called with (image_embed, text_embed, log_scale, bias)",
        got=f"{_in_a_line(run.first_refusal)} at every probe",
        cause="shapes, dtype or device that the loss cannot take, or another order of arguments",
        repair="give the shapes it needs, dims=dict(batch=16, dim=32); another dtype=; or wrap it: "
        "lambda image, text, log_scale, bias: fn(...)",
    ) from run.first_refusal


def exponentiates(log: Outcome | None, linear: Outcome | None) -> bool | None:
    """Whether the scale goes through an exponential, seen from what changes when fn is given a logarithm and then the
    scale itself; None where nothing does, or fn was not called with both."""
    if log is None or linear is None:
        return None
    pairs = [(log.loss, linear.loss)]
    for name, one in log.gradients.items():
        other = linear.gradients[name]
        if one is not None and other is not None and np.any(one):
            pairs.append((np.abs(one).max(), np.abs(other).max()))
    with np.errstate(all="ignore"):
        changes = np.array([np.abs(np.log(np.abs(other / one))) for one, other in pairs])
    if not changes.any():
        return None
    return not (changes <= np.log(_EXPONENTIAL)).all()  # NaN and infinity come of exponentials


def misfit(outcome: Outcome, right: Truth, convention: Convention, probe: Probe) -> tuple[int, bool, float]:
    """How badly a convention fits: wrong tensors; then, for a loss that is wrong under every convention, whether its
    gradients have the radial part that normalising takes away, and how far the loss is from what it should be."""
    off = {row.name: row.verdict == "FAIL" for row in judge(outcome, right, "")}
    wrong = sum(off.values())
    gradient = outcome.gradients["image_embed"]
    with np.errstate(all="ignore"):
        gap = abs(np.log(outcome.loss / right.exact["loss"])) if off["loss"] else 0.0  # rounding chooses nothing
        if gradient is None or gradient.shape != probe.shape:
            return wrong, False, float(gap)
        radial = np.abs((gradient * probe.image_embed).sum(-1)).max() / np.abs(gradient).max()
    return wrong, (radial < 0.05) != (convention.embeddings == "raw"), float(gap) if gap <= np.inf else np.inf


def _full(run: Run, convention: Convention, declared: Sequence[Convention], left_out: list[str]) -> Report:
    """Every probe, then every clause of the contract, under one convention."""
    run.refused.clear()
    run.outcomes.clear()
    points = points_of(convention.embeddings, run.setting.dtype)
    probes, _ = loss_probes(points, run.dims, run.setting.dtype, run.setting.scalar_dtype)
    details: list[Row] = []
    for probe in probes:
        outcome = run.call(probe, convention, "plain", probe.label)
        if outcome is not None:
            right = truth(probe, convention, run.setting)
            run.outcomes[probe.label] = probe, outcome, right
            details += judge(outcome, right, probe.label)
    notes: list[str] = []
    findings = _contract(run, convention, details, notes)
    findings += _explained(run, convention, hints(details, run.setting))
    judged = judgement(details)
    seen = loss_sight(run.outcomes, details, convention, run.setting)
    report = Report(
        title=f"{describe(run.fn)} ({run.framework.name}, {run.setting.words})",
        verdict=judged.verdict,
        rows=worst_rows(details),
        findings=findings,
        conventions=conventions_in_words(convention, declared),
        not_checked=left_out + run.refused,
        blind=in_the_catalogue(seen) + blind_spots(details, run.setting),
        details=details,
        sight=seen,
        unjudged=judged.unjudged,
    )
    report.case = case_of(report, run.fn, run.framework.name, run.setting, convention, run.outcomes)
    report.notes = notes + next_steps(report, len(run.outcomes), convention)
    return report


def _contract(run: Run, convention: Convention, details: list[Row], notes: list[str]) -> list[Finding]:
    """The clauses at the first probe that worked; only tensors that a plain backward gets right can break one."""
    if not run.outcomes:
        return []
    probe, plain, right = next(iter(run.outcomes.values()))
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
        if way == "again" and not _same_bits(outcome, plain):
            notes.append("two calls with the same inputs differ in bits: random numbers, or sums in changing order")
        if wrong:
            evidence = f"{clause.suspicion} ({', '.join(row.name for row in wrong)}; ratio {wrong[0].ratio:.4f})"
            findings.append(Finding(clause.id, wrong[0].name, wrong[0].rows, evidence, clause.repair))
    return findings


def _explained(run: Run, convention: Convention, hints: list[Finding]) -> list[Finding]:
    """The mistakes of the catalogue that explain the plain calls; where none does, what is known otherwise."""
    plain = {label: entry for label, entry in run.outcomes.items() if label == entry[0].label}
    seen = [one for label, (_, outcome, right) in plain.items() for one in seen_of(label, outcome, right)]
    contexts = {label: Context(probe, convention, probe.shape[:1]) for label, (probe, _, _) in plain.items()}

    def predict(mistakes: Sequence[Mistake]) -> Predicted:
        return Predicted(mistakes, contexts, run.setting.dtype)

    found = explain(seen, suspects(ranks=False), predict, lambda wrong: patterns(wrong, contexts))
    named = {finding.id for finding in found} - {"unknown"}
    certain = [hint for hint in hints if hint.id != "unknown" and not (hint.id in UNSTABLE and named & UNSTABLE)]
    return certain + found if named else hints or found


def _same_bits(one: Outcome, other: Outcome) -> bool:
    pairs = [(one.loss, other.loss), *((one.gradients[name], other.gradients[name]) for name in one.gradients)]
    return all((a is None and b is None) or np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _in_a_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
