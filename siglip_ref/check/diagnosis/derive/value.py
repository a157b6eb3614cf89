"""The value of a loss as a formula: the plan of the experiments on it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.diagnosis.derive.coupled import coupled
from siglip_ref.check.diagnosis.derive.curves import BASE_BIAS
from siglip_ref.check.diagnosis.derive.evaluate import of_unit_rows
from siglip_ref.check.diagnosis.derive.fit import EXTRAS, Entry, expression
from siglip_ref.check.diagnosis.derive.formula import SOFTPLUS, Formula, Logit, Rows, Term, told_apart
from siglip_ref.check.diagnosis.derive.instrument import StopDerivingError, Subject, drawn
from siglip_ref.check.diagnosis.derive.rows import ORDERS
from siglip_ref.check.diagnosis.derive.sets import OfPairs, form_of, simple, telling_sizes
from siglip_ref.check.diagnosis.derive.shapes import Shape, is_even, of_number
from siglip_ref.check.diagnosis.derive.weights import (
    BY_GRADIENT,
    BY_VALUE,
    LOG_SCALE,
    MAIN,
    SETTINGS,
    Kind,
    gives_value,
    kind_of,
    moves_of,
    terms_of,
    typical,
    weights_at,
    weights_by_gradient,
    weights_by_sums,
)
from siglip_ref.ops.elementary import Array

_MOST_KINDS = 4
_EACH = 7  # pairs of a batch, in which each can be moved
_OTHER = 3  # pairs: whether a function depends on how many there are
_ROUNDS = 5  # of readings at other sizes, until a description stays


def value_of(subject: Subject, more: Sequence[int] = ()) -> Formula:
    """The formula of the value.

    Raises
    ------
    StopDerivingError : with the word for what is not known
    """
    s, b = subject.number(subject.given(LOG_SCALE)), BASE_BIAS
    sides = [name for name, side in (("images", 0), ("texts", 1)) if _compared_within(subject, side)]
    if sides:
        raise StopDerivingError(" ".join(["coupled", *sides]), _what_they_change(subject))
    if not _separable(subject):
        parts = coupled(subject, MAIN)
        if parts is None:
            raise StopDerivingError("coupled")
        images, texts = (_coupled_rows(subject, side) for side in (0, 1))
        return Formula((), parts, (), images, texts, linear=subject.linear)
    moved = moves_of(subject, MAIN, s, b)
    zero = abs(subject.value(np.zeros((MAIN, MAIN)), s, b))
    pairs = typical(moved, 100 * subject.noise * zero)
    if not pairs:
        raise StopDerivingError("no pair counts")
    kinds: list[Kind] = []
    while True:
        for pair in pairs:
            kinds.append(kind_of(subject, pair, known=kinds))
        odd = weights_at(subject, kinds, MAIN, s, b, moved)[1]
        if not odd.any():
            break
        if len(kinds) >= _MOST_KINDS:
            raise StopDerivingError("many kinds of pairs")
        place = np.argwhere(odd)[len(np.argwhere(odd)) // 2]
        pairs = [(int(place[0]), int(place[1]))]
    counted, odd_there = [], False
    for n in (n for n in (MAIN, _OTHER) if n % subject.batch == 0):
        weights, unknown = weights_at(subject, kinds, n, s, b)
        counted.append(sum(one != 0 for one in weights))
        odd_there = bool(unknown.any())
    if odd_there:
        kinds = _summands(kinds)
    elif len(counted) > 1 and np.max(counted[0]) < np.max(counted[1]):
        kinds = _apart(kinds)
    return _summed(subject, kinds, s, b, moved, more)


def _summed(subject: Subject, kinds: Sequence[Kind], s: float, b: float, moved: Array, more: Sequence[int]) -> Formula:
    """The formula, given what kinds of pairs there are."""
    found, odd = weights_at(subject, kinds, MAIN, s, b, moved)
    if odd.any():
        raise StopDerivingError("weights")
    matrices, side = _weights(subject, kinds, found, s, b, more)
    terms, rows = _with_rows(subject, kinds, matrices)
    for _ in range(_ROUNDS):
        unseen = telling_sizes(rule for term in terms for rule in term.weights) - set(matrices)
        if not unseen:
            break
        for size in sorted(unseen):
            more_weights = _at(subject, kinds, found, size, s, b, side)
            if more_weights is None:
                raise StopDerivingError("weights")
            matrices[size] = more_weights
        terms, rows = _with_rows(subject, kinds, matrices)
    else:
        raise StopDerivingError("weights")
    if len({kind.width for kind in kinds}) > 1:
        raise StopDerivingError("scale")
    whole = Formula((), image_rows=rows[0], text_rows=rows[1], linear=subject.linear, width=kinds[0].width)
    formula = replace(whole, terms=_ordered(told_apart(_capped(terms))))
    return replace(formula, extra=_extra(subject, formula))


def _capped(terms: Sequence[Term]) -> list[Term]:
    """A logarithm of a sigmoid that is kept above p is a softplus of what is kept below log(1/p - 1), and the other way
    round: it is told by the rounder of the two numbers. Of both labels the one limit is the logit's from both sides."""
    limits = [_limit_of(term.function) for term in terms]
    both = len({limit for limit in limits if limit}) == 1 and all(limits) and {term.sign for term in terms} == {-1, 1}
    found = []
    for term, limit in zip(terms, limits, strict=True):
        if limit:
            low, high = (-limit if both or term.sign < 0 else -np.inf, limit if both or term.sign > 0 else np.inf)
            term = replace(term, function=SOFTPLUS, logit=replace(term.logit, cap=Shape("clamp", (low, high))))
        found.append(term)
    return found


