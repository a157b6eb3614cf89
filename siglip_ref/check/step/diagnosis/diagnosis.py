"""Why steps deviate: another setting than the declared one, mistakes of the catalogue, or a number that fits."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.engine.coverage import sorted_out
from siglip_ref.check.engine.edits import Fitted
from siglip_ref.check.engine.explain import NEARLY, explain, share_explained
from siglip_ref.check.engine.seen import distance, is_wrong
from siglip_ref.check.step.arrived import LOST
from siglip_ref.check.step.diagnosis.combined import Search
from siglip_ref.check.step.diagnosis.derive import derive
from siglip_ref.check.step.diagnosis.factors import beside_others, factors, findings, is_whole, with_rates
from siglip_ref.check.step.diagnosis.numbers import read_off
from siglip_ref.check.step.diagnosis.order import SPLITS
from siglip_ref.check.step.diagnosis.sources import mean
from siglip_ref.check.step.judge import ACCUMULATION, LABELS, Judged, Moves, Plan, Rule, judge, predict
from siglip_ref.check.step.run import Taken, given
from siglip_ref.mistakes import CATALOGUE, Mistake, executable, reference
from siglip_ref.model.optim import AdamW, alike, kernels, matrices
from siglip_ref.report.data import Finding, Sight
from siglip_ref.report.edits import finding_of
from siglip_ref.report.verdict import Verdict

NO_CLIP = "clip-missing"
_NEAR = 50  # of what is allowed: another setting may round more than the declared one
USUAL = ("max_norm", "lr", "decay")  # settings that are changed most


def diagnose(taken: Sequence[Taken], plan: Plan, judged: Judged) -> tuple[Verdict, list[Finding], Fitted | None]:
    """As `_diagnosed`; where something stays unknown, numbers are read off, and forms are tried together."""
    search = Search(taken, plan, judged)
    verdict, found, fitted = _diagnosed(taken, plan, judged, search)
    if verdict == "FAIL" and any(one.kind in ("unknown", "suspicion") for one in found):
        alone = search.alone
        other = alone if alone and alone.id != "unknown" else None
        other = other or read_off(taken, plan, judged, 1) or search.two() or read_off(taken, plan, judged, 2) or alone
        if other:
            return verdict, [replace(other, tensor=other.tensor or judged.first_wrong)], None
        found = [replace(one, evidence=one.evidence + _direction(taken, judged)) for one in found]
    return verdict, found, fitted


def _direction(taken: Sequence[Taken], judged: Judged) -> str:
    """Where a step is wrong for the first time: whether what is wrong there moves against its gradient."""
    first = next(one.probe for one in judged.seen if is_wrong(one))
    grads = taken[LABELS.index(first)].grads
    wrong = [one for one in judged.seen if one.probe == first and is_wrong(one)]
    against = np.concatenate([np.ravel(one.got * grads[one.name])[np.ravel(grads[one.name] != 0)] for one in wrong])
    share, others = float(np.mean(against < 0)) if against.size else 0.0, len(grads) - len(wrong)
    said = f"; measured: at {first} {len(wrong)} tensors are wrong and {others} right; of the wrong ones' numbers "
    return f"{said}{share:.0%} move against the gradient that they should have"


def _diagnosed(
    taken: Sequence[Taken], plan: Plan, judged: Judged, search: Search
) -> tuple[Verdict, list[Finding], Fitted | None]:
    """Another setting under which every step is right, else what explains the steps, and what they compute."""
    declared = next((words for words, other in alternatives(plan) if _is_right(taken, other, judged)), None)
    split = _split(taken, plan, judged)
    predicted = {} if declared else {m.id: _made(taken, plan, split, [m]) for m in candidates(plan)}
    mistakes = [CATALOGUE[id] for id, moves in predicted.items() if _changes(moves, judged)]
    proven = partial(_proven, taken, plan, split)
    near = [m for m in mistakes if share_explained(judged.seen, predicted[m.id]) >= NEARLY]
    whole = [m.id for m in near if proven([m])]
    listed = bool(whole)
    if not (declared or listed):
        declared = _setting(derive(taken, plan, judged, settings=True), taken, plan)
    if declared:
        evidence = f"{declared}: every step is right then"
        finding = Finding("convention", "", "", evidence, f"if that is meant, declare {declared}")
        return "OTHER CONVENTION", [finding], None
    other = search.alone if len(whole) > 1 or whole == [NO_CLIP] else None
    measured = {} if listed else factors(judged.seen)
    grouped = is_whole(measured, judged.seen) and judge(taken, with_rates(plan, measured)).right
    if not (other or listed or grouped):
        alone = search.alone
        other = alone if alone and alone.id != "unknown" else None
    derived = None if other else derive(taken, plan, judged)
    if other:
        return "FAIL", [replace(other, tensor=other.tensor or judged.first_wrong)], None
    if derived is not None and any(_is_odd(one.factor) for one in derived.edits):
        derived = None
    certain = derived is not None and derived.certain
    if not listed:
        found = findings(measured, judged.seen) if grouped else []
        if found and not (certain and all(one.id == "unknown" for one in found)):
            return "FAIL", found, derived

    def of(made: Sequence[Mistake]) -> Moves:
        return predicted[made[0].id] if len(made) == 1 else _made(taken, plan, split, made)

    told = explain(judged.seen, mistakes, of, is_gradient=lambda name: False, proven=proven)
    explained = [_in_words(finding, split) for finding in told]
    still = {factor: names for factor, names in measured.items() if factor == 0.0}
    found = beside_others(still, judged.seen) * all(one.id == "unknown" for one in explained) + explained
    if derived is not None and certain and all(one.id == "unknown" for one in found):
        found = [finding_of([derived], judged.first_wrong)]
    return "FAIL", found, derived


def _setting(derived: Fitted | None, taken: Sequence[Taken], plan: Plan) -> str | None:
    """A setting of another, round value, where that is all there is; of two that give the same (a gradient of half the
    length, an eps of twice the size) the one that people set."""
    single = [one for [one, *more] in (derived.edits, *derived.alike) if not more] if derived else []
    found = {one.old.removeprefix("rule."): one.factor for one in single if one.old.startswith("rule.")}
    for field in sorted(found, key=lambda field: (*USUAL, field).index(field)):
        value = float(f"{getattr(plan.rule, field) * found[field]:.2g}")
        # a limit that nothing reaches would fit, whatever it is
        fits = [judge(taken, replace(plan, rule=_with(plan.rule, field, v))).right for v in (value, 1.1 * value)]
        if found[field] != 1 and fits == [True, False]:
            return f"{field}={value:g}"
    return None


def _is_odd(factor: float) -> bool:
    """A number of many digits, which may be that of the gradients at hand."""
    return abs(float(f"{factor:.3g}") - factor) > 1e-6 * abs(factor)


def alternatives(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Settings other than the declared ones that somebody may well have: as one would declare them."""
    rule = plan.rule
    fields: dict[str, tuple[Any, ...]] = {"decay": (0.0,), "decays": (matrices,)}
    if isinstance(rule, AdamW):
        fields |= {"beta1": (0.9, 0.95), "beta2": (0.999, 0.99, 0.98, 0.95), "eps": (1e-8, 1e-6, 1e-15)}
        fields |= {"clip_eps": (0.0, 1e-6)}
        if rule.decay:
            yield (
                f"decay={rule.decay / rule.lr:g}, which is not multiplied by lr, as big_vision's",
                replace(plan, rule=replace(rule, decay=rule.decay / rule.lr)),
            )
    else:
        fields |= {"beta2_cap": (0.95, 0.999)}
    for name, usual in (("decays", kernels), ("rates", alike)):
        if getattr(rule, name) is not usual:
            fields[name] = (usual,)
    for name, values in fields.items():
        for value in values:
            if getattr(rule, name) != value:
                words = value.__name__ if callable(value) else f"{value:g}"
                yield f"{name}={words}", replace(plan, rule=_with(rule, name, value))
    yield "schedule=None", replace(plan, schedule=lambda k: 1.0)


