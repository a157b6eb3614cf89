"""What a whole loss is multiplied by, besides its weights: a power of the rows' width, a function of the scale; and
sums of whole losses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import numpy as np

from siglip_ref.check.diagnosis.derive.evaluate import evaluate
from siglip_ref.check.diagnosis.derive.fit import Entry, expression
from siglip_ref.check.diagnosis.derive.formula import ONE, Formula
from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.check.diagnosis.derive.proof import Held
from siglip_ref.check.diagnosis.derive.sets import simple
from siglip_ref.check.diagnosis.derive.shapes import Number
from siglip_ref.check.diagnosis.functions.mapped import MAPS
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

HELD = "held"
_TIMES = ("exp(-s)", "exp(s)", "1/s", "s", "exp(2 s)", "exp(s/2)", "s^2", "sqrt(s)", "softplus(s)")
_LOG_SCALES = (1.0, 2.3, 0.3, 1.6, 3.1, 0.7)
_BIASES = (-1.0, 0.7)


@dataclass(frozen=True)
class Factor:
    """power: of the width; times: of the scale."""

    power: float = 0.0
    times: Number = ONE

    def of(self, width: int, s: float, b: float, pairs: int) -> tuple[float, float]:
        """Its value, and its slope by the scale."""
        wide = float(width) ** self.power
        return wide * self.times(s, b, pairs), wide * self.times.slopes(s, b, pairs)[0]


def factor_of(subject: Subject, b: float) -> Factor:
    """What is seen where all similarities are 0: at rows twice as wide, and at other scales."""
    return Factor(_power_of_width(subject, b), _by_scale(subject))


def _power_of_width(subject: Subject, b: float) -> float:
    similarity, s = np.zeros((4, 4)), subject.number(subject.given(1.0))
    plain, width = subject.value(similarity, s, b), -(-8 // subject.dim) * subject.dim
    found = np.log2(replace(subject, dim=2 * width).value(similarity, s, b) / plain) if plain else 0.0
    return next((power for power in (-1.0, -0.5, 0.5, 1.0) if abs(found - power) < 1e-6), 0.0)


def _by_scale(subject: Subject) -> Number:
    """The function of the scale by which everything goes, whatever the bias is; a scale in a logit says nothing of
    pairs whose similarity is 0."""
    similarity, values = np.zeros((4, 4)), []
    near = max(1e-9, 100 * subject.noise)
    scales = [subject.number(subject.given(one)) for one in _LOG_SCALES]
    for s in scales:
        at = np.array([subject.value(similarity, s, subject.number(b)) for b in _BIASES])
        values.append(at)
        if not (np.isfinite(at).all() and at.all()):
            return ONE
        if np.ptp(at / values[0]) > near * np.abs(at / values[0]).max():
            return ONE
        if len(values) == 2 and np.abs(at / values[0] - 1).max() <= near:  # as it should be
            return ONE
    entries = [Entry(s, 0.0, 4, float((at / values[0])[0]), 0.0) for s, at in zip(scales, values, strict=True)]
    found = expression(entries, _TIMES, most=1)
    return Number(((found.parts[0][0], 1.0),)) if found is not None and len(found.parts) == 1 else ONE


def taken_off(subject: Subject, factor: Factor) -> tuple[Subject, Factor]:
    """The loss with that factor taken off; and how the backward takes the factor: a constant, if no gradient comes to
    the scale."""
    if factor == Factor():
        return subject, factor
    s, b = subject.number(subject.given(1.3)), subject.number(-0.7)
    arrived = subject.read(np.zeros((4, 4)), s, b)
    sloped = factor.of(2 * 4, s, b, 4)[1] * arrived.value / factor.of(2 * 4, s, b, 4)[0]
    # at similarities of 0 a logit's scale has no gradient: all that comes to it is the factor's
    if factor.times != ONE and (arrived.scale is None or abs(arrived.scale - sloped) > 1e-3 * abs(sloped)):
        factor = replace(factor, times=replace(factor.times, through=HELD))

    def call(x: Array, y: Array, s: float, b: float) -> LossAndGrads:
        value, by_s = factor.of(x.shape[1], s, b, len(x))
        found = subject.call(x, y, s, b)
        inner = [None if one is None else np.asarray(one) / value for one in found]
        if inner[3] is not None:
            inner[3] = inner[3] - by_s / value * np.asarray(inner[0])
        return LossAndGrads(*inner)

    return replace(subject, call=call), factor


def several(right: Formula, held: Sequence[Held]) -> Iterator[Formula]:
    """Sums of two losses of rows that are mapped or as they are, or of three that are cut, which give the values."""
    held = [one for one in held if np.isfinite(one.found.loss) and one.found.loss]
    sides = ("image_rows", "text_rows")
    rows = [replace(right.image_rows, kind=kind, mapped=name) for name in MAPS for kind in ("as given", "unit")]
    ways = [right, *(replace(right, **dict.fromkeys(sides, one)) for one in rows)]  # type: ignore[arg-type]  # rows, by their names
    values = np.array(
        [[float(evaluate(way, one.image_embed, one.text_embed, one.s, one.b).loss) for way in ways] for one in held]
    )
    got = np.array([float(one.found.loss) for one in held])
    finite: list[int] = []
    for k in np.flatnonzero(np.isfinite(values).all(0)).tolist():
        finite += [k] * all(np.abs(values[:, k] / values[:, one] - 1).max() > 1e-9 for one in finite)
    cut = [k for k in finite if k == 0 or "cut to" in rows[k - 1].mapped]
    for chosen in chain(combinations(finite, 2), combinations(cut, 3)):
        some = values[:, list(chosen)]
        factors = np.linalg.lstsq(some / got[:, None], np.ones(len(got)), rcond=1e-9)[0]
        if np.abs(some @ factors / got - 1).max() <= 1e-5:
            parts = ((simple(float(f), 1e-5), ways[k]) for f, k in zip(factors, chosen, strict=True))
            yield replace(right, several=tuple(parts))
