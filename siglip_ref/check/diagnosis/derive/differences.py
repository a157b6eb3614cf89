"""How a formula differs from SigLIP's: one thing at a time, each with the formula in which that thing is right."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.diagnosis.derive.formula import Backward, Difference, Formula, Rows, Term
from siglip_ref.check.diagnosis.derive.sets import DIAGONAL, OTHERS, OfPairs, Rule, Where, total
from siglip_ref.check.diagnosis.derive.shapes import Number

Changed = tuple[Difference, Formula]  # and the formula without this difference
_OF_TERM = ("function", "slope")  # parts of a term, others are of its logit
_SAME_NUMBER = 1e-4  # relative
EVERYWHERE = Where(("everywhere",))
_SIZES = (2, 3, 5, 9)  # of batches, at which what goes with B is compared


def differences(formula: Formula, right: Formula) -> list[Changed]:
    """All of them; empty for the right one: SigLIP's own, or what was declared."""
    more = formula.added
    if more:
        rest = [term for term in formula.terms if term not in more]
        found = [(Difference("added", "both", (one,), ()), _without(formula, one)) for one in more]
        others = differences(replace(formula, terms=tuple(rest)), right)
        return found + [(one, replace(left, terms=(*left.terms, *more))) for one, left in others]
    zero = _label_zero(formula)
    if zero:
        constant, term = zero
        extra = tuple(one for one in formula.extra if one != constant)
        plain = replace(formula, extra=extra, terms=(*formula.terms, term))
        kind = "i = j" if term.sign < 0 else "i != j"
        return [(Difference("labels", kind, "zero", ""), plain)] + [
            (one, replace(left, extra=(*left.extra, constant), terms=left.terms[:1]))
            for one, left in differences(plain, right)
        ]
    found = list(_coupled(formula, right))
    if not formula.coupled and right.terms:
        found += [*_labels(formula, right)]
        for place in ("function", "scale", "offset", "similarity", "cap", "slope"):
            found += _of_terms(formula, right, place)
    found += [*_rows(formula, right), *_around(formula, right), *_backward(formula)]
    return found


def _without(formula: Formula, term: Term) -> Formula:
    return replace(formula, terms=tuple(one for one in formula.terms if one != term))


def _coupled(formula: Formula, right: Formula) -> Iterator[Changed]:
    if right.coupled:
        yield from _of_softmax(formula, right)
        return
    if not formula.coupled:
        return
    kinds = {(one.kind, one.weight) for one in formula.coupled}
    half = OfPairs(0.5, -1.0)
    clip = kinds == {("softmax, rows", half), ("softmax, columns", half)}
    ids = ("softmax-loss",) if clip else ()
    without = replace(formula, terms=right.terms, coupled=())
    own = {("positives", right.terms[0].weights[0][1]), ("negatives", right.terms[1].weights[0][1])}
    if own < kinds and formula.coupled[0].logit == right.terms[0].logit:
        more = tuple(one for one in formula.coupled if (one.kind, one.weight) not in own)
        if all(one.weight.factor > 0 for one in more):
            yield Difference("added", "both", more, ()), without
            return
    yield Difference("coupled", "both", formula.coupled, right.terms, ids), without


def _of_softmax(formula: Formula, right: Formula) -> Iterator[Changed]:
    """Of a loss that should be CLIP's."""
    if not formula.coupled:
        yield Difference("terms", "softmax", formula.terms, ()), replace(formula, terms=(), coupled=right.coupled)
        return
    logit, wanted = formula.coupled[0].logit, right.coupled[0].logit
    for place in ("scale", "offset", "own"):
        got, meant = getattr(logit, place), getattr(wanted, place)
        if got != meant:
            plain = replace(logit, **{place: meant})
            parts = tuple(replace(one, logit=plain) for one in formula.coupled)
            yield Difference(place, "softmax", got, meant), replace(formula, coupled=parts)
    parts = tuple(replace(one, logit=logit) for one in right.coupled)
    if parts == formula.coupled:
        return
    weights = {one.kind: one.weight for one in formula.coupled}
    smoothed, both = weights.pop("diagonal logits", OfPairs()), weights.pop("all logits", OfPairs())
    if weights == {one.kind: one.weight for one in parts} and smoothed == replace(
        both, factor=-both.factor, power=-1.0
    ):
        yield Difference("smoothing", "softmax", smoothed.factor, 0.0), replace(formula, coupled=parts)
    else:
        yield Difference("directions", "softmax", formula.coupled, parts), replace(formula, coupled=parts)


