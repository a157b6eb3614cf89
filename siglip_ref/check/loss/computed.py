"""What the loss under check computes: experiments on it, after everything has been judged."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_ref.check.call.frameworks import ARGUMENTS, Inputs, Outcome, Setting
from siglip_ref.check.diagnosis.counted import counted_otherwise
from siglip_ref.check.diagnosis.derive.derive import confirmed, derive
from siglip_ref.check.diagnosis.derive.differences import is_the_story
from siglip_ref.check.diagnosis.derive.formula import Derived, Measured, Rows, clip, siglip
from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.check.diagnosis.derive.proof import Held, precision
from siglip_ref.check.engine.expected.convention import Objective
from siglip_ref.check.engine.expected.expected import Convention
from siglip_ref.check.engine.expected.probes import Probe, read_dims
from siglip_ref.check.loss.behaviour import seen_of
from siglip_ref.check.loss.explain import of_refused_values
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.ops.elementary import Array
from siglip_ref.process.isolated import one_torch_thread
from siglip_ref.report.computes import difference_in_words, in_words
from siglip_ref.report.counted import declared_in_words, difference_of
from siglip_ref.report.data import Finding, Report
from siglip_ref.report.repairs import repair_of

if TYPE_CHECKING:
    from siglip_ref.check.loss.subject import ComparedLoss, LossSubject

DERIVED = "derived"
_CALLS = 1500  # of a derivation
_SECONDS = 15.0  # that it may take unasked
_TRIALS = 6  # calls, of which the quickest says what one costs
_FORMS = ("float64", "float32")


def tell_what_it_computes(loss: "LossSubject", compared: "ComparedLoss", report: Report) -> None:
    """Into a report: after a FAIL, and of a right loss where that is asked for. What has no name yet gets one."""
    wrong = report.verdict == "FAIL"
    if not _is_known(loss.objective):
        return _tell_how_pairs_count(loss, compared, report)
    if not wrong and not (loss.says_more and report.verdict in ("PASS", "OTHER CONVENTION")):
        return
    one_torch_thread()
    with np.errstate(all="ignore"):
        derived = _derived(loss, compared, wrong)
    declared = not compared.convention.objective.plain
    if derived.formula is None and wrong and not _open(report.findings):
        return  # what has a name need not be called unknown
    report.computes = in_words(derived, wrong, declared)
    if wrong and derived.certain and derived.differences:
        kept, told = [one for one in report.findings if _named(one)], _findings(derived, declared)
        more = [one for one in told if one.id not in {finding.id for finding in kept}]
        beside = len(more) + len(kept) == len(told) and all(one.id != DERIVED for one in more)
        if beside or len(kept) < len(report.findings):
            report.findings = [*of_refused_values(compared), *kept, *more]


def _tell_how_pairs_count(loss: "LossSubject", compared: "ComparedLoss", report: Report) -> None:
    """Of losses that the experiments cannot tell: that they are what was declared, or one of few others."""
    objective = compared.convention.objective
    if report.verdict == "PASS" and loss.says_more:
        report.computes = [f"your loss: {declared_in_words(objective)}", "that is what was declared"]
    if report.verdict != "FAIL":
        return
    seen = [one for label, call in compared.plain.items() for one in seen_of(label, call.outcome, call.right)]
    probes = {label: call.probe for label, call in compared.plain.items()}
    way = counted_otherwise(seen, probes, compared.convention)
    told = difference_of(way) if way else ""
    if told:
        declared = f"declared: {declared_in_words(objective)}"
        report.computes = [
            declared,
            f"not what was declared: {told}",
            f"this reproduces your loss at {len(seen)} tensors",
        ]
        if _open(report.findings):
            report.findings = [Finding(DERIVED, "loss", "", told, f"make it what was {declared}")]


def _is_known(objective: Objective) -> bool:
    """Whether the experiments, which choose embeddings, scale and bias, can tell it: nothing else is given to fn, and
    pairs do not share their sum; smoothed labels are told of pairs that weigh alike."""
    alone = not objective.extras and objective.per_image == 1
    alone &= objective.positives == "own"
    return alone and (objective.weights is None or not objective.smoothing)


def _open(findings: Sequence[Finding]) -> bool:
    """Whether nothing has a name yet."""
    return not any(map(_named, findings))


def _named(finding: Finding) -> bool:
    return finding.id != "unknown" and finding.kind != "suspicion"


def _findings(derived: Derived, declared: bool) -> list[Finding]:
    """One for each difference, or for several that are one entry of the catalogue, with its story."""
    from siglip_ref.mistakes import CATALOGUE

    found: dict[str, Finding] = {}
    for one in derived.differences:
        words = difference_in_words(one, bool(derived.formula and derived.formula.linear))
        for id in one.ids or (DERIVED,):
            story = id != DERIVED and is_the_story(id, one.got)
            told = f"{CATALOGUE[id].text}; worked out: {words}" if story else words
            tensor, repair = one.of if one.place == "backward" else "loss", repair_of(one, declared, derived.formula)
            finding = Finding(id, tensor, "", told, repair)
            key = f"{id} {tensor} {repair}" if id == DERIVED else id
            known = found.get(key)
            found[key] = replace(known, evidence=f"{known.evidence}; {words}") if known else finding
    return list(found.values())


def _derived(loss: "LossSubject", compared: "ComparedLoss", wrong: bool) -> Derived:
    convention = compared.convention
    rows = Rows() if convention.embeddings == "unit" else Rows("unit")
    if convention.norm == "additive" and convention.embeddings == "raw":
        rows = Rows("unit + eps", 1e-8)
    declared, power = convention.objective, -1.0 if convention.objective.reduction == "batch" else -2.0
    weights = declared.weights if isinstance(declared.weights, tuple) else (1.0, 1.0)
    linear = convention.scale == "linear"
    of_pairs = declared.bias, weights, power, declared.smoothing
    right = clip(linear, rows) if declared.kind == "softmax" else siglip(linear, rows, *of_pairs)
    probe = next((one.probe for one in compared.plain.values() if one.probe.shape[0] > 1), None)
    if probe is None:
        return Derived(None, False, measured=(Measured("raises"),))
    held = _held(compared)
    for form in _FORMS:
        setting = replace(loss.setting, dtype=form, scalar_dtype=form, autocast=False, products="")
        if form == "float32" and loss.setting.dtype == "float32":
            setting = loss.setting
        wide = form == "float64" and loss.setting.dtype != "float64"
        with loss.framework.environment(loss.fn, setting) if wide else nullcontext():
            seconds = _seconds(loss, probe, convention, setting)
            if seconds is None:
                continue
            if seconds * _CALLS > _SECONDS and not loss.says_more:
                return Derived(None, False, measured=(Measured("size"),))
            raised: list[Exception] = []
            subject = _subject(loss, convention, setting, form, raised)
            if loss.progress:
                loss.progress("what it computes")
            try:
                derived = derive(subject, right, held) if wrong else confirmed(subject, right, held)
            except Exception:  # whatever a user's function raises at inputs that nobody promised to take
                return Derived(
                    None, False, measured=(Measured("raises" if raised else "numbers"),), calls=subject.calls
                )
            return derived if loss.setting.dtype == "float64" else _in_fewer_bits(derived)
    return Derived(None, False, measured=(Measured("raises"),))


def _seconds(loss: "LossSubject", probe: Probe, convention: Convention, setting: Setting) -> float | None:
    """Of one call: the least of several, for threads that wait use time, too. None where it is refused."""
    scale = probe.scale if convention.scale == "linear" else probe.log_scale
    inputs = Inputs(probe.image_embed, probe.text_embed, scale, probe.bias)
    try:
        used = []
        for _ in range(_TRIALS):
            start = time.process_time()
            loss.framework.call(loss.fn, inputs, setting, "plain")
            used.append(time.process_time() - start)
        return min(used)
    except Exception:  # a kernel that knows other formats
        return None


def _in_fewer_bits(derived: Derived) -> Derived:
    """Without that something is computed in float32, where nobody asked for more."""
    formula = derived.formula and replace(derived.formula, computed_in="")
    return replace(
        derived, formula=formula, differences=tuple(one for one in derived.differences if one.place != "computed in")
    )


def _subject(
    loss: "LossSubject", convention: Convention, setting: Setting, form: str, raised: list[Exception]
) -> Subject:
    """raised : what fn raises; of a batch of one pair, that it has no number there"""
    batch, dim, _ = read_dims(loss.dims)

    def call(x: Array, y: Array, s: float, b: float) -> LossAndGrads:
        try:
            return _as_tuple(loss.framework.call(loss.fn, Inputs(x, y, s, b), setting, "plain"))
        except Exception as error:
            raised.append(error)
            if len(x) > 1:
                raise
            return LossAndGrads(np.asarray(np.nan), *(np.full_like(one, np.nan) for one in (x, y, s, b)))

    return Subject(call, convention.scale == "linear", form, batch, dim, loss.setting.frozen)


def _as_tuple(outcome: Outcome) -> LossAndGrads:
    gradients: list[Any] = [outcome.gradients.get(name) for name in ARGUMENTS]
    return LossAndGrads(outcome.loss, *gradients)


def _held(compared: "ComparedLoss") -> list[Held]:
    """The standard inputs, at which everything was judged; none where even correct rounding leaves the range."""
    found, setting, linear = [], compared.setting, compared.convention.scale == "linear"
    allowed = precision("bfloat16" if setting.products == "bfloat16" else setting.dtype)
    for label, one in compared.plain.items():
        if any(one.right.overflows.values()):
            continue
        scale = one.probe.scale if linear else one.probe.log_scale
        x, y = (np.asarray(rows, np.float64) for rows in (one.probe.image_embed, one.probe.text_embed))
        given = _as_tuple(one.outcome)
        found.append(Held(label, x, y, scale, one.probe.bias, given, allowed, setting.frozen, setting.dtype))
    return found
