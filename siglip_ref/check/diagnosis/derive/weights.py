"""Which pairs are summed, how often, and as what: the kinds of pairs of a loss, and their weights at every B."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from siglip_ref.check.diagnosis.derive.curves import (
    BASE_BIAS,
    GRID,
    HOMOGENEOUS,
    WIDE_GRID,
    Curve,
    Pair,
    PairFunction,
    bent,
    collect,
    function_of,
    scale_and_offset,
)
from siglip_ref.check.diagnosis.derive.evaluate import stretched_by
from siglip_ref.check.diagnosis.derive.fit import OFFSETS, SCALES, Entry, expression
from siglip_ref.check.diagnosis.derive.formula import Logit, Rows, Term
from siglip_ref.check.diagnosis.derive.instrument import StopDerivingError, Subject, drawn
from siglip_ref.check.diagnosis.derive.sets import MEMBERS, Where, describe, simple
from siglip_ref.check.diagnosis.derive.shapes import Number
from siglip_ref.ops.elementary import Array

LOG_SCALE = 1.6  # where weights are measured: no pair is sure there
MAIN = 6  # pairs, where experiments are made that need one number of them
BY_VALUE, BY_GRADIENT = (1, 2, 3, 4), (5, 7, 11, 19)
_MOVES = (0.5, -0.5, 0.2, -0.2)
_NARROW = GRID * 0.45  # so that rows of twice the length are no nearer than unit ones can be
_WIDTHS = (0.0, -0.5, 1.0, -1.0, 0.5)
_OTHER = (3, 4)  # numbers of pairs, where it is seen whether a logit depends on B
_GENTLE = 1.0  # the logarithm of a scale at which functions differ whatever becomes of it
_FEWEST = 8  # of those settings, at which a curve must tell scale and offset
# Scales (their logarithms) and biases at which scale and offset of a logit are measured.
SETTINGS = (
    *((log_scale, -1.25) for log_scale in (-0.6, 0.3, 1.0, 1.6, 2.0, 3.0, 4.0, 4.65, 5.0, 5.5, 6.5)),
    *((2.0, bias) for bias in (-12.0, -5.0, -2.5, -0.7, 0.4, 1.5, 3.0, 8.0)),
    (2.0, 14.0), (1.0, 2.0), (0.3, -3.0), (2.5, -4.0), (0.5, 0.2), (1.0, -0.2), (2.0, 0.1), (3.0, -0.1), (3.0, 0.0),
    (-0.3, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of pairs: the function of their logits, and the logit."""

    function: PairFunction
    logit: Logit
    rows: tuple[Rows, Rows] = (Rows(), Rows())
    width: float = 0.0  # the power of the rows' width in the scale

    def scale(self, s: float, b: float, pairs: int) -> float:
        """What unit rows' similarities are multiplied by, with what the rows are divided by."""
        return self.logit.scale(s, b, pairs) / stretched_by(self.rows, pairs, self.width)

    def gain(self, similarity: Array, s: float, b: float, pairs: int) -> Array:
        """What a pair of weight 1 adds when its similarity moves from 0."""
        at = replace(self.function, scale=self.scale(s, b, pairs), offset=self.logit.offset(s, b, pairs))
        return at.gain(similarity)

    def slope(self, similarity: Array, s: float, b: float, pairs: int) -> Array:
        """Its slope by the similarity."""
        scale, offset = self.scale(s, b, pairs), self.logit.offset(s, b, pairs)
        inner = scale * self.logit.similarity(similarity) + offset
        sign = self.function.sign
        outer = self.function.function.slope(sign * self.logit.cap(inner)) * self.logit.cap.slope(inner)
        return sign * outer * scale * self.logit.similarity.slope(similarity)


def moves_of(subject: Subject, pairs: int, s: float, b: float, moves: Sequence[float] = _MOVES) -> Array:
    """What the loss gains for each pair and each move: (B, B, moves)."""
    zero = subject.value(np.zeros((pairs, pairs)), s, b)
    found = np.zeros((pairs, pairs, len(moves)))
    for i in range(pairs):
        for j in range(pairs):
            for k, move in enumerate(moves):
                similarity = np.zeros((pairs, pairs))
                similarity[i, j] = move
                found[i, j, k] = subject.value(similarity, s, b) - zero
    return found