# --- labels and weights


def _labels(formula: Formula, right: Formula) -> Iterator[Changed]:
    """Which pairs count as what, and how often."""
    own, other = (_with_sign(formula, sign) for sign in (-1, 1))
    if _sets(own) == (OTHERS,) and _sets(other) == (DIAGONAL,):
        swapped = tuple(replace(term, sign=-term.sign) for term in formula.terms)
        yield Difference("labels", "both", "negated", "", ("label-sign",)), replace(formula, terms=swapped)
        return
    usual = _sets(own) == (DIAGONAL,) and _sets(other) == (OTHERS,)
    forms = [term.weights[0][1] for term in formula.terms] if usual else []
    meant = [term.weights[0][1] for term in right.terms]
    each = meant[0]
    if usual and forms[0] == forms[1] and meant[0] == meant[1]:
        if forms[0] != each:
            plain = [replace(t, weights=((t.weights[0][0], each),)) for t in formula.terms]
            yield (
                Difference("reduction", "both", forms[0], each, () if formula.over else _reduction(forms[0], each)),
                replace(formula, terms=tuple(plain)),
            )
        return
    smoothed = _smoothed(formula, each) if own and other and meant[0] == meant[1] else None
    if smoothed:
        logit, function = own[0].logit, own[0].function
        one_each = tuple(replace(term, function=function, logit=logit) for term in right.terms)
        yield Difference("targets", "both", smoothed, ()), replace(formula, terms=one_each)
        return
    sides = (("positives", own, -1, DIAGONAL), ("negatives", other, 1, OTHERS))
    for (name, terms, sign, where), each in zip(sides, meant, strict=True):
        rules = tuple(rule for term in terms for rule in term.weights)
        wanted: tuple[Rule, ...] = ((where, each),)
        if rules == wanted:
            continue
        ids: tuple[str, ...] = ()
        if not rules:
            ids = ("negatives-missing",) if name == "negatives" else ()
        elif _sets(terms) == (where,) and len({t.weights[0][1] for t in formula.terms}) > 1:
            ids = ("positives-weighted",)
        logit = terms[0].logit if terms else formula.terms[0].logit if formula.terms else right.terms[0].logit
        function = terms[0].function if terms else right.terms[0].function
        rest = [term for term in formula.terms if term.sign != sign]
        plain = [*rest, Term(wanted, function, sign, logit)]
        plain.sort(key=lambda term: term.sign)
        yield Difference("weights", name, rules, wanted, ids), replace(formula, terms=tuple(plain))


def _label_zero(formula: Formula) -> tuple[tuple[str, OfPairs], Term] | None:
    """The constant that pairs of one kind are, where labels 0 take their logits away; and what they should be."""
    if len(formula.terms) != 1 or _sets(formula.terms) not in ((DIAGONAL,), (OTHERS,)):
        return None
    term = formula.terms[0]
    (where, form), each = term.weights[0], float(term.function(np.zeros(1))[0])
    other = OTHERS if where == DIAGONAL else DIAGONAL
    for constant in formula.extra:
        due = np.array([each * form(n) * other(n).sum() for n in _SIZES])
        if constant[0] == "1" and np.allclose([constant[1](n) for n in _SIZES], due, rtol=1e-5, atol=0):
            return constant, replace(term, weights=((other, form),), sign=-term.sign)
    return None


