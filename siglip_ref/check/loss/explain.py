"""Why a loss is wrong: what its calls show by themselves, arguments exchanged, mistakes of the catalogue."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.check.call.contract_clauses import CLAUSES
from siglip_ref.check.call.frameworks import Inputs, Outcome, Setting
from siglip_ref.check.diagnosis.predict import Context, Predicted, suspects_of
from siglip_ref.check.diagnosis.product_findings import DECLARED, declared_otherwise, declaring, product_findings
from siglip_ref.check.diagnosis.products import Part, rounded_products
from siglip_ref.check.engine.expected.expected import Convention, judge, truth
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.check.engine.explain import explain
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.check.engine.subject import Answer
from siglip_ref.check.loss.behaviour import seen_of
from siglip_ref.check.loss.large import large_findings
from siglip_ref.check.loss.messages import hints
from siglip_ref.check.loss.tails import tail_finding, with_a_tail
from siglip_ref.check.loss.ties import tie_finding
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.report.data import Finding

if TYPE_CHECKING:
    from siglip_ref.check.loss.subject import Called, ComparedLoss, LossSubject, Refusal

_ROUNDING = 2.0**14  # times what is allowed in float32, beyond which no rounding to 8 bits throws a number
UNSTABLE = {"log-of-sigmoid", "log-one-plus-exp"}  # of which a hint knows one, and the reference both
EXCHANGED = "scale-and-bias-exchanged"


def explained(subject: "LossSubject", compared: "ComparedLoss") -> "Answer[ComparedLoss]":
    """Of a loss that is right with scale and bias exchanged, that alone; one that is right where products may be
    rounded has another convention."""
    first = next(iter(compared.called.values()), None)
    meant = right_when_exchanged(subject, first.probe) if first and subject.objective.plain else None
    if meant:
        return Answer([_exchanged()], compared=subject.compared(meant, subject.setting))
    findings = [*of_refused_values(compared), *_of_the_contract(compared), *compared.registered.findings]
    of_plain, parts = _of_plain_calls(subject, compared)
    findings += of_plain + large_findings(compared)
    argument = declaring(parts, compared.setting.dtype) or _bearing_out(compared, findings)
    if argument:
        again = replace(subject, setting=replace(subject.setting, products=argument), costs=[])
        other = again.compare()
        if again.judge(other).verdict == "PASS" and not any(True for _ in again.others(other)):
            declared = declared_otherwise(argument, subject.setting.dtype)
            known = [finding for finding in findings if finding.id != "unknown"]
            return Answer([declared, *known], "OTHER CONVENTION", other)
    return Answer(findings)


def _bearing_out(compared: "ComparedLoss", findings: Sequence[Finding]) -> str:
    """Of a loss that is not SigLIP's own, whose products nobody takes apart: the argument products= under which its
    plain calls are right; empty if there is none."""
    setting, convention = compared.setting, compared.convention
    named = any(finding.id != "unknown" for finding in findings)
    if convention.objective.plain or setting.dtype != "float32" or setting.products or named:
        return ""
    calls = compared.plain.values()
    if any(row.excess > _ROUNDING for row in compared.details if row.probe in compared.plain):
        return ""
    settings = (replace(setting, products=argument) for argument in DECLARED)
    return next((at.products for at in settings if all(_is_right(one, convention, at) for one in calls)), "")


def _is_right(one: "Called", convention: Convention, setting: Setting) -> bool:
    rows = judge(one.outcome, truth(one.probe, convention, setting), "")
    return all(row.verdict != "FAIL" for row in rows)


# --- what calls show by themselves


def refused_values(compared: "ComparedLoss") -> "list[Refusal]":
    """Plain calls that fn refuses although it took others of the same shape: what it refuses is the numbers in them.

    A shape may be a limit of a kernel. Numbers are not, unless even correct rounding makes nothing of them.
    """
    worked = {one.probe.shape for one in compared.plain.values()}
    found = [one for one in compared.refused if one.clause is None and one.probe.shape in worked and not one.memory]
    rights = (truth(one.probe, compared.convention, compared.setting) for one in found)
    return [one for one, right in zip(found, rights, strict=True) if not any(right.overflows.values())]


def of_refused_values(compared: "ComparedLoss") -> list[Finding]:
    refused = refused_values(compared)
    if not refused:
        return []
    where = ", ".join(one.label for one in refused[:3])
    evidence = f"raises at {where}, though it takes other numbers of the same shapes: {refused[0].words}"
    return [Finding("unknown", "", "", evidence, "give loss and gradients wherever they are numbers")]


def _of_the_contract(compared: "ComparedLoss") -> Iterator[Finding]:
    """Broken clauses: wrong numbers first, then calls that raise, all of one clause together."""
    for label, one in compared.clauses.items():
        wrong = [row for row in compared.wrong if row.probe == label]
        if wrong and one.clause:
            names = ", ".join(row.name for row in wrong)
            evidence = f"{one.clause.suspicion} ({names}; ratio {wrong[0].ratio:.4f})"
            yield Finding(one.clause.id, wrong[0].name, wrong[0].rows, evidence, one.clause.repair)
    refused: dict[str, list[Refusal]] = {}
    for raised in compared.refused:
        if raised.clause and not raised.memory and not raised.clause.layout:
            refused.setdefault(raised.clause.id, []).append(raised)
    for id, ones in refused.items():
        where = ", ".join(one.clause.label for one in ones if one.clause)
        evidence = f"{where}: raises, though the same shapes had just worked: {ones[0].words}"
        repair = next(clause.repair for clause in CLAUSES.values() if clause.id == id)
        yield Finding(id, "", "", evidence, repair)


def unsteady_finding(subject: "LossSubject", compared: "ComparedLoss", seen: Sequence[Seen]) -> Finding | None:
    """Whether a second call where something is wrong differs from the first by more than rounding."""
    first = next((one.probe for one in seen if is_wrong(one)), None)
    if first is None:
        return None
    one = compared.plain[first]
    again = subject.call(one.probe, compared.convention, f"{first}, once more")
    if not isinstance(again, Outcome):
        return None
    others = {other.name: other.got for other in seen_of(first, again, one.right)}
    differ = [o.name for o in seen if o.probe == first and o.name in others and distance(o, others[o.name]) > 1]
    if not differ:
        return None
    names = ", ".join(differ)
    evidence = f"two calls with the same inputs differ by more than rounding: {names}, at {first}"
    return Finding("unknown", names, "", evidence, "no random numbers in a loss: dropout, noise, a sample of the pairs")


# --- scale and bias exchanged: the likeliest slip where a foreign signature is wrapped


def right_when_exchanged(subject: "LossSubject", probe: Probe) -> Convention | None:
    """The declared convention under which everything is right, if the third and fourth argument are exchanged."""
    outcomes: dict[str, Outcome | None] = {}
    for convention in subject.declared:
        kind = convention.scale
        if kind not in outcomes:
            outcomes[kind] = _called_exchanged(subject, probe, kind)
        outcome = outcomes[kind]
        if outcome and all(row.right for row in judge(outcome, truth(probe, convention, subject.setting), "")):
            return convention
    return None


def _called_exchanged(subject: "LossSubject", probe: Probe, kind: str) -> Outcome | None:
    scale = probe.scale if kind == "linear" else probe.log_scale
    inputs = Inputs(probe.image_embed, probe.text_embed, probe.bias, scale)
    try:
        outcome = subject.framework.call(subject.fn, inputs, subject.setting, "plain")
    except Exception:  # whatever a user's function raises, it is not right then
        return None
    other = {"log_scale": "bias", "bias": "log_scale"}
    return replace(outcome, gradients={other.get(name, name): g for name, g in outcome.gradients.items()})


def _exchanged() -> Finding:
    mistake = CATALOGUE[EXCHANGED]
    evidence = f"{mistake.text}: with the third and fourth argument exchanged, loss and gradients are right"
    return Finding(EXCHANGED, "loss", "", evidence, mistake.repair)


# --- mistakes of the catalogue


def _of_plain_calls(subject: "LossSubject", compared: "ComparedLoss") -> tuple[list[Finding], list[Part]]:
    """What explains the plain calls, and the products that are rounded in them; where no mistake of the catalogue
    does, what is known otherwise."""
    dtype, convention, plain = compared.setting.dtype, compared.convention, compared.convention.objective.plain
    probes = {label: one.probe for label, one in compared.plain.items()}
    seen = [one for label, call in compared.plain.items() for one in seen_of(label, call.outcome, call.right)]
    contexts = {label: Context(probe, convention, probe.shape[:1]) for label, probe in probes.items()}
    if all(np.shape(one.got) == one.exact.shape for one in seen):
        unsteady = unsteady_finding(subject, compared, seen)
        if unsteady:
            return [unsteady], []
        parts = [] if compared.setting.products or not plain else rounded_products(seen, probes, convention, dtype)
        if parts:
            return product_findings(parts, SAFETY * max(distance(one, one.exact) for one in seen)), parts
        one = tie_finding(seen, probes, convention) or tail_finding(seen, contexts, subject.dims) if plain else None
        if one:
            return [one], []
    predict = partial(Predicted, contexts=contexts, dtype=dtype)
    found = explain(seen, suspects_of(convention.objective), predict)
    found = with_a_tail(found, subject.dims) if plain else found
    named, shown = {finding.id for finding in found} - {"unknown"}, hints(compared)
    certain = [hint for hint in shown if hint.id != "unknown" and not (hint.id in UNSTABLE and named & UNSTABLE)]
    return (certain * plain + found if named else shown or found), []
