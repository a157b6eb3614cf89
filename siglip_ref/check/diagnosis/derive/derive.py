"""Work out what a loss computes: plan the experiments, fit, and prove."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, product

import numpy as np

from siglip_ref.check.diagnosis.derive.backward import SIZES, backward_of
from siglip_ref.check.diagnosis.derive.coupled import COUPLED
from siglip_ref.check.diagnosis.derive.curves import BASE_BIAS
from siglip_ref.check.diagnosis.derive.differences import differences
from siglip_ref.check.diagnosis.derive.formula import KEPT, Derived, Formula, Kept, Measured, Rows, Straight
from siglip_ref.check.diagnosis.derive.instrument import StopDerivingError, Subject, measure_noise, rounding_of_scalars
from siglip_ref.check.diagnosis.derive.proof import (
    ALONE,
    EITHER,
    LIMITS,
    Held,
    computed_in,
    failures,
    held_back,
    kinds_of,
    off_by,
    steep,
)
from siglip_ref.check.diagnosis.derive.sets import DIAGONAL, OTHERS, Where
from siglip_ref.check.diagnosis.derive.shapes import Number, is_even
from siglip_ref.check.diagnosis.derive.value import value_of
from siglip_ref.check.diagnosis.derive.weights import BY_GRADIENT, LOG_SCALE, MAIN
from siglip_ref.check.diagnosis.functions.mapped import mapped
from siglip_ref.check.diagnosis.functions.penalties import Named, less_penalties, penalties_of
from siglip_ref.check.diagnosis.functions.shared import HELD
from siglip_ref.check.diagnosis.slopes import with_slopes
from siglip_ref.check.diagnosis.whole import Factor, factor_of, several, taken_off

_LARGEST = 200  # pairs of a batch in which weights are read


def confirmed(subject: Subject, right: Formula, held: Sequence[Held] = ()) -> Derived:
    """Whether a loss is SigLIP's own at these inputs and at ten that nobody has seen: ten calls."""
    fresh = [*held_back(subject, right.image_rows.kind != "as given")]
    both = [*fresh, *held]
    own = (one for one in _readings(right, right) if not one.equal and not one.unstable)
    right = next((one for one in own if not failures(one, both, first=True)), right)
    failed = tuple(failures(right, both))
    compared = sum(5 - len(one.frozen) for one in [*fresh, *held])
    return Derived(right, not failed, (), (), failed, (), subject.calls, compared, subject.form)


def derive(subject: Subject, right: Formula, held: Sequence[Held] = ()) -> Derived:
    """What a loss computes.

    Parameters
    ----------
    subject : the loss
    right : SigLIP's formula under the convention at hand
    held : inputs at which it was called before, none of which is used but for the proof
    """
    if MAIN % subject.batch:
        return Derived(None, False, measured=(Measured("shape"),), dtype=subject.form)
    try:
        measure_noise(subject, MAIN, subject.number(subject.given(LOG_SCALE)), BASE_BIAS)
        subject.scalars = rounding_of_scalars(subject)
        penalties = penalties_of(subject)
        less = less_penalties(subject, penalties)
        inner, factor = taken_off(less, factor_of(less, BASE_BIAS))
        formula = replace(value_of(inner), scalars=subject.scalars, computed_in=computed_in(subject))
        added = partial(_times, factor=factor, penalties=penalties)
    except StopDerivingError as stop:
        fresh = [*held_back(subject, right.image_rows.kind != "as given")] if stop.args[0] != "random" else []
        ways = chain(mapped(right), several(right, fresh)) if fresh else ()
        rounded = (replace(way, computed_in=computed_in(subject)) for way in ways)
        known = next((way for way in rounded if not failures(way, fresh, first=True)), None)
        if known is not None:
            return _proven(subject, known, right, [*fresh, *held])
        stopped = (Measured(stop.args[0], words=stop.args[1:]),)
        return Derived(None, False, measured=stopped, calls=subject.calls, dtype=subject.form)
    raw = right.image_rows.kind != "as given"
    try:
        fresh = [*held_back(subject, raw)]
        whole = backward_of(inner, formula)
        plain = factor == Factor() and not penalties
        late = {int(label.split()[3]) for _, label in failures(whole, fresh)} if whole and plain else {0}
        if late and min(late) > max(SIZES):
            whole = backward_of(inner, formula, sorted(late)) or whole
        if whole is None or failures(added(whole), fresh, first=True):
            through = (backward_of(inner, one) for one in _through(formula))
            others = chain(through, _with_slopes(inner, formula), _held(formula), _kept(formula, plain))
            fit = (one for one in others if one and not failures(added(one), fresh, first=True))
            whole = next(fit, whole)
        subject.calls += inner.calls if inner is not subject else 0
        formula, whole = added(formula), whole and added(whole)
    except StopDerivingError as stop:
        return Derived(formula, False, measured=(Measured(str(stop)),), calls=subject.calls, dtype=subject.form)
    if whole is None:
        failed = tuple(failures(formula, fresh))
        of_value = not any(name == "loss" for name, _ in failed + tuple(failures(formula, held)))
        measured = (Measured("gradients", words=tuple(dict.fromkeys(name for name, _ in failed))),)
        return Derived(formula if of_value else None, False, (), measured, failed, (), subject.calls, 0, subject.form)
    derived = _proven(subject, whole, right, [*fresh, *held])
    more = _beyond(derived, held)
    if more:
        try:
            again = backward_of(
                inner, replace(value_of(inner, more), scalars=formula.scalars, computed_in=formula.computed_in), more
            )
        except StopDerivingError:
            return derived
        again = again and added(again)
        found = _proven(subject, again, right, [*fresh, *held]) if again is not None else derived
        return found if found.certain else derived
    return derived