def _limit_of(function: Shape) -> float:
    """The number above which such a logarithm is constant, if that is rounder than its own; else 0."""
    if function.name != "log of sigmoid, at least":
        return 0.0
    [least] = function.parameters
    limit = float(np.log(1 / least - 1)) if 0 < least < 0.5 else 0.0
    round_one = simple(limit, 1e-6)
    return round_one if len(f"{round_one:g}") < min(len(f"{least:g}"), 6) else 0.0


def _summands(kinds: list[Kind]) -> list[Kind]:
    """Sums whose parts go with B in different ways, each part a kind of its own."""
    found: dict[tuple[Shape, int, Logit], Kind] = {}
    for kind in kinds:
        shape = kind.function.function
        named = {"softplus + multiple": "({u})", "softplus + sigmoid": "sigmoid({u})"}
        names = [name for name, _ in shape.sum] or ["softplus({u})", *[named[shape.name]] * (shape.name in named)] * (
            shape == SOFTPLUS or shape.name in named
        )
        for one in (Shape(name, (1.0,)) for name in names) if names else (shape,):
            sign = 1 if is_even(one) else kind.function.sign
            one = SOFTPLUS if one.name == "softplus({u})" else one
            function = replace(kind.function, function=one, sign=sign, weight=1.0)
            found.setdefault((one, sign, kind.logit), replace(kind, function=function))
    return list(found.values())


def _apart(kinds: list[Kind]) -> list[Kind]:
    """Where a kind is plain, another of the same logit, softplus(u) - e u, is both labels', 1 - e and e times."""
    plain = next((kind for kind in kinds if kind.function.function == SOFTPLUS), None)
    smoothed = [kind for kind in kinds if kind.function.function.name == "softplus + linear"]
    if plain is None and smoothed == kinds and len({kind.logit for kind in kinds}) == 1:
        plain = replace(kinds[0], function=replace(kinds[0].function, function=SOFTPLUS))
        return [plain, replace(plain, function=replace(plain.function, sign=-plain.function.sign))]
    both = [k for k in kinds if plain and k.function.function.name == "softplus + linear" and k.logit == plain.logit]
    if plain is None or not both:
        return kinds
    turned = replace(plain, function=replace(plain.function, sign=-plain.function.sign))
    rest = [kind for kind in kinds if kind not in both]
    there = {kind.function.sign for kind in rest if kind.function.function == SOFTPLUS and kind.logit == plain.logit}
    return rest if len(there) > 1 else [*rest, turned]


def _with_rows(
    subject: Subject, kinds: Sequence[Kind], matrices: dict[int, Sequence[Array]]
) -> tuple[tuple[Term, ...], tuple[Rows, Rows]]:
    """Terms and rows: weights by sets of pairs, or SigLIP's own of rows that stand in other places."""
    rows = kinds[0].rows
    terms = terms_of(subject, kinds, matrices)
    if terms is not None:
        return terms, rows
    for side in (0, 1):
        for order in ORDERS:
            back = {}
            for pairs, found in matrices.items():
                if pairs == 1:
                    continue
                places = ORDERS[order](pairs)
                counts = np.bincount(places, minlength=pairs)
                if (counts == 1).all():
                    back[pairs] = [one[places] if side == 0 else one[:, places] for one in found]
                else:
                    back[pairs] = [
                        _usual(one, kind, pairs, places, side) for one, kind in zip(found, kinds, strict=True)
                    ]
            terms = terms_of(subject, kinds, back, most=1)
            if terms and sum(len(term.weights) for term in terms) <= 2:
                moved = replace(rows[side], order=order)
                return terms, (moved, rows[1]) if side == 0 else (rows[0], moved)
    by_size = {pairs: sum(found, np.zeros((pairs, pairs))) for pairs, found in matrices.items()}
    alike = all(np.ptp(one) <= 1e-5 * np.abs(one).max() for one in by_size.values())
    if alike and form_of({pairs: float(one[0, 0]) for pairs, one in by_size.items()}, 1e-5) is None:
        raise StopDerivingError("by size", ", ".join(f"{by_size[n][0, 0]:.6g} at B = {n}" for n in sorted(by_size)))
    raise StopDerivingError("weights")


