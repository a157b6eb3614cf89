"""One pair's part of the value as its similarity moves: which function of which logit it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.derive.fit import Fitted, best_of, sum_of
from siglip_ref.check.diagnosis.derive.formula import IDENTITY, SOFTPLUS
from siglip_ref.check.diagnosis.derive.instrument import Stretch, Subject
from siglip_ref.check.diagnosis.derive.sets import simple
from siglip_ref.check.diagnosis.derive.shapes import PAIR, SIMILARITY, STARTS, VALUES, Shape, of_number, rises
from siglip_ref.ops.elementary import Array

Pair = tuple[int, int]

_FINE = (0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95)
WIDE_GRID = np.array([sign * size for size in _FINE for sign in (1, -1)])
GRID = np.array([sign * size for size in (0.004, 0.02, 0.06, 0.15, 0.35, 0.7, 0.95) for sign in (1, -1)])
ENOUGH = 1e-9  # of the largest part of a curve; a softplus that is cut at 20 is off by less
BASES = (4.6, 3.0, 1.0, -1.0, -4.6)  # logarithms of scales, of which the one is taken that bends a curve most
BASE_BIAS = -1.0
_STEP = 1e-3  # of an offset


@dataclass(frozen=True)
class Curve:
    """values: what the loss gains when this pair's similarity moves from 0, at a scale (as given) and a bias."""

    pair: Pair
    pairs: int
    s: float
    b: float
    similarity: Array
    values: Array
    noise: float

    @property
    def top(self) -> float:
        """Its largest value."""
        return float(np.abs(self.values).max(initial=0.0))

    @property
    def enough(self) -> float:
        """Residuals up to this are none."""
        return 30 * self.noise + ENOUGH * self.top


@dataclass(frozen=True)
class PairFunction:
    """weight * function(sign * cap(scale * similarity + offset)), at one scale and bias."""

    function: Shape
    sign: int
    cap: Shape = IDENTITY
    similarity: Shape = IDENTITY
    weight: float = 1.0
    scale: float = 1.0
    offset: float = 0.0

    def gain(self, similarity: Array) -> Array:
        """From similarity 0, without the weight."""
        u = self.sign * self.cap(self.scale * self.similarity(similarity) + self.offset)
        zero = self.sign * self.cap(self.scale * self.similarity(np.zeros(1)) + self.offset)
        return self.function(u) - self.function(zero)


_USUAL = ("exp(s)", "s", "exp(-s)", "exp(s/2)", "exp(2 s)", "1/s")
HOMOGENEOUS = {"identity": 1, "hinge": 1, "absolute": 1, "square": 2, "hinge squared": 2}


def collect(
    subject: Subject, pair: Pair, pairs: int, s: float, b: float, grid: Array = GRID, stretch: Stretch = (1.0, 1.0)
) -> Curve:
    """The curve of one pair, all other similarities being 0; rows of images and texts may be stretched."""
    s, b = subject.number(s), subject.number(b)
    zero = subject.value(np.zeros((pairs, pairs)), s, b, *stretch)
    values = []
    for size in grid:
        similarity = np.zeros((pairs, pairs))
        similarity[pair] = size
        values.append(subject.value(similarity, s, b, *stretch) - zero)
    finite = np.isfinite(values)
    noise = subject.noise * max(abs(zero), float(np.abs(np.array(values)[finite]).max(initial=0.0)))
    return Curve(pair, pairs, s, b, grid[finite], np.array(values)[finite], noise)


def bent(subject: Subject, pair: Pair, pairs: int) -> float | None:
    """The logarithm of the scale at which a pair's curve bends most; None where the pair moves nothing."""
    best: tuple[float, float] | None = None
    for log_scale in BASES:
        curve = collect(subject, pair, pairs, subject.given(log_scale), BASE_BIAS, np.array([0.9, 0.3, -0.3, -0.9]))
        if len(curve.values) < 4 or curve.top <= 30 * curve.noise:
            continue
        bend = float(np.abs(curve.values[0] + curve.values[3])) / curve.top
        if best is None or bend > best[0] + 0.05:
            best = bend, log_scale
    return None if best is None else best[1]


