"""One check of a loss from beginning to end: the convention, every probe, every clause of the contract."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.call.frameworks import Inputs, Outcome, describe
from siglip_ref.check.call.refusals import refuses_everything
from siglip_ref.check.diagnosis.coverage import in_the_catalogue, loss_sight
from siglip_ref.check.diagnosis.diagnose import explain
from siglip_ref.check.diagnosis.patterns import patterns
from siglip_ref.check.diagnosis.predict import Context, Predicted, suspects
from siglip_ref.check.diagnosis.product_findings import declared_otherwise, declaring, product_findings
from siglip_ref.check.diagnosis.products import rounded_products
from siglip_ref.check.diagnosis.seen import distance, seen_of
from siglip_ref.check.expected.expected import CONVENTIONS, Convention, Truth, judge, truth
from siglip_ref.check.expected.probes import POINTS, Probe, loss_probes, points_of
from siglip_ref.check.expected.tolerance import SAFETY
from siglip_ref.check.loss.calls import Run
from siglip_ref.check.loss.case import case_of
from siglip_ref.check.loss.contract import kept
from siglip_ref.check.loss.exchanged import finding as exchanged
from siglip_ref.check.loss.exchanged import right_when_exchanged
from siglip_ref.check.loss.large import judged, large_batches, large_findings, looks_for
from siglip_ref.check.loss.messages import blind_spots, convention_finding, conventions_in_words, hints, next_steps
from siglip_ref.check.loss.tails import has_whole_tiles, tail_finding, with_a_tail
from siglip_ref.check.loss.ties import tie_finding
from siglip_ref.check.loss.unsteady import unsteady_finding
from siglip_ref.check.loss.zero_rows import excused
from siglip_ref.mistakes import Mistake
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding, Report, worst_rows
from siglip_ref.report.verdict import judgement

UNSTABLE = {"log-of-sigmoid", "log-one-plus-exp"}  # of which a hint knows one, and the reference both
_REFUSED = (True, True, 99, True, True, True, np.inf)  # worse than any fit
# Between the scales of about 2 and 10 that a loss is given where the convention is looked for, a loss that takes the
# scale itself changes a few times; one that exponentiates what it is given, thousands of times, up or down.
_EXPONENTIAL = 50.0


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
    return _with_rounded_products(run, declared, report) or report


def _with_rounded_products(run: Run, declared: Sequence[Convention], report: Report) -> Report | None:
    """The report of a loss that is right where products may round what goes into them; None for any other."""
    argument = run.products
    if not argument or run.setting.products:
        return None
    again = Run(run.fn, run.framework, replace(run.setting, products=argument), run.dims, run.progress, run.size)
    other = _run_check(again, declared)
    if not other.passed:
        return None
    other.verdict = "OTHER CONVENTION"
    other.findings = [declared_otherwise(argument, run.setting.dtype), *report.findings]
    return other


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
        called = {c.scale: run.call(probe, c, "plain", "finding the convention") for c in candidates}
        outcomes = {scale: given for scale, given in called.items() if isinstance(given, Outcome)}
        exponential = exponentiates(outcomes.get("log"), outcomes.get("linear"))
        scores = []
        for convention in candidates:
            outcome = outcomes.get(convention.scale)
            if outcome is not None:
                against = exponential is not None and exponential != (convention.scale == "log")
                wrong, radial, gap = misfit(outcome, truth(probe, convention, run.setting), convention, probe)
                normalises = not wrong and convention.embeddings == "raw"  # both are right where rows are frozen
                linear = convention.scale == "linear"
                scores.append((wrong > 0, against, wrong, radial, linear, normalises, gap))
                if not any(scores[-1][:-1]):  # none of the others can be better
                    return convention
            else:
                scores.append(_REFUSED)
        if min(scores) < _REFUSED:
            run.refused.clear()
            return candidates[scores.index(min(scores))]
    raise refuses_everything(run.first_refusal, run.setting.device) from run.first_refusal


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
    gradient = outcome.gradients.get("image_embed")
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
    left_out = [*left_out]
    points = points_of(convention.embeddings, run.setting.dtype)
    probes, _ = loss_probes(points, run.dims, run.setting.dtype, run.setting.scalar_dtype)
    details: list[Row] = []
    for probe in probes:
        outcome = run.call(probe, convention, "plain", probe.label)
        if isinstance(outcome, Outcome):
            right = truth(probe, convention, run.setting)
            run.outcomes[probe.label] = probe, outcome, right
            details += judge(outcome, right, probe.label)
    details = excused(run, convention, details, left_out)
    findings = _refused_values(run, convention, details)
    broken, notes = kept(run, convention, details)
    findings += broken + _explained(run, convention, hints(details, run.setting))
    large = large_batches(run, convention, left_out)
    findings += large_findings(details, large, run.setting.dtype in ("bfloat16", "float16"))
    details += judged(large)
    verdict = judgement(details)
    judged_as_wrong = {row.probe for row in details if row.trouble == "refused"}
    not_checked = left_out + [f"d {name}: frozen, as declared" for name in run.setting.frozen]
    not_checked += [str(one) for one in run.refused if one.label not in judged_as_wrong]
    looked_for, reasons = looks_for(run.setting, large, has_whole_tiles(probe for probe, _, _ in run.outcomes.values()))
    seen = loss_sight(run.outcomes, details, convention, run.setting, run.ways, looked_for, reasons)
    report = Report(
        title=f"{describe(run.fn)} ({run.framework.name}, {run.setting.words})",
        verdict=verdict.verdict,
        rows=worst_rows(details),
        findings=findings,
        conventions=conventions_in_words(convention, declared),
        not_checked=not_checked,
        blind=in_the_catalogue(seen.blind) + blind_spots(details, run.setting),
        details=details,
        sight=seen,
        unjudged=verdict.unjudged,
    )
    report.case = case_of(report, run.fn, run.framework.name, run.setting, convention, run.outcomes | large)
    counted = {row.probe for row in details if row.right or row.verdict == "FAIL"}
    called = run.outcomes | large
    pairs = max((probe.shape[0] for label, (probe, _, _) in called.items() if label in counted), default=0)
    report.notes = notes + next_steps(report, len(called), convention, pairs)
    return report


def _refused_values(run: Run, convention: Convention, details: list[Row]) -> list[Finding]:
    """Probes that fn refuses although it took others of the same shape: what it refuses is the numbers in them.

    A shape may be a limit of a kernel. Numbers are not, unless even correct rounding makes nothing of them.
    """
    worked = {probe.shape for probe, _, _ in run.outcomes.values()}
    refused = []
    for one in run.refused:
        if one.probe.shape in worked and not one.memory:
            beyond = truth(one.probe, convention, run.setting).overflows
            refused += [] if any(beyond.values()) else [one]
    details += [one.as_row() for one in refused]
    if not refused:
        return []
    where = ", ".join(one.label for one in refused[:3])
    evidence = f"raises at {where}, though it takes other numbers of the same shapes: {refused[0].words}"
    return [Finding("unknown", "", "", evidence, "give loss and gradients wherever they are numbers")]


def _explained(run: Run, convention: Convention, hints: list[Finding]) -> list[Finding]:
    """The mistakes of the catalogue that explain the plain calls; where none does, what is known otherwise."""
    plain = {label: entry for label, entry in run.outcomes.items() if label == entry[0].label}
    seen = [one for label, (_, outcome, right) in plain.items() for one in seen_of(label, outcome, right)]
    contexts = {label: Context(probe, convention, probe.shape[:1]) for label, (probe, _, _) in plain.items()}
    probes = {label: probe for label, (probe, _, _) in plain.items()}
    if all(np.shape(one.got) == one.exact.shape for one in seen):
        unsteady = unsteady_finding(run, seen, convention)
        if unsteady:
            return [unsteady]
        parts = [] if run.setting.products else rounded_products(seen, probes, convention, run.setting.dtype)
        run.products = declaring(parts, run.setting.dtype)
        if parts:
            return product_findings(parts, SAFETY * max(distance(one, one.exact) for one in seen))
        tie = tie_finding(seen, probes, convention)
        if tie:
            return [tie]
        tail = tail_finding(seen, contexts, run.dims)
        if tail:
            return [tail]

    def predict(mistakes: Sequence[Mistake]) -> Predicted:
        return Predicted(mistakes, contexts, run.setting.dtype)

    found = explain(seen, suspects(ranks=False), predict, lambda wrong: patterns(wrong, contexts))
    found = with_a_tail(found, run.dims)
    named = {finding.id for finding in found} - {"unknown"}
    certain = [hint for hint in hints if hint.id != "unknown" and not (hint.id in UNSTABLE and named & UNSTABLE)]
    return certain + found if named else hints or found