def _usual(seen: Array, kind: Kind, pairs: int, places: Array, side: int) -> Array:
    """The diagonal's or the others' weights, if rows that are taken from these places make of them what was seen."""
    eye = np.eye(pairs)
    for plain in (eye / pairs, (1 - eye) / pairs):
        made = np.zeros((pairs, pairs))
        np.add.at(made if side == 0 else made.T, places, plain if side == 0 else plain.T)
        if np.abs(made - seen).max() <= 1e-5 * max(float(np.abs(seen).max()), 1e-300):
            return plain
    return np.full((pairs, pairs), np.inf)


def _ordered(terms: Sequence[Term]) -> tuple[Term, ...]:
    return tuple(sorted(terms, key=lambda term: term.sign))


def _separable(subject: Subject) -> bool:
    """Whether what one pair adds does not depend on another: mixed second differences of the value."""
    for seed, (log_scale, bias) in enumerate(((1.0, -1.0), (2.5, 0.5), (0.3, -2.0))):
        s, b = subject.number(subject.given(log_scale)), bias
        base = drawn(MAIN, 20 + seed, 0.2)
        for one, other in (
            ((0, 0), (0, 1)),
            ((0, 1), (0, 2)),
            ((1, 0), (2, 0)),
            ((3, 3), (1, 3)),
            ((0, 1), (2, 3)),
            ((1, 2), (2, 1)),
            ((4, 4), (5, 5)),
        ):
            values = []
            for first, second in ((0, 0), (1, 0), (0, 1), (1, 1)):
                similarity = base.copy()
                similarity[one] += 0.4 * first * (-1) ** seed
                similarity[other] += 0.35 * second
                values.append(subject.value(similarity, s, b))
            mixed = values[3] - values[1] - values[2] + values[0]
            if not abs(mixed) <= 60 * subject.noise * max(map(abs, values)) + 1e-8 * np.ptp(values):
                return False
    return True


def _what_they_change(subject: Subject) -> str:
    """What similarities within a side are a part of: told where the scale is as good as 0, without and with a bias."""
    for name, b in (("parts", 0.0), ("whole logits", -1.5)):
        if any(_compared_within(subject, side, -40.0, b) for side in (0, 1)):
            return name
    return "similarities"