def _smoothed(formula: Formula, each: OfPairs) -> tuple[tuple[OfPairs, ...], ...] | None:
    """Labels of own pairs and of others, as sums of what goes with B: where every pair counts as both, once in all."""
    if len({(term.function, term.logit) for term in formula.terms}) != 1:
        return None
    rules = [[rule for term in _with_sign(formula, sign) for rule in term.weights] for sign in (-1, 1)]
    if {where.names for some in rules for where, _ in some} - {one.names for one in (DIAGONAL, OTHERS, EVERYWHERE)}:
        return None
    if not all(np.allclose(total(rules[0], n) + total(rules[1], n), each(n)) for n in _SIZES):
        return None
    labels = [
        (where, replace(form, factor=form.factor / each.factor, power=form.power - each.power))
        for where, form in rules[0]
    ]
    return tuple(tuple(form for where, form in labels if where in (kind, EVERYWHERE)) for kind in (DIAGONAL, OTHERS))


def _with_sign(formula: Formula, sign: int) -> list[Term]:
    return [term for term in formula.terms if term.sign == sign]


def _sets(terms: Sequence[Term]) -> tuple[object, ...]:
    return tuple(where for term in terms for where, _ in term.weights)


def _reduction(form: OfPairs, right: OfPairs) -> tuple[str, ...]:
    """Entries for a factor before everything; those that speak of SigLIP's divisor only where it is the right one."""
    known = {
        (1.0, -2.0): ("sum-vs-mean-vs-b2",),
        (1.0, 0.0): ("loss-not-divided",),
        (2.0, -1.0): ("both-directions-summed",),
        (2.0, 0.0): ("both-directions-summed", "loss-not-divided"),
    }
    if form.less or (form.power != right.power and right != OfPairs(1.0, -1.0)):
        return ()
    times = form.factor / right.factor
    if (times, form.power - right.power - 1.0) in known:
        return known[times, form.power - right.power - 1.0]
    return ("accum-loss-not-divided",) if form.power == right.power and times == round(times) and times > 1 else ()


# --- function and logit


def _of_terms(formula: Formula, right: Formula, place: str) -> Iterator[Changed]:
    """One part of the terms: of both where it is the same in both."""
    wanted = _part(right.terms[0], place)
    odd = [term for term in formula.terms if _part(term, place) != wanted]
    if not odd:
        return
    values = {_part(term, place) for term in formula.terms}
    groups = [formula.terms] if len(values) == 1 else [(term,) for term in odd]
    for group in groups:
        of = "both" if len(group) > 1 or len(formula.terms) == 1 else "positives" if group[0].sign < 0 else "negatives"
        got = _part(group[0], place)
        plain = tuple(_with(term, place, wanted) if term in group else term for term in formula.terms)
        yield Difference(place, of, got, wanted, _ids(place, got, of, formula)), replace(formula, terms=plain)


def _part(term: Term, place: str) -> object:
    return getattr(term if place in _OF_TERM else term.logit, place)


def _with(term: Term, place: str, value: object) -> Term:
    if place in _OF_TERM:
        return replace(term, **{place: value})  # type: ignore[arg-type]  # of the type that this place has
    return replace(term, logit=replace(term.logit, **{place: value}))  # type: ignore[arg-type]  # the same


def _ids(place: str, got: object, of: str, formula: Formula) -> tuple[str, ...]:
    """Entries of the catalogue that a part of a logit, the same in all terms, is."""
    if place in _OF_TERM:
        return ("log-of-sigmoid",) if place == "function" and "log of sigmoid" in getattr(got, "name", "") else ()
    if of != "both" or not isinstance(got, Number):
        return ()
    names = {name: factor for name, factor in got.parts}
    if place == "scale":
        if np.isfinite([got.low, got.high]).any():
            return ("scale-clamped",)
        known = {
            "s": "logit-scale-not-exp",
            "1/s": "temperature-inverted",
            "exp(-s)": "temperature-inverted",
            "exp(b)": "scale-and-bias-exchanged",
        }
        if abs(names.get("1", 0.0) * 0.07 - 1) < _SAME_NUMBER and len(names) == 1:
            return ("logit-scale-init",)
        return tuple(known[name] for name, factor in names.items() if name in known and len(names) == 1 and factor > 0)
    if place == "offset":
        if not names:
            return ("logit-bias-dropped",)
        return ("bias-subtracted",) if names == {"b": -1.0} else ()
    return ()


