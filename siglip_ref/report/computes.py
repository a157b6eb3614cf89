"""What a loss computes, in words: the formula that was derived, how it differs from SigLIP's, what to change."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from siglip_ref.errors import few
from siglip_ref.report.repairs import repair_of
from siglip_ref.report.words import WORDS

if TYPE_CHECKING:
    from siglip_ref.check.diagnosis.derive.formula import (
        Backward,
        Coupled,
        Derived,
        Difference,
        Formula,
        Kept,
        Logit,
        Piece,
        Rows,
        Straight,
        Term,
    )
    from siglip_ref.check.diagnosis.derive.sets import OfPairs, Where
    from siglip_ref.check.diagnosis.derive.shapes import Number, Shape

_DIAGONAL, _OTHERS, _ALL = ("diagonal",), ("not diagonal",), ("everywhere",)
_ELSEWHERE = "; what is wrong is not in the formula: another way of calling it, a larger batch, rounding"


def in_words(derived: "Derived", wrong: bool = False, declared: bool = False) -> list[str]:
    """The lines of `Report.computes`. wrong: something is, even where the formula is not; declared: not SigLIP's own
    was asked for, but a variant"""
    own = "what was declared" if declared else "SigLIP's own"
    if derived.formula is None or (derived.failed and not derived.certain and not derived.measured):
        return [f"measured: {_stopped(derived)}"]
    lines = [f"your loss: {formula_in_words(derived.formula)}"]
    if not derived.certain:
        lines[0] = lines[0].replace("your loss:", "measured:")
        places = [f"{name} at {label}" for name, label in derived.failed]
        what = f"; it does not give {few(places, 3)}" if places else ""
        return [*lines, f"not certain: {_stopped(derived)}{what}"]
    said: dict[str, list[str]] = {}
    for one in derived.differences:
        words = difference_in_words(one, derived.formula.linear)
        said.setdefault(repair_of(one, declared, derived.formula), []).append(words)
    lines += [f"not {own.removesuffix(' own')}: {'; '.join(some)} ({repair})" for repair, some in said.items()]
    if not derived.differences:
        lines.append(f"that is {own}" + _ELSEWHERE * wrong)
    besides = "".join(f"; {WORDS['besides'][one]}" for one in derived.besides)
    proof = f"this reproduces your loss at held-out inputs ({derived.compared} tensors, {derived.calls} calls){besides}"
    if derived.left:
        proof += (
            f"; {derived.left:.0e} of what is added up is left, more than rounding: check again once that is repaired"
        )
    return [*lines, proof]


def _stopped(derived: "Derived") -> str:
    measured = derived.measured[0] if derived.measured else None
    if measured is None:
        return "SigLIP's own formula does not give everything"
    words = ", ".join(WORDS["within"].get(word, word) for word in measured.words)
    return WORDS["stopped"].get(measured.kind, measured.kind).format(words)


# --- formulas


def formula_in_words(formula: "Formula") -> str:
    """One line, as one would write it."""
    if formula.several:
        return f"{_several(formula.several)}; the loss: {formula_in_words(replace(formula, several=()))}"
    more = formula.added
    terms = [term for term in formula.terms if term not in more]
    parts, notes = [], []
    if _alike(terms):
        first = min(terms, key=lambda term: term.weights[0][0].names != _DIAGONAL)
        u = f"-z_ij ({logit_in_words(first.logit, formula.linear)})"
        before, each = _around(first.weights[0][1])
        parts.append(f"{before}sum_ij {each}{_of(first.function, u)}")
        notes.append(f"z = {-first.sign} on the diagonal, {first.sign} elsewhere")
    else:
        parts += [_term(term, formula.linear, place) for term in terms for place in range(len(term.weights))]
    parts += [_term(term, formula.linear, place) for term in more for place in range(len(term.weights))]
    parts += [_coupled(one) for one in formula.coupled]
    if formula.coupled:
        notes.append(f"logit_ij = {logit_in_words(formula.coupled[0].logit, formula.linear)}")
    parts += [_extra(*one, formula.linear) for one in formula.extra]
    parts += [_penalty(*one) for one in formula.penalties]
    for side, rows in (("image", formula.image_rows), ("text", formula.text_rows)):
        if rows.kind != "as given" or rows.order or rows.mapped:
            notes.append(f"{side} rows {_rows(rows)}")
    if formula.equal:
        notes.append(
            f"pairs whose {formula.equal} are equal {'are left out' if formula.left_out else 'count as positives'}"
        )
    if formula.unstable:
        notes.append(f"not finite where {formula.unstable} leaves its range")
    if formula.straight.above < float("inf"):
        notes.append(_straight(formula.straight))
    notes += [backward_in_words(rule) for rule in formula.backward]
    if formula.times.parts != (("1", 1.0),):
        notes.append(f"{WORDS['numbers']['times']} {expression_in_words(formula.times, formula.linear)}")
    notes += [
        WORDS["wide"][place].format(_power(power)) for place in WORDS["wide"] if (power := getattr(formula, place))
    ]
    slopes = [(term.sign, term.slope) for term in terms if term.slope]
    if len(slopes) == len(terms) and len({slope for _, slope in slopes}) == 1:
        notes.append(f"{_slope(slopes[0][1])} of each pair")
    else:
        notes += [f"{_SIDES[sign]}: {_slope(slope)}" for sign, slope in slopes]
    notes += [_kept(formula.kept)] if formula.kept else []
    notes += [WORDS["difference"]["scalars"].format(formula.scalars)] if formula.scalars else []
    notes += [WORDS["difference"]["computed in"].format(formula.computed_in)] if formula.computed_in else []
    return "; ".join([" + ".join(parts).replace("+ -", "- ") or "0", *notes])


def _straight(one: "Straight") -> str:
    where = "" if one.of == "u" else f" of x = {one.of}_ij, less x where {'i = j' if one.of == 'logit' else 'i != j'},"
    return f"softplus(x){where} is x above {one.above:g}{', in the value alone' * one.in_value}"


def _extra(name: str, form: "OfPairs", linear: bool) -> str:
    return form_in_words(form) if name == "1" else f"{_before(form)}{_names(name, linear)}"


def _penalty(name: str, form: "OfPairs") -> str:
    return f"{_before(form)}sum of {name}"


def _several(losses: "Sequence[tuple[float, Formula]]") -> str:
    """0.5 times the loss of rows as they are + 0.5 times that of rows cut to the first half of the width."""
    parts = (f"{number(factor)} times the loss of rows {_rows(one.image_rows)}" for factor, one in losses)
    return " + ".join(parts).replace("+ -", "- ")


_SIDES = {-1: "positives, u = -logit", 1: "negatives, u = logit"}


def _power(power: float) -> str:
    return ("" if power > 0 else "1/") + ("D" if abs(power) == 1 else "sqrt(D)" if abs(power) == 0.5 else f"D^{power}")


def _slope(slope: "Shape") -> str:
    return f"gradients take {_of(slope, 'u')} for the derivative by u"


_ROWS = ("image_embed", "text_embed")


def _kept(kept: "Kept") -> str:
    return f"gradients are computed from {kept.what} in {kept.form}"


def _alike(terms: Sequence["Term"]) -> bool:
    if len(terms) != 2 or any(len(term.weights) != 1 for term in terms):
        return False
    one, other = terms
    same = (one.function, one.logit, one.weights[0][1]) == (other.function, other.logit, other.weights[0][1])
    return (
        same and {one.weights[0][0].names, other.weights[0][0].names} == {_DIAGONAL, _OTHERS} and one.sign != other.sign
    )


def _term(term: "Term", linear: bool, place: int) -> str:
    where, form = term.weights[place]
    inner = logit_in_words(term.logit, linear)
    u = f"-({inner})" if term.sign < 0 else inner
    before, each = _around(form)
    return f"{before}sum over {where_in_words(where)} of {each}{_of(term.function, u)}"


def _around(form: "OfPairs") -> tuple[str, str]:
    """A factor before the sum, or in it where it goes by the pair."""
    return ("", _before(form)) if form.of and not form.counts else (_before(form), "")


def _of(shape: "Shape", u: str) -> str:
    if shape.name.startswith("slope of ") and shape.name not in WORDS["functions"]:
        return f"d/du {_of(replace(shape, name=shape.name.removeprefix('slope of ')), u)}"
    if shape.sum:
        names = [(c, name.format(u=u)) for name, c in shape.sum]
        parts = [name if c == 1 else number(c) if name == "1" else f"{number(c)} {name}" for c, name in names]
        return f"({' + '.join(parts)})".replace("+ -", "- ") if len(parts) > 1 else parts[0]
    form = WORDS["functions"].get(shape.name, f"{shape.name}({{u}})")
    form = form.replace("{0} ", "") if shape.parameters[:1] == (1.0,) else form
    group = f"({u})" if " " in u else u
    minus = u[1:] if u.startswith(("-(", "-z_ij (")) else f"-{group}"
    return form.format(*(number(p) for p in shape.parameters), u=u, group=group, minus=minus)


def logit_in_words(logit: "Logit", linear: bool) -> str:
    """exp(log_scale) sim_ij + bias."""
    similarity = "sim_ij" if logit.similarity.name == "identity" else _of(logit.similarity, "sim_ij")
    scale, offset = expression_in_words(logit.scale, linear), expression_in_words(logit.offset, linear)
    factor = f"({scale}) " if len(logit.scale.parts) > 1 else "" if scale == "1" else f"{scale} "
    product = factor + similarity
    inner = product if offset == "0" else f"{product} + {offset}".replace("+ -", "- ")
    inner += f", and {expression_in_words(logit.own, linear)} more where i = j" if logit.own.parts else ""
    return inner if logit.cap.name == "identity" else _of(logit.cap, inner)


def expression_in_words(value: "Number", linear: bool) -> str:
    """A sum of multiples of functions of scale, bias and B, within its limits."""
    parts = [_names(name, linear) if f == 1 else _times(f, _names(name, linear)) for name, f in value.parts]
    inner = " + ".join(parts).replace("+ -", "- ") or "0"
    if value.high < np.inf:
        inner = f"min({inner}, {number(value.high)})"
    inner = f"max({inner}, {number(value.low)})" if value.low > -np.inf else inner
    return inner + WORDS["through"].get(value.through, "")


def _times(factor: float, name: str) -> str:
    return number(factor) if name == "1" else f"-{name}" if factor == -1 else f"{number(factor)} {name}"


def _names(name: str, linear: bool) -> str:
    named = re.sub(r"\bs\b", "scale" if linear else "log_scale", name)
    return re.sub(r"\bb\b", "bias", named)


def number(value: float) -> str:
    """As few digits as say it: 0.2, 14.2857, 1e-08; what is hardly off 1 is not called 1."""
    return f"{value:.6g}" if f"{value:.6g}" != "1" else f"{value:.9g}"


def _form(factor: float, power: float) -> str:
    if not power:
        return number(factor)
    base = "B" if abs(power) == 1 else f"B^{abs(power):g}"
    return f"{number(factor)}/{base}" if power < 0 else base if factor == 1 else f"{number(factor)} {base}"


def form_in_words(form: "OfPairs") -> str:
    """1/B, 2(B - 1)/B^2, 1/(B (B - 1))."""
    above: list[str] = []
    below: list[str] = []
    for base, power in (("B", form.power), ("(B - 1)", form.less)):
        if power:
            side = above if power > 0 else below
            side.append(base if abs(power) == 1 else f"{base}^{abs(power):g}")
    if form.to:
        (above if form.to > 0 else below).extend([form.of] if form.counts else _own_part(form.of))
    top = " ".join(above) if form.factor == 1 and above else " ".join([number(form.factor), *above])
    under = " ".join(below) if len(below) == 1 else f"({' '.join(below)})"
    return f"{top}/{under}" if below else top


def _before(form: "OfPairs") -> str:
    words = form_in_words(form)
    return "" if words == "1" else f"{words} "


def where_in_words(where: "Where") -> str:
    """i != j; what has no formula by its name."""
    return " and ".join(map(_set, [name for name in where.names if name not in _ALL] or _ALL))


_PART = re.compile(r"chunks of (\d+)|(\d+) (parts|chunks)(?= |,|$)")


def _part(words: str) -> tuple[str, str]:
    """The words without the parts of a batch that they name, {} in their place; and one of these: chunk of 8."""
    found = _PART.search(words)
    if found is None:
        return words, ""
    size, count, kind = found.groups()
    return _PART.sub("{}", words), WORDS["parts"]["chunks" if size else f"of {kind}"].format(size or count)


def _set(name: str) -> str:
    form, part = _part(name)
    if name in WORDS["sets"] or form in WORDS["sets_of_parts"]:
        return WORDS["sets"].get(name) or WORDS["sets_of_parts"][form].format(part)
    plain = name.removeprefix("not ")
    if plain == name:
        return name
    if form.removeprefix("not ") in WORDS["sets_of_parts"]:
        return f"not ({_set(plain)})"
    opposite = next((pair for pair in WORDS["opposite"].items() if pair[0] in plain), None)
    return plain.replace(*opposite, 1) if opposite else f"outside {plain}"


def _own_part(words: str) -> list[str]:
    """What the sum over a part is divided by: how many images are in it, and how many parts there are."""
    form, part = _part(words)
    return [f"(images in i's {part})"] + [f"(number of {part.split()[0]}s)"] * (form != "{}")


def _coupled(one: "Coupled") -> str:
    return f"{_before(one.weight)}sum of {_coupled_form(one).format(_share(one))}"


def _coupled_form(one: "Coupled") -> str:
    words = WORDS["coupled"]
    return words.get(f"{one.kind}, {one.number:g}") or words.get(one.kind, one.kind)


def _one_added(one: "Term | Coupled") -> str:
    if hasattr(one, "kind"):
        return _coupled(one)  # type: ignore[arg-type]  # it has a kind
    return " + ".join(_term(one, False, place) for place in range(len(one.weights)))


def _share(one: "Coupled") -> str:
    if one.number >= 1 or "triplet" in one.kind:
        return number(one.number)
    return f"max(1, floor({number(abs(one.number))} {'B' if one.number > 0 else '(B - 1)'}))"


def _rows(rows: "Rows") -> str:
    words = WORDS["rows"][rows.kind].format(number(rows.eps))
    words += f", {rows.order}" if rows.order else ""
    if rows.mapped:
        gone = "which lets no gradient through" if "rounded" in rows.mapped else "of which gradients know nothing"
        words = f"{rows.mapped}{f', {gone}' * rows.cut}" + (f", then {words}" if rows.kind != "as given" else "")
    if rows.undivided:
        cut = "are not divided by it" if not rows.detached else "are those by the rows that are divided"
        return f"{words}, gradients {cut}"
    return words + (", which is held constant in the backward" if rows.detached else "")


def backward_in_words(rule: "Backward") -> str:
    """What one gradient is."""
    name = ", ".join(f"d {tensor}" for tensor in (rule.tensor, *rule.alike))
    if rule.kind == "times":
        matrix = " and ".join(
            f"{form_in_words(form)} on {where_in_words(where)}" if where.names != _ALL else form_in_words(form)
            for where, form in rule.rules
        )
        by_scale = expression_in_words(rule.scalar, False)
        factor = by_scale if matrix == "1" else matrix if by_scale == "1" else f"{matrix} times {by_scale}"
        if [where.names for where, _ in rule.rules] == [_ALL]:
            return f"{name}: {factor} times the right one"
        return f"{name}: each pair's part times {factor}" if rule.rules else f"{name}: 0"
    if rule.kind == "of":
        whole = "each pair's part is " if rule.tensor in _ROWS else ""
        pieces = " + ".join(_piece(part, rule.tensor) for part in rule.parts)
        return f"{name}: {whole}{pieces.replace('+ -', '- ')}"
    return WORDS["backward"][rule.kind].format(name=name, number=number(rule.number))


def _piece(part: "Piece", tensor: str) -> str:
    """1/B exp(log_scale) times its own, of the transposed pair."""
    scale = "" if part.scale == "1" else f" {_names(part.scale, False)}"
    form = (_form(part.factor, part.power) + scale).removeprefix("1 ")
    own = part.slopes == "its own"
    what = WORDS["slopes"].get(part.slopes, part.slopes) + (f": {part.moved}" if part.moved else "")
    what = part.moved if own and part.moved else what
    if tensor in _ROWS:
        if part.by == "the rows themselves":
            return f"{form} times {part.by}"
        besides = (WORDS["rows_by"].get(part.by, part.by), part.after and f"rows {part.after}")
        return ", ".join([f"{form} times {what}", *(one for one in besides if one)])
    by = f"slope x {part.by}" if part.by not in ("", "1") else "slopes by the logit" if part.by else "its parts"
    of = "" if own and not part.moved else f" of {what.removeprefix('that of ')}"
    return f"{form} times the sum of {by}{of}"


# --- differences


def difference_in_words(one: "Difference", linear: bool = False) -> str:
    """One thing, what it is and what SigLIP has."""
    whose = {"positives": "positives: ", "negatives": "negatives: "}.get(one.of, "")
    return whose + _difference(one, linear)


def _difference(one: "Difference", linear: bool) -> str:
    got: Any = one.got
    right: Any = one.right
    if one.place in WORDS["numbers"]:
        name = WORDS["numbers"][one.place]
        return f"{name} {expression_in_words(got, linear)}, not {expression_in_words(right, linear)}"
    if one.place == "extra":
        return f"{_extra(got[0], got[1], linear)} is added to the loss"
    if one.place == "rows":
        return f"{'rows' if one.of == 'both' else f'rows of {one.of}'} {_rows(got)}"
    if one.place == "labels":
        return WORDS["labels"][got].format(one.of)
    if one.place in ("function", "cap", "similarity"):
        u = WORDS["u"][one.of if one.place == "function" else one.place]
        return f"{_of(got, 'u')} in place of {_of(right, 'u')}, {u}"
    more = number(1 - got) if one.place == "smoothing" else form_in_words(right) if one.place == "reduction" else ""
    words = WORDS["difference"].get(one.place) or WORDS["wide"][one.place]
    return words.format(_GOT.get(one.place, str)(got), more)


def _rules(got: Any) -> str:
    said = "; ".join(f"{where_in_words(where)} with weight {form_in_words(form)}" for where, form in got)
    return said or "none are summed"


def _sum(one_in_words: Callable[[Any], str], joint: str = " + ") -> Callable[[Any], str]:
    return lambda several: joint.join(map(one_in_words, several)).replace("+ -", "- ")


# How what is there in place of SigLIP's is said, by the place in which it is.
_GOT: dict[str, Callable[[Any], str]] = {
    "reduction": form_in_words,
    "weights": _rules,
    "added": _sum(_one_added),
    "penalty": lambda got: _penalty(*got),
    "several": _several,
    "straight": lambda got: number(got.above),
    "targets": _sum(lambda forms: _sum(form_in_words)(forms) or "0", " where i = j, "),
    "backward": backward_in_words,
    "coupled": _sum(_coupled),
    "directions": _sum(_coupled),
    "smoothing": number,
    "kept": _kept,
    "slope": _slope,
    "width": _power,
    "over": _power,
}