def function_of(curve: Curve, first: Sequence[PairFunction] = ()) -> PairFunction | None:
    """The simplest function that gives a curve, with all its parameters; None where none of the known ones does.

    Parameters
    ----------
    first : functions that other pairs of the same loss have
    """
    if len(curve.values) < 8:
        return None
    rising = float(curve.values @ curve.similarity) > 0
    known = [replace(one, sign=sign) for one in first for sign in (1, -1)]
    # a softplus that is steep enough is a hinge, too
    bent = list(_signs(PairFunction(Shape("hinge"), 1))) if _has_a_level(curve) else []
    for candidate in [*known, *bent, *_candidates()]:
        if _monotone(candidate) and (candidate.sign > 0) != rising:
            continue
        for parameters in _starts(candidate):
            found = _fitted(curve, candidate, parameters)
            if found is not None:
                return found
    return _sum(curve, first)


def _has_a_level(curve: Curve) -> bool:
    """Whether it is flat at one of its ends, and not at the other."""
    ordered = curve.values[np.argsort(curve.similarity)]
    return bool((np.ptp(ordered[:3]) <= curve.noise) != (np.ptp(ordered[-3:]) <= curve.noise))


def _sum(curve: Curve, first: Sequence[PairFunction]) -> PairFunction | None:
    """A sum of two functions of a logit whose bias is SigLIP's, and its scale a usual one."""
    scales = [of_number(name, 0, curve.s, curve.b, curve.pairs) for name in _USUAL]
    for upward, scale in product((True, False), (one for one in scales if 0 < abs(one) < 1e6)):
        for sign in (1, -1):
            u = sign * (scale * curve.similarity + curve.b)
            near = np.full(len(u), max(curve.enough, 1e-300))
            shape = sum_of(VALUES, u, curve.values, near, np.full_like(u, sign * curve.b))
            if shape is not None and rises(shape) == upward:
                weight = abs(shape.parameters[0])
                parameters = tuple(simple(p / weight, 1e-6) for p in shape.parameters)
                one = PairFunction(replace(shape, parameters=parameters), sign, scale=float(scale), offset=curve.b)
                if _fits(curve, one):
                    return replace(one, weight=_weight(curve, one.gain(curve.similarity), False))
    return None


def _monotone(one: PairFunction) -> bool:
    """Whether its sign says in which direction it goes."""
    turning = ("square", "absolute", "softplus + linear", "focal", "softplus of the size")
    return one.similarity.name in ("identity", "angle", "cube") and one.function.name not in turning


def _starts(candidate: PairFunction) -> tuple[tuple[float, ...], ...]:
    """Parameters from which to look, those of a function that is known first."""
    shape = candidate.cap if candidate.cap.name in STARTS else candidate.function
    return (shape.parameters,) if shape.parameters else STARTS.get(shape.name, ((),))


def _free(candidate: PairFunction) -> str:
    """The shape whose parameters are looked for."""
    return candidate.cap.name if candidate.cap.name in STARTS else candidate.function.name


def _candidates() -> Iterator[PairFunction]:
    for name in PAIR:
        yield from _signs(PairFunction(Shape(name), 1))
        if name == "softplus":
            for similarity in SIMILARITY[1:]:
                yield from _signs(PairFunction(Shape(name), 1, similarity=Shape(similarity)))
            for cap in ("sigmoid", "tanh"):
                yield from _signs(PairFunction(Shape(name), 1, cap=Shape(cap)))
        if name == "log of sigmoid, at least":  # which is a clamp from one side
            for cap in ("clamp", "soft cap"):
                yield from _signs(PairFunction(Shape("softplus"), 1, cap=Shape(cap)))


def _signs(one: PairFunction) -> Iterator[PairFunction]:
    yield one
    yield replace(one, sign=-1)


def _fitted(curve: Curve, candidate: PairFunction, start: tuple[float, ...]) -> PairFunction | None:
    """The candidate with the parameters that fit, if they do. Small positive ones are looked for by their logarithm."""
    log = np.array([0 < value < 1 for value in start], bool)
    free = _free(candidate)
    fixed_weight = candidate.function.name in HOMOGENEOUS

    def made(p: Array) -> PairFunction:
        inner = tuple(float(v) for v in np.where(log, np.exp(np.minimum(p[2:], 50)), p[2:]))
        shape = Shape(free, inner)
        whole = replace(candidate, scale=float(np.exp(np.minimum(p[0], 50))), offset=float(p[1]))
        if start:
            whole = replace(whole, cap=shape) if candidate.cap.name == free else replace(whole, function=shape)
        return whole

    def residual(p: Array) -> Array:
        one = made(p)
        gain = one.gain(curve.similarity)
        return _weight(curve, gain, fixed_weight) * gain - curve.values

    begin = np.where(log, np.log(np.where(log, start, 1.0)), start) if start else np.zeros(0)
    size = np.exp(curve.s) if abs(curve.s) < 30 else 1.0
    scales = {np.log(max(value, 1e-6)) for value in (size, abs(curve.s), 1 / size, 1.0, 1 / max(abs(curve.s), 1e-6))}
    starts = [np.array([a, o, *begin]) for a in scales for o in _offsets(candidate, curve, a)]
    best = best_of(residual, starts, curve.noise, curve.enough, most=3)
    if best is None or not best.worst <= curve.enough:
        return None
    found = _tidy(curve, made(best.parameters))
    weight = _weight(curve, found.gain(curve.similarity), fixed_weight)
    # a weight below zero is the other sign of a function, of which another candidate tells
    return replace(found, weight=weight) if weight > 0 else None