def candidates(plan: Plan) -> list[Mistake]:
    """The mistakes that steps can show."""
    made = executable("several steps")
    return made + [CATALOGUE[id] for id in ACCUMULATION] if plan.micro else made


def _is_right(taken: Sequence[Taken], plan: Plan, judged: Judged) -> bool:
    """Whether every step is right under another plan; what is far off needs no measured noise to be refused."""
    moves = predict(taken, plan, [one.grads for one in taken])
    near = all(distance(one, moves[one.probe, one.name]) <= _NEAR for one in judged.seen)
    return near and judge(taken, plan).right


def _changes(moves: Moves, judged: Judged) -> bool:
    """Whether anything differs from the right moves, beyond the last bits."""
    return any(not np.allclose(moves[s.probe, s.name], s.exact, rtol=1e-13, atol=0) for s in judged.seen)


def _split(taken: Sequence[Taken], plan: Plan, judged: Judged) -> int:
    """The number of micro-batches at which a mistake of accumulation explains most."""
    if plan.parts > 1 or plan.micro is None:
        return plan.parts
    made = [CATALOGUE[id] for id in ACCUMULATION]
    return max(SPLITS, key=lambda n: max(share_explained(judged.seen, _made(taken, plan, n, [m])) for m in made))


def _with(rule: Rule, field: str, value: Any) -> Rule:
    changed: dict[str, Any] = {field: value}
    return replace(rule, **changed)