def _compared_within(subject: Subject, side: int, log_scale: float = 1.0, bias: float = -1.0) -> bool:
    """Whether the loss changes where one side's rows come nearer to each other, and no image to any text."""
    for seed in (1, 2):
        rng = np.random.Generator(np.random.PCG64([seed, side, 33]))
        width = -(-(2 * MAIN + 1) // subject.dim) * subject.dim
        other = np.linalg.qr(rng.standard_normal((width, width)))[0]
        met = rng.uniform(-0.3, 0.3, (MAIN, MAIN))
        own = np.sqrt(1 - (met * met).sum(1, keepdims=True))
        apart = met @ other[:MAIN] + own * other[MAIN : 2 * MAIN]
        near = met @ other[:MAIN] + own * other[2 * MAIN]
        s, b = subject.number(subject.given(log_scale)), subject.number(bias)
        sides = ((rows, other[:MAIN]) if side == 0 else (other[:MAIN], rows) for rows in (apart, near))
        one, two = (float(subject.at(subject.rounded(x), subject.rounded(y), s, b).loss) for x, y in sides)
        if not abs(one - two) > 1e3 * max(subject.noise, 1e-9) * abs(one):
            return False
    return True


def _coupled_rows(subject: Subject, side: int) -> Rows:
    """What becomes of one side's rows, of a loss whose pairs depend on each other: taken as given, or made unit."""
    s, b = subject.number(subject.given(1.0)), BASE_BIAS
    similarity = drawn(MAIN, 7, 0.4)
    stretch = (2.0, 1.0) if side == 0 else (1.0, 2.0)
    plain, double = subject.value(similarity, s, b), subject.value(2 * similarity, s, b)
    seen = subject.value(similarity, s, b, *stretch)
    near = 1e-9 * abs(plain) + 100 * subject.noise * abs(plain)
    if abs(seen - double) <= near:
        return Rows()
    if abs(seen - plain) <= near:
        return Rows("unit")
    raise StopDerivingError("rows")


def _weights(
    subject: Subject, kinds: Sequence[Kind], main: Sequence[Array], s: float, b: float, more: Sequence[int]
) -> tuple[dict[int, Sequence[Array]], str]:
    """Of every kind the weights by B: from the value, and where a gradient agrees with it, from that for more B; and
    which gradient."""
    found: dict[int, Sequence[Array]] = {MAIN: main}
    for pairs in BY_VALUE:
        nothing = pairs == 1 and not np.isfinite(subject.value(np.zeros((1, 1)), s, b))  # a mean of no negatives
        if pairs % subject.batch == 0 and pairs != MAIN and not nothing:
            weights, odd = weights_at(subject, kinds, pairs, s, b)
            if odd.any():
                raise StopDerivingError("weights")
            found[pairs] = weights
    near = 1e-5 if subject.noise < 1e-12 else 1e-2
    for side in ("image_embed", "text_embed", ""):  # "": none
        checked = weights_by_gradient(subject, kinds, MAIN, s, b, side) if side else main
        if checked is not None and all(
            np.abs(one - other).max() <= near * np.abs(other).max() for one, other in zip(checked, main, strict=True)
        ):
            break
    for pairs in (*BY_GRADIENT, *more) if side else (7, 11, 19, *more):
        there = None if pairs % subject.batch else _at(subject, kinds, main, pairs, s, b, side)
        if there is not None:
            found[pairs] = there
    return found, side


def _at(
    subject: Subject, kinds: Sequence[Kind], main: Sequence[Array], pairs: int, s: float, b: float, side: str
) -> Sequence[Array] | None:
    """Weights at a larger number of pairs: a gradient's, where the value has them, too; else from the value."""
    weights = weights_by_gradient(subject, kinds, pairs, s, b, side) if side else None
    if side and (weights is None or gives_value(subject, kinds, weights, pairs, s, b)):
        return weights
    if not side and pairs <= _EACH:
        weights, odd = weights_at(subject, kinds, pairs, s, b)
        return None if odd.any() else weights
    of_value = weights_by_sums(subject, kinds, main, pairs, s, b)
    if of_value is None and side:
        raise StopDerivingError("weights")
    return of_value


def _extra(subject: Subject, formula: Formula) -> tuple[tuple[str, OfPairs], ...]:
    """What is added to the value whatever the similarities are."""
    entries = []
    for log_scale, bias in SETTINGS:
        s, b = subject.number(subject.given(log_scale)), subject.number(bias)
        entries.append(_left(subject, formula, MAIN, s, b))
    found = expression(entries, EXTRAS)
    if found is None:
        raise StopDerivingError("constant")
    names = [name for name, _ in found.parts]
    by_pairs = {MAIN: dict(found.parts)}
    for pairs in (2, 3, 4, 5, 7) if names else ():
        left = [_left(subject, formula, pairs, entry.s, entry.b) for entry in entries[4 : 12 if len(names) > 1 else 5]]
        table = np.array([[of_number(name, 0, one.s, one.b, pairs) for name in names] for one in left])
        factors = np.linalg.lstsq(table, np.array([one.value for one in left]), rcond=1e-12)[0]
        by_pairs[pairs] = dict(zip(names, factors.tolist(), strict=True))
    extra = []
    for name in names:
        form = form_of({pairs: factors[name] for pairs, factors in by_pairs.items()}, 1e-5)
        if form is None:
            raise StopDerivingError("constant")
        extra.append((name, form))
    return tuple(extra)


def _left(subject: Subject, formula: Formula, pairs: int, s: float, b: float) -> Entry:
    """The value less what the formula gives, all similarities being 0."""
    similarity = np.zeros((pairs, pairs))
    value = subject.value(similarity, s, b)
    with np.errstate(all="ignore"):
        known = of_unit_rows(formula, similarity, s, b)
    noise = 30 * subject.noise * max(abs(value), known.magnitude) + 3e-9 * known.magnitude
    return Entry(s, b, pairs, value - known.value, noise / 4)