def _times(formula: Formula, factor: Factor, penalties: tuple[Named, ...]) -> Formula:
    return replace(formula, over=factor.power, times=factor.times, penalties=penalties)


def _through(formula: Formula) -> Iterator[Formula]:
    """The formula with gradients that know nothing of the limits of its scale or offset, or take them at the limit."""
    for place, way in product(("scale", "offset"), ("as at it", "as without")):
        numbers = [getattr(term.logit, place) for term in formula.terms]
        if any(np.isfinite([one.low, one.high]).any() for one in numbers):
            logits = (
                replace(term.logit, **{place: replace(number, through=way)})
                for term, number in zip(formula.terms, numbers, strict=True)
            )
            terms = zip(formula.terms, logits, strict=True)
            yield replace(formula, terms=tuple(replace(term, logit=logit) for term, logit in terms))


def _with_slopes(subject: Subject, formula: Formula) -> Iterator[Formula]:
    """The formula with gradients of another function than the value's."""
    found = with_slopes(subject, formula)
    whole = backward_of(subject, found) if found else None
    if whole is not None:
        yield whole


def _held(formula: Formula) -> Iterator[Formula]:
    """The formula with what pairs share held constant in the backward."""
    if any(one.kind + HELD in COUPLED for one in formula.coupled):
        for offset in (formula.coupled[0].logit.offset, Number((("b", 1.0),))):  # of a difference the value has no bias
            logit = replace(formula.coupled[0].logit, offset=offset)
            kinds = ((one, one.kind + HELD) for one in formula.coupled)
            parts = (replace(one, logit=logit, kind=held if held in COUPLED else one.kind) for one, held in kinds)
            yield replace(formula, coupled=tuple(parts))


def _kept(formula: Formula, plain: bool) -> Iterator[Formula]:
    """The formula with a backward that reads something in fewer bits."""
    for what, form in product(KEPT if plain else (), ("bfloat16", "float16")):
        yield replace(formula, kept=Kept(what, form))


def _beyond(derived: Derived, held: Sequence[Held]) -> tuple[int, ...]:
    """Larger batches, if it is only there that a formula does not give everything: weights are read there, too."""
    labels = {label for _, label in derived.failed}
    sizes = {len(one.image_embed) for one in held if one.label in labels}
    return tuple(sorted(sizes)) if sizes and min(sizes) > max(BY_GRADIENT) and max(sizes) <= _LARGEST else ()


def _proven(subject: Subject, formula: Formula, right: Formula, held: Sequence[Held]) -> Derived:
    """The formula as one of its readings that everything bears out, without what does not show."""
    for besides in _BESIDES:
        if "ties" in besides and not formula.coupled:
            continue
        meant = [one for one in held if not kinds_of(one) & set(besides)]
        if ALONE in besides and any("one pair" in kinds_of(one) for one in meant):
            continue
        readings = [one for one in _readings(formula, right) if one.equal or "zeros" not in besides]
        known = next((one for one in readings if not failures(one, meant, first=True)), None)
        if known is not None and meant:
            break
    else:
        failed = tuple(failures(formula, held))
        return Derived(formula, False, (), (Measured("not reproduced"),), failed, (), subject.calls, 0, subject.form)
    if known.unstable and all(not failures(replace(known, unstable=of), meant, True) for of in LIMITS["float64"]):
        known = replace(known, unstable=EITHER)
    simpler = True
    while simpler:
        simpler = False
        for _, without in differences(known, right):
            if not failures(without, meant, first=True):
                known, simpler = without, True
                break
    known, left = _to_rounding(subject, known, meant)
    changed = min((list(differences(one, right)) for one in _equivalents(known)), key=len)
    compared = sum(5 - len(one.frozen) for one in meant)
    told = tuple(difference for difference, _ in changed)
    return Derived(known, True, told, (), (), besides, subject.calls, compared, subject.form, left)