def _offsets(candidate: PairFunction, curve: Curve, log_scale: float) -> tuple[float, ...]:
    """Where a search for an offset begins."""
    margins = (curve.b + 1, curve.b - 1) if candidate.function.name == "hinge" else ()
    return (curve.b, *margins, 0.0, float(np.exp(min(log_scale, 9))) * curve.b, 3.0)


def _tidy(curve: Curve, one: PairFunction) -> PairFunction:
    """With simple parameters where those fit as well; a function that is mostly its mirror image is told by that."""
    name, parameters = one.function.name, one.function.parameters
    if name == "softplus + linear" and parameters[0] > 0.5:  # softplus(u) - e u = softplus(-u) - (1 - e) (-u)
        one = replace(one, function=Shape(name, (1 - parameters[0],)), sign=-one.sign)
    if name in ("softplus + linear", "softplus + multiple") and _fits(curve, replace(one, function=SOFTPLUS)):
        return replace(one, function=SOFTPLUS)
    if one.cap.name == "clamp":
        low, high = one.cap.parameters
        for limits in ((low, np.inf), (-np.inf, high)):  # a limit that nothing reached was not measured
            free = replace(one, cap=Shape("clamp", limits))
            if _fits(curve, free):
                one = free
                break
    for place in ("function", "cap"):
        shape = one.function if place == "function" else one.cap
        for digits in (1e-3, 1e-6, 1e-8):
            tidy = Shape(shape.name, tuple(simple(p, digits) for p in shape.parameters))
            simpler = replace(one, function=tidy) if place == "function" else replace(one, cap=tidy)
            if _fits(curve, simpler):
                one = simpler
                break
    return one


def _fits(curve: Curve, one: PairFunction) -> bool:
    gain = one.gain(curve.similarity)
    weight = _weight(curve, gain, one.function.name in HOMOGENEOUS)
    return bool(np.abs(weight * gain - curve.values).max() <= 2 * curve.enough)


def _weight(curve: Curve, gain: Array, fixed: bool) -> float:
    """By least squares; where a function's own scale cannot be told from its weight, as SigLIP's."""
    if fixed:
        return 1 / curve.pairs
    square = float(gain @ gain)
    return float(gain @ curve.values) / square if square > 0 else 0.0


def scale_and_offset(curve: Curve, one: PairFunction) -> Fitted | None:
    """Scale and offset of a function that is known, and its weight, at another scale and bias."""

    def residual(p: Array) -> Array:
        return one.weight * replace(one, scale=float(p[0]), offset=float(p[1])).gain(curve.similarity) - curve.values

    size = np.exp(np.clip(curve.s, -30, 30))
    scales = {size, curve.s, 1 / size, 1.0, one.scale, 0.5 * size, 2 * size, 1 / curve.s if curve.s else 1.0}
    scales |= {min(size**2, 1e6), np.sqrt(size)}
    scales |= {float(np.exp(curve.b)), float(np.log(abs(curve.s) + 1e-9))}
    further = curve.b + one.offset - BASE_BIAS
    offsets = {curve.b, 0.0, -curve.b, one.offset, curve.s, further}
    starts = [np.array([a, o]) for a in scales for o in {*offsets, a * curve.b}]
    found = best_of(residual, starts, curve.noise, curve.enough, most=3)
    if found is None or not found.worst <= curve.enough:
        return None
    moved = [residual(found.parameters + np.array([0.0, step])) for step in (_STEP, -_STEP)]
    if min(float(np.abs(one).max()) for one in moved) <= curve.enough:  # beside a kink: one side says nothing of it
        found = replace(found, loose=np.array([found.loose[0], np.inf]))
    return found