def typical(moved: Array, noise: float) -> list[Pair]:
    """One pair of each sign of slope, from the largest group of pairs that behave alike."""
    slopes = moved[..., 0] - moved[..., 1]
    slopes = np.where(np.abs(slopes) > noise, slopes, moved[..., 0])  # of what is the same both ways
    chosen: list[Pair] = []
    for sign in (-1, 1):
        places = [tuple(place) for place in np.argwhere(sign * slopes > noise)]
        groups: list[list[Pair]] = []
        for place in places:
            for group in groups:
                if np.abs(moved[group[0]] - moved[place]).max() <= 1e-5 * np.abs(moved[place]).max() + noise:
                    group.append((int(place[0]), int(place[1])))
                    break
            else:
                groups.append([(int(place[0]), int(place[1]))])
        if groups:
            group = max(groups, key=len)
            chosen.append(group[len(group) // 2])
    return chosen


def kind_of(subject: Subject, pair: Pair, pairs: int = MAIN, known: Sequence[Kind] = ()) -> Kind:
    """Function and logit of one pair, from curves at many scales and biases; and what becomes of rows.

    Raises
    ------
    StopDerivingError : "pair function", "scale", "offset" or "rows", if that is none of the known ones
    """
    log_scale = bent(subject, pair, pairs)
    if log_scale is None:
        raise StopDerivingError("pair function")
    try:
        return _kind_at(subject, pair, pairs, known, log_scale)
    except StopDerivingError:  # far from 0 many functions are the same
        if log_scale <= _GENTLE:
            raise
        return _kind_at(subject, pair, pairs, known, _GENTLE)


def _kind_at(subject: Subject, pair: Pair, pairs: int, known: Sequence[Kind], log_scale: float) -> Kind:
    base = collect(subject, pair, pairs, subject.given(log_scale), BASE_BIAS, WIDE_GRID)
    function = function_of(base, [kind.function for kind in known])
    if function is None:
        raise StopDerivingError("pair function")
    rows = known[0].rows if known else _rows(subject, function, pair, pairs, log_scale)
    factor = stretched_by(rows, pairs)
    scales, offsets = [], []
    for log_scale, bias in SETTINGS:
        curve = collect(subject, pair, pairs, subject.given(log_scale), bias)
        fitted = scale_and_offset(curve, function) if len(curve.values) >= 6 and curve.top > 100 * curve.noise else None
        if fitted is None:
            continue
        (a, o), (loose_a, loose_o) = fitted.parameters, fitted.loose
        scales.append(Entry(curve.s, curve.b, pairs, a * factor, loose_a * factor))
        offsets.append(Entry(curve.s, curve.b, pairs, o, loose_o))
    for other in _OTHER:
        for found in _at_other_size(subject, function, pair, other):
            scales.append(_by(found[0], stretched_by(rows, other)))
            offsets.append(found[1])
    if len(scales) < _FEWEST:
        raise StopDerivingError("scale")
    for width in _WIDTHS if subject.dim == 1 else (0.0,):
        apart = [_by(entry, (2.0 * entry.pairs) ** -width) for entry in scales]
        scale = expression(apart, SCALES, most=2)
        if scale is not None:
            break
    if scale is None:
        raise StopDerivingError("scale")
    offset = expression(offsets, OFFSETS)
    if offset is None:
        raise StopDerivingError("offset")
    function, scale, offset = _normalised(function, scale, offset)
    return Kind(function, Logit(scale, offset, function.similarity, function.cap), rows, width)


def _by(entry: Entry, factor: float) -> Entry:
    return replace(entry, value=entry.value * factor, loose=entry.loose * factor)


def _at_other_size(subject: Subject, function: PairFunction, pair: Pair, pairs: int) -> Iterator[tuple[Entry, Entry]]:
    """Scale and offset where B is another; the weight is one of those that depend on B in a usual way."""
    place = (1, 1) if pair[0] == pair[1] else (0, 1)
    for log_scale, bias in ((1.6, -1.25), (1.6, 0.4)):
        curve = collect(subject, place, pairs, subject.given(log_scale), bias)
        for power in (1.0, 2.0, 0.0, 0.5):
            weight = function.weight * (MAIN / pairs) ** power
            fitted = scale_and_offset(curve, replace(function, weight=weight)) if len(curve.values) >= 6 else None
            if fitted is not None:
                (a, o), (loose_a, loose_o) = fitted.parameters, fitted.loose
                yield Entry(curve.s, curve.b, pairs, a, loose_a), Entry(curve.s, curve.b, pairs, o, loose_o)
                break


def _normalised(function: PairFunction, scale: Number, offset: Number) -> tuple[PairFunction, Number, Number]:
    """Where a factor may stand in the scale or in the weight, the scale has none; the sign of a label goes with the
    sign of the bias: softplus(-(-a + b)) is that of a pair with the label -1, whose bias is subtracted."""
    degree = HOMOGENEOUS.get(function.function.name)
    if degree and len(scale.parts) == 1 and scale.parts[0][1] not in (0.0, 1.0):
        factor = scale.parts[0][1]
        weight = function.weight * abs(factor) ** degree
        function = replace(function, weight=weight)
        scale, offset = _times(scale, 1 / factor), _times(offset, 1 / factor)
    return function, scale, offset


def _times(number: Number, factor: float) -> Number:
    low, high = sorted((number.low * factor, number.high * factor))
    return Number(tuple((name, value * factor) for name, value in number.parts), low, high)


def _rows(subject: Subject, function: PairFunction, pair: Pair, pairs: int, log_scale: float) -> tuple[Rows, Rows]:
    """What becomes of each side's rows: by how the scale of a pair changes when rows are stretched."""
    for at, b in ((min(log_scale, 3.0), BASE_BIAS), (0.5, -0.5), (-0.5, 0.4), (1.5, -3.0)):
        s = subject.number(subject.given(at))
        found = [_side(subject, function, pair, pairs, s, b, side) for side in (0, 1)]
        if None not in found:
            image, text = found
            return image or Rows(), text or Rows()
    raise StopDerivingError("rows")


def _side(
    subject: Subject, function: PairFunction, pair: Pair, pairs: int, s: float, b: float, side: int
) -> Rows | None:
    """Of one side; None where it does not show here, or is nothing known."""
    near = 1e-6 if subject.form == "float64" and subject.noise < 1e-12 else 2e-3
    plain = scale_and_offset(_stretched(subject, pair, pairs, s, b, 1.0, side), function)
    if plain is None or plain.loose[0] > near * abs(plain.parameters[0]):
        return None
    at = replace(function, scale=float(plain.parameters[0]), offset=float(plain.parameters[1]))
    curves = [_stretched(subject, pair, pairs, s, b, stretch, side) for stretch in (2.0, 0.5)]
    if function.similarity.name != "identity":  # whose scale is not that of its rows
        for kind, powers in (("as given", (2.0, 0.5)), ("unit", (1.0, 1.0))):
            gains = [at.weight * at.gain(curve.similarity * power) for curve, power in zip(curves, powers, strict=True)]
            if all(np.abs(gain - c.values).max() <= 10 * c.enough for gain, c in zip(gains, curves, strict=True)):
                return Rows(kind)
        return None
    fitted = [scale_and_offset(curve, function) for curve in curves]
    if fitted[0] is None or fitted[1] is None:
        return None
    double, half = (float(one.parameters[0] / plain.parameters[0]) for one in fitted if one)
    if abs(double - 2) < near and abs(half - 0.5) < near:
        return Rows()
    if abs(double - 1) < 100 * near and abs(half - 1) < 100 * near:
        seen = {at: _stretched(subject, pair, pairs, s, b, at, side) for at in _SHORT}
        short = {at: scale_and_offset(curve, function) for at, curve in seen.items()}
        ratios = {at: float(one.parameters[0] / plain.parameters[0]) for at, one in short.items() if one}
        if beside := _beside(ratios, near):
            return beside
    if abs(double - 1) < near and abs(half - 1) < near:
        return _unit(subject, function, pair, pairs, s, b, side, float(plain.parameters[0]), near)
    eps = (2 * double - 2) / (2 - double) if double != 2 else np.nan
    if eps > 0 and abs(half - 0.5 * (1 + eps) / (0.5 + eps)) < 10 * near:
        return Rows("unit + eps", simple(eps, 100 * near / eps if near > 1e-5 else 1e-5))
    root = 4 * (double**2 - 1) / (4 - double**2) if abs(double) < 2 else np.nan
    if root > 0 and abs(half - 0.5 * np.sqrt((1 + root) / (0.25 + root))) < 10 * near:
        return Rows("unit, root", simple(root, 100 * near / root if near > 1e-5 else 1e-5))
    if double > 0 and half > 0 and abs(double * half - 1) < near:
        return Rows("power", simple(1 - float(np.log2(double)), 10 * near))
    return None


_SHORT = (2.0**-20, 2.0**-14)  # stretches of a row, at which a small number beside its length shows


def _beside(ratios: Mapping[float, float], near: float) -> Rows | None:
    """A small number beside the length, or beside its square, by what scales become of short rows."""
    if len(ratios) < len(_SHORT) or max(abs(ratio - 1) for ratio in ratios.values()) < 10 * near:
        return None
    found: list[tuple[float, Rows]] = []
    for kind, power in (("unit + eps", 1), ("unit, root", 2)):
        least, ratio = _SHORT[0] ** power, ratios[_SHORT[0]] ** power
        eps = least * (1 - ratio) / (ratio - least)
        meant = {at: (at**power * (1 + eps) / (at**power + eps)) ** (1 / power) for at in _SHORT} if eps > 0 else {}
        off = max((abs(meant[at] - ratios[at]) for at in meant), default=np.inf)
        found.append((off, Rows(kind, simple(eps, 1e-3))))
    off, rows = min(found, key=lambda one: one[0])
    return rows if off < 10 * near else None


def _unit(
    subject: Subject, function: PairFunction, pair: Pair, pairs: int, s: float, b: float, side: int, plain: float,
    near: float,
) -> Rows | None:  # fmt: skip
    """Whether each row is divided by its own length, or all by that of the matrix."""
    stretch = np.ones((pairs, 1))
    stretch[pair[side]] = 2.0
    fitted = scale_and_offset(_stretched(subject, pair, pairs, s, b, stretch, side), function)
    if fitted is None:
        return None
    ratio = fitted.parameters[0] / plain
    if abs(ratio - 1) < near:
        return Rows("unit")
    return Rows("whole matrix") if abs(ratio - 2 * np.sqrt(pairs / (pairs + 3))) < 10 * near else None


def _stretched(
    subject: Subject, pair: Pair, pairs: int, s: float, b: float, stretch: float | Array, side: int
) -> Curve:
    """The curve where the rows of one side are stretched."""
    return collect(subject, pair, pairs, s, b, _NARROW, (stretch, 1.0) if side == 0 else (1.0, stretch))


# --- weights


def weights_at(
    subject: Subject, kinds: Sequence[Kind], pairs: int, s: float, b: float, moved: Array | None = None
) -> tuple[list[Array], Array]:
    """Of each kind the weights of all pairs, from the value; and which pairs no kind, or two together, explain."""
    moved = moves_of(subject, pairs, s, b) if moved is None else moved
    gains = np.stack([kind.gain(np.array(_MOVES), s, b, pairs) for kind in kinds], -1)
    zero = abs(subject.value(np.zeros((pairs, pairs)), s, b))
    return _solved(moved, np.broadcast_to(gains, (pairs, pairs, *gains.shape)), 40 * subject.noise * zero)


def _solved(seen: Array, gains: Array, noise: float) -> tuple[list[Array], Array]:
    """seen: (B, B, n); gains: (B, B, n, kinds). Singles first, then pairs of kinds."""
    pairs, kinds = len(seen), gains.shape[-1]
    found = np.zeros((kinds, pairs, pairs))
    odd = np.zeros((pairs, pairs), bool)
    subsets = [(), *combinations(range(kinds), 1), *combinations(range(kinds), 2)]
    ways = [(positive, chosen) for positive in (True, False) for chosen in subsets]
    for i in range(pairs):
        for j in range(pairs):
            values = seen[i, j]
            allowed = noise + 3e-8 * np.abs(values).max()
            usable = ways if np.isfinite(values).all() and np.isfinite(gains[i, j]).all() else []
            for positive, chosen in usable:  # the other kind with its sign turned only where nothing else will do
                columns = gains[i, j][:, list(chosen)]
                solution = np.linalg.lstsq(columns, values, rcond=1e-11)[0] if chosen else np.zeros(0)
                if positive and (solution < 0).any():
                    continue
                if np.abs(columns @ solution - values).max() <= allowed:
                    found[list(chosen), i, j] = solution
                    break
            else:
                odd[i, j] = True
    return list(found), odd


def weights_by_gradient(
    subject: Subject, kinds: Sequence[Kind], pairs: int, s: float, b: float, side: str
) -> list[Array] | None:
    """The same from one side's gradient, at three sets of similarities."""
    seen, gains = [], []
    for seed in (1, 2, 3):
        reading = subject.read(drawn(pairs, seed), s, b)
        slopes = reading.of_image if side == "image_embed" else reading.of_text
        if slopes is None or not np.isfinite(slopes).all():
            return None
        seen.append(slopes)
        gains.append(np.stack([kind.slope(reading.similarity, s, b, pairs) for kind in kinds], -1))
    noise = 200 * subject.noise * float(np.abs(seen).max())
    found, odd = _solved(np.stack(seen, -1), np.stack(gains, -2), noise)
    return None if odd.any() else found


def _sums(
    subject: Subject, kinds: Sequence[Kind], pairs: int, s: float, b: float, count: int
) -> tuple[Array, Array, float]:
    """What the value gains at so many similarities; each pair's gain of each kind there; what rounding may add."""
    zero = subject.value(np.zeros((pairs, pairs)), s, b)
    seen, gains = [], []
    for seed in range(count):
        reading = subject.read(drawn(pairs, 80 + seed), s, b)
        seen.append(reading.value - zero)
        gains.append(np.stack([kind.gain(reading.similarity, s, b, pairs).ravel() for kind in kinds]))
    return np.array(seen), np.stack(gains), 40 * subject.noise * abs(zero)


def gives_value(
    subject: Subject, kinds: Sequence[Kind], weights: Sequence[Array], pairs: int, s: float, b: float
) -> bool:
    """Whether weights that a gradient has are those of the value."""
    seen, gains, noise = _sums(subject, kinds, pairs, s, b, 2)
    parts = gains * np.stack([one.ravel() for one in weights])
    near = 1e-7 if subject.noise < 1e-12 else 1e-3
    return bool((np.abs(parts.sum((1, 2)) - seen) <= noise + near * np.abs(parts).sum((1, 2))).all())


def weights_by_sums(
    subject: Subject, kinds: Sequence[Kind], main: Sequence[Array], pairs: int, s: float, b: float
) -> list[Array] | None:
    """From the value alone, at a number of pairs at which not each can be moved: a number on a set of pairs, and one
    outside, of each kind; where the diagonal has none of a kind, or nothing else, at `main` pairs, it has none here."""
    seen, gains, noise = _sums(subject, kinds, pairs, s, b, 3 * len(kinds) + 4)
    eye, allowed = np.eye(pairs, dtype=bool).ravel(), []
    for one in main:
        own = np.eye(len(one), dtype=bool)
        there = [bool(np.abs(one[mask]).max(initial=0.0) > 1e-6 * np.abs(one).max()) for mask in (own, ~own)]
        allowed.append(eye * there[0] + ~eye * there[1])
    gains = gains * np.stack(allowed)
    near = noise + (1e-7 if subject.noise < 1e-12 else 1e-3) * np.abs(seen).max()
    for name in MEMBERS if np.isfinite(seen).all() and np.isfinite(gains).all() else ():
        mask = Where((name,))(pairs).ravel()
        masks = [mask, ~mask] if not mask.all() else [mask]
        columns = np.concatenate([(gains * one).sum(-1) for one in masks], 1)
        columns = columns[:, used := (columns != 0).any(0)]
        solution = np.linalg.lstsq(columns, seen, rcond=1e-11)[0]
        if np.abs(columns @ solution - seen).max() <= near:
            full = np.zeros(len(used))
            full[used] = solution
            by_mask = full.reshape(len(masks), len(kinds))
            return [
                sum((by_mask[m, k] * masks[m] * allowed[k] for m in range(len(masks))), 0 * eye).reshape(pairs, pairs)
                for k in range(len(kinds))
            ]
    return None


def terms_of(
    subject: Subject, kinds: Sequence[Kind], matrices: Mapping[int, Sequence[Array]], most: int = 2
) -> tuple[Term, ...] | None:
    """The kinds with their weights as rules of at most so many sets; None where weights follow none that is known."""
    near = 1e-6 if subject.noise < 1e-12 else 3e-4
    terms = []
    for place, kind in enumerate(kinds):
        rules = describe({pairs: found[place] for pairs, found in matrices.items()}, near, most)
        if rules is None:
            return None
        if rules:
            terms.append(Term(rules, kind.function.function, kind.function.sign, kind.logit))
    return tuple(terms)