def _to_rounding(subject: Subject, formula: Formula, held: Sequence[Held]) -> tuple[Formula, float]:
    """The formula with the softplus that a library has, and what is left of its terms, where that is more than the
    rounding of float64."""
    if formula.computed_in or any(one.form != "float64" for one in held):
        return formula, 0.0
    held = [*held, *steep(subject)]
    left = off_by(formula, held)
    smooth = {term.function.name for term in formula.terms} == {"softplus"} and not formula.unstable
    ways: list[dict[str, object]] = [{"straight": Straight(*one)} for one in _STRAIGHT if smooth]
    if all(rows == Rows("unit") for rows in (formula.image_rows, formula.text_rows)):
        ways += [dict.fromkeys(("image_rows", "text_rows"), Rows(*one)) for one in _GUARDED]
    for way in ways if left > _ROUNDING else ():
        other: Formula = replace(formula, **way)  # type: ignore[arg-type]  # fields, by their names
        if (off := off_by(other, held)) < left / 10:
            formula, left = other, off
    return formula, left * (left > _TOLD)


# Torch's threshold, and others; small numbers beside a length, or its square.
_STRAIGHT = tuple(product((20.0, 15.0, 25.0, 30.0), ("u", "logit", "-logit"), (False, True)))
_GUARDED = tuple(product(("unit + eps", "unit, root"), (1e-12, 1e-10, 1e-16, 1e-8, 1e-6)))
_ROUNDING, _TOLD = 3e-14, 1e-12  # of the terms that are added up, in float64

# Inputs that a formula need not speak of, if it says so: where there are no negatives; where a largest one is not one;
# where rows are equal that have no direction; where the loss is no number.
_BESIDES: tuple[tuple[str, ...], ...] = (
    (), (ALONE,), ("one pair",), ("ties",), (ALONE, "ties"), ("one pair", "ties"), ("kinks",), ("zeros",),
    ("not finite",), ("kinks", "not finite"), ("ties", "not finite"), ("one pair", "ties", "not finite"),
)  # fmt: skip


def _readings(formula: Formula, right: Formula) -> list[Formula]:
    """The formula, and what no experiment tells from it: a small number beside a length, equal rows taken for one."""
    found = [formula]
    for eps in dict.fromkeys((right.image_rows.eps, 1e-8, 1e-6, 1e-12)):
        image, text = (
            replace(rows, kind="unit + eps", eps=eps) if rows.kind == "unit" and eps else rows
            for rows in (formula.image_rows, formula.text_rows)
        )
        if (image, text) != (formula.image_rows, formula.text_rows):
            found.append(replace(formula, image_rows=image, text_rows=text))
    found += [replace(formula, equal=side, left_out=out) for side in ("texts", "images") for out in (False, True)]
    for sides in (("image_rows", "text_rows"), ("image_rows",), ("text_rows",)):
        if all(getattr(formula, side).kind == "unit" for side in sides):
            back = {side: replace(getattr(formula, side), undivided=True) for side in sides}
            found += [replace(formula, **back)]
            found += [replace(formula, **{side: replace(rows, detached=True) for side, rows in back.items()})]
    found += _through(formula)
    if {term.function.name for term in formula.terms} == {"softplus"}:
        found += [replace(formula, unstable=of) for of in LIMITS["float64"]]
    return found


def _equivalents(formula: Formula) -> list[Formula]:
    """The same function, read with the other sign of every label: softplus(-l) at l is softplus(l) at -l."""

    def turned(number: Number) -> Number:
        return Number(tuple((name, -factor) for name, factor in number.parts), -number.high, -number.low)

    terms = tuple(
        replace(
            term,
            sign=-term.sign,
            logit=replace(term.logit, scale=turned(term.logit.scale), offset=turned(term.logit.offset)),
        )
        for term in formula.terms
        if term.logit.cap.name == "identity"
    )
    both = [formula]
    [term, *more] = formula.terms or (None,)
    if term and not more and is_even(term.function) and len(term.weights) == 1 and term.weights[0][0] == Where():
        form = term.weights[0][1]
        apart = ((DIAGONAL, -1), (OTHERS, 1))  # an even function has the same of both labels
        both.append(replace(formula, terms=tuple(replace(term, weights=((w, form),), sign=s) for w, s in apart)))
    if len(terms) == len(formula.terms) and terms:
        both.append(replace(formula, terms=tuple(sorted(terms, key=lambda term: term.sign))))
    return both