def is_the_story(id: str, got: object) -> bool:
    """Whether the catalogue's sentence of an entry holds of a number: it says of a cut where it is."""
    return id != "scale-clamped" or not isinstance(got, Number) or abs(got.high / 100 - 1) < _SAME_NUMBER


# --- rows, what is added, gradients


def _rows(formula: Formula, right: Formula) -> Iterator[Changed]:
    sides = {"image_rows": "image_embed", "text_rows": "text_embed"}
    odd = [side for side in sides if getattr(formula, side) != getattr(right, side)]
    same = len(odd) == 2 and formula.image_rows == formula.text_rows
    for group in [odd] if same else [[side] for side in odd]:
        got, wanted = getattr(formula, group[0]), getattr(right, group[0])
        plain = replace(formula, **{side: wanted for side in group})
        ids = _rows_ids(got, wanted, group)
        yield Difference("rows", "both" if same else sides[group[0]], got, wanted, ids), plain


def _rows_ids(got: Rows, wanted: Rows, sides: Sequence[str]) -> tuple[str, ...]:
    if got.mapped:
        return ()
    if got.kind == "whole matrix":
        return ("normalised-by-whole-matrix",)
    if got.kind == "as given":
        # the entry's words are of the images
        return (
            ("features-not-normalised",) if len(sides) == 2 else ("one-side-not-normalised",) * ("image_rows" in sides)
        )
    if got.kind == "unit" and wanted.kind == "as given":
        return () if got.detached else ("normalised-again",)
    return ("normalise-backward-missing",) if got.detached and not got.undivided and got.kind == "unit" else ()


def _around(formula: Formula, right: Formula) -> Iterator[Changed]:
    for place, field in (("extra", "extra"), ("penalty", "penalties")):
        for one in getattr(formula, field):
            rest = tuple(other for other in getattr(formula, field) if other != one)
            yield Difference(place, "both", one, (), ()), replace(formula, **{field: rest})  # type: ignore[arg-type]  # as it is there
    of_exp = ("log-one-plus-exp",) if formula.unstable == "exp" else ("log-of-sigmoid",)
    for place in ("unstable", "width", "over", "times", "several", "scalars", "computed_in", "kept", "straight"):
        got, wanted = getattr(formula, place), getattr(right, place)
        if got != wanted:
            ids = {"unstable": of_exp, "straight": ("softplus-threshold",)}.get(place, ())
            yield Difference(place.replace("_", " "), "both", got, wanted, ids), replace(formula, **{place: wanted})
    if formula.equal:
        ids = ("equal-captions-as-positives",) if formula.equal == "texts" and not formula.left_out else ()
        got = "left out" if formula.left_out else "equal"
        yield Difference("labels", formula.equal, got, "", ids), replace(formula, equal="", left_out=False)


def _backward(formula: Formula) -> Iterator[Changed]:
    """One for each gradient; what is the same in several is one thing."""
    groups: list[list[Backward]] = []
    for rule in formula.backward:
        alike = [group for group in groups if replace(group[0], tensor="") == replace(rule, tensor="")]
        alike[0].append(rule) if alike else groups.append([rule])
    for group in groups:
        rest = tuple(other for other in formula.backward if other not in group)
        names = ", ".join(rule.tensor for rule in group)
        got = replace(group[0], alike=tuple(rule.tensor for rule in group[1:]))
        yield Difference("backward", names, got, (), _backward_ids(group[0], formula)), replace(formula, backward=rest)


def _backward_ids(rule: Backward, formula: Formula) -> tuple[str, ...]:
    if rule.kind == "none":
        return ("no-gradient-arrives",)
    if rule.kind == "transposed" and rule.tensor == "text_embed":
        return ("text-grad-not-transposed",)
    if rule.tensor == "log_scale" and rule.kind == "times" and rule.scalar.parts == (("exp(-s)", 1.0),):
        return ("dscale-wrt-t",) if rule.rules[0][1] == OfPairs() else ()
    if (
        rule.tensor == "log_scale"
        and rule.kind == "of"
        and [(part.slopes, part.by) for part in rule.parts] == [("its own", "similarity")]
    ):
        return ("dscale-wrt-t",)
    return ()


__all__ = ["Changed", "differences"]