def _in_words(finding: Finding, split: int) -> Finding:
    """With the first of many names only; of accumulation the number of micro-batches, and how it is declared."""
    names = finding.tensors
    if len(names) > 4:
        few = f"{', '.join(names[:3])} and {len(names) - 3} more"
        finding = replace(finding, tensor=names[0], evidence=finding.evidence.replace(finding.tensor, few))
    if finding.id not in ACCUMULATION:
        return finding
    finding = replace(finding, evidence=f"{finding.evidence}; {split} micro-batches")
    if finding.id == "accum-changes-negatives":
        return replace(finding, repair=f"{finding.repair}; if it is meant, declare accumulate={split}")
    return finding


def step_sight(taken: Sequence[Taken], plan: Plan, judged: Judged, dtype: str, *, restarted: bool) -> Sight:
    """What these steps would have seen, where what happened could be judged; `blind` are mistakes that change less than
    a correct program may lie off. restarted : the state was saved and loaded between them."""
    in_range = {(row.probe, row.name) for row in judged.rows if row.right or row.verdict == "FAIL"}
    seen, reasons = {LOST: True}, dict[str, str]()
    for mistake in candidates(plan):
        if mistake.id == LOST:
            continue
        if mistake.id == "resume-state-lost" and not restarted:
            reasons[mistake.id] = "in save and load (restart=)"
            continue
        moves = _made(taken, plan, plan.parts if plan.parts > 1 else SPLITS[0], [mistake])
        if not _changes(moves, judged):
            reasons[mistake.id] = "that change nothing under these settings"
            continue
        seen[mistake.id] = any(
            not np.all(np.abs(moves[s.probe, s.name] - s.exact) <= s.allowed)
            for s in judged.seen
            if (s.probe, s.name) in in_range
        )
    reasons |= {id: "in micro-batches (give the model)" for id in ACCUMULATION if not plan.micro}
    return sorted_out(seen, dtype, reasons)


def _made(taken: Sequence[Taken], plan: Plan, split: int, mistakes: Sequence[Mistake]) -> Moves:
    ids = {mistake.id for mistake in mistakes}
    return predict(taken, plan, [_gradients(k, one, plan, split, ids) for k, one in enumerate(taken)], mistakes)


def _proven(taken: Sequence[Taken], plan: Plan, split: int, mistakes: Sequence[Mistake]) -> bool:
    """Whether every step is right beside a reference that makes these mistakes."""
    ids = {mistake.id for mistake in mistakes}
    steps = [given(one, _gradients(k, one, plan, split, ids)) for k, one in enumerate(taken)]
    spec = reference(tuple(edit for m in mistakes if m.id not in ACCUMULATION for edit in m.edits))
    return judge(steps, plan, spec).right


def _gradients(k: int, one: Taken, plan: Plan, split: int, ids: set[str]) -> Params:
    grads = one.grads
    if "accum-changes-negatives" in ids and plan.parts == 1 and plan.micro:
        grads = mean(plan.micro(k, split))
    if "accum-loss-not-divided" in ids:
        grads = {name: split * g for name, g in grads.items()}
    if "accum-cached-not-divided" in ids:
        grads = {name: split * g if name in ("log_scale", "bias") else g for name, g in grads.items()}
    return grads
