"""What gradients take for the derivative of a pair's function, where that is another function's."""

from dataclasses import replace
from functools import partial

import numpy as np

from siglip_ref.check.diagnosis.derive.evaluate import stretched_by
from siglip_ref.check.diagnosis.derive.fit import best_of, sum_of
from siglip_ref.check.diagnosis.derive.formula import Formula, Term
from siglip_ref.check.diagnosis.derive.instrument import Reading, Subject, drawn
from siglip_ref.check.diagnosis.derive.sets import simple, total
from siglip_ref.check.diagnosis.derive.shapes import SLOPES, STARTS, SUMMANDS, Shape
from siglip_ref.ops.elementary import Array

_POINTS = ((1.0, -1.0), (2.2, -2.0), (0.4, 0.6), (3.0, -4.0), (1.7, 1.0), (3.4, -0.3), (2.5, -8.0), (2.5, 6.0))
_PAIRS = 6


def with_slopes(subject: Subject, formula: Formula) -> Formula | None:
    """The formula with the slopes that gradients have, each term's a function of its logit; None where none fits."""
    if not formula.terms or formula.coupled or formula.image_rows.order or formula.text_rows.order:
        return None
    readings = []
    for seed, (log_scale, bias) in enumerate(_POINTS):
        s, b = subject.number(subject.given(log_scale)), subject.number(bias)
        readings.append((s, b, subject.read(drawn(_PAIRS, 60 + seed), s, b)))
    for side in ("of_image", "of_text"):
        found = [_slope_of(formula, term, readings, side, subject.noise) for term in formula.terms]
        if None not in found:
            return replace(
                formula, terms=tuple(replace(t, slope=one) for t, one in zip(formula.terms, found, strict=True))
            )
    return None


def _slope_of(
    formula: Formula, term: Term, readings: list[tuple[float, float, Reading]], side: str, noise: float
) -> Shape | None:
    """Of one term, from the pairs that no other term sums."""
    weights = total(term.weights, _PAIRS)
    alone = (weights != 0) & (sum(total(one.weights, _PAIRS) != 0 for one in formula.terms) == 1)
    at, seen = [np.zeros(0)], [np.zeros(0)]
    for s, b, reading in readings:
        slopes = getattr(reading, side)
        if slopes is None or not alone.any():
            return None
        divided = stretched_by((formula.image_rows, formula.text_rows), _PAIRS, formula.width)
        similarity, scale = reading.similarity / divided, term.logit.scale(s, b, _PAIRS)
        u = term.sign * (scale * term.logit.similarity(similarity) + term.logit.offset(s, b, _PAIRS))
        by = term.sign * scale * term.logit.similarity.slope(similarity) / divided * weights
        at.append(u[alone])
        seen.append(slopes[alone] / by[alone])
    return _fitted(term, np.concatenate(at), np.concatenate(seen), max(3e-8, 1e3 * noise))


def _fitted(term: Term, u: Array, seen: Array, near: float) -> Shape | None:
    top = float(np.abs(seen).max(initial=0.0))
    if not np.isfinite(seen).all() or top == 0:
        return None
    for name in SLOPES:
        for start in STARTS.get(name, STARTS.get(name.removeprefix("slope of "), ((),))):
            begin = np.array(term.logit.cap.parameters if name == "sigmoid of the clamped" else start)
            if name == "sigmoid of the clamped" and not len(begin):
                continue
            with np.errstate(all="ignore"):
                found = begin
                if len(begin) and name != "sigmoid of the clamped":
                    best = best_of(partial(_off, name, u, seen), [begin], near * top, near * top)
                    found = best.parameters if best else begin
                shape = Shape(name, tuple(simple(float(p), 1e-6) for p in found))
                if np.abs(shape(u) - seen).max() <= near * top:
                    return shape
    return sum_of(list(SUMMANDS), u, seen, np.full(len(u), near * top))


def _off(name: str, u: Array, seen: Array, p: Array) -> Array:
    return Shape(name, tuple(p))(u) - seen
