"""Loss and gradients of a formula, at any inputs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.derive.coupled import COUPLED
from siglip_ref.check.diagnosis.derive.formula import Backward, Formula, Logit, Piece, Rows
from siglip_ref.check.diagnosis.derive.rows import ORDERS, divisor_of, in_format, kept_of, rows_of
from siglip_ref.check.diagnosis.derive.sets import total
from siglip_ref.check.diagnosis.derive.shapes import of_number
from siglip_ref.check.diagnosis.functions.penalties import added
from siglip_ref.check.diagnosis.functions.recorded import value_and_slopes
from siglip_ref.check.diagnosis.pieces import HELD, LENGTHS, At, Parts
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

EMBEDS = ("image_embed", "text_embed")


def evaluate(formula: Formula, x: Array, y: Array, s: float, b: float) -> LossAndGrads:
    """The formula's loss and gradients in float64; `s` as the loss is given it."""
    with np.errstate(all="ignore"):
        return _evaluate(formula, x, y, s, b)[0]


def with_magnitudes(formula: Formula, x: Array, y: Array, s: float, b: float) -> tuple[LossAndGrads, LossAndGrads]:
    """The same, and by how much each number of it may be off, in units of the arithmetic's precision."""
    with np.errstate(all="ignore"):
        return _evaluate(formula, x, y, s, b)


def _evaluate(formula: Formula, x: Array, y: Array, s: float, b: float) -> tuple[LossAndGrads, LossAndGrads]:
    if formula.several:
        each = [(factor, *_evaluate(one, x, y, s, b)) for factor, one in formula.several]
        values = zip(*([f * np.asarray(one) for one in found] for f, found, _ in each), strict=True)
        rooms = zip(*([abs(f) * np.asarray(one) for one in room] for f, _, room in each), strict=True)
        return LossAndGrads(*map(sum, values)), LossAndGrads(*map(sum, rooms))
    s, b = in_format(formula.scalars, s, b)
    (u, back_x), (v, back_y) = rows_of(formula.image_rows, x), rows_of(formula.text_rows, y)
    equal = _equal(formula.equal, x, y)
    wide, over = (float(x.shape[1]) ** power for power in (formula.width, formula.over))
    over, more = over * formula.times(s, b, len(x)), over * formula.times.slopes(s, b, len(x))[0]
    u = u * wide
    parts = of_similarity(formula, u @ v.T, s, b, equal)
    if formula.kept:
        u, v = kept_of(formula.kept, u, v)
        parts = replace(of_similarity(formula, u @ v.T, s, b, equal), value=parts.value)
    d_x, d_y = _embeddings(formula, parts.slopes, u, v, s, b)
    d_x, d_y = back_x(wide * d_x), back_y(d_y)
    at = _at(formula, u, v, s, b, equal)
    # a cast rounds in both directions
    d_s, d_b = in_format(formula.scalars, *(_scalar(formula, name, parts, at) for name in ("log_scale", "bias")))
    d_x, d_y = _changed(formula, d_x, d_y, x, y)
    for rule in (one for one in formula.backward if one.kind == "of" and one.tensor in EMBEDS):
        made = sum(made_of(rule.tensor, rule.parts, at, x, y, wide))
        d_x, d_y = (made, d_y) if rule.tensor == "image_embed" else (d_x, made)
    room = parts.slope_magnitude
    top_u, top_v = (np.abs(rows).max(initial=0.0) for rows in (u, v))
    sides = (formula.image_rows, u, x), (formula.text_rows, v, y)
    lengths = [_grown(rows, given, bool(side.mapped)) for side, rows, given in sides]
    big_x = np.broadcast_to((room @ np.full(v.shape, top_v)) * lengths[0], d_x.shape)
    big_y = np.broadcast_to((room.T @ np.full(u.shape, top_u)) * lengths[1], d_y.shape)
    # slopes have the scale in them, and similarities are at most about 1 where rows are unit
    scalars = float(room.sum()) + abs(parts.of_scale), float(room.sum()) + abs(parts.of_bias)
    sizes = (parts.magnitude, big_x, big_y, *scalars)
    found, room = (
        LossAndGrads(*(factor * np.asarray(one) for one in all))
        for factor, all in ((over, (parts.value, d_x, d_y, d_s, d_b)), (abs(over), sizes))
    )
    if formula.penalties:
        value, p_x, p_y = added(formula.penalties, x, y)
        found, room = (
            one._replace(loss=one.loss + v, d_image_embed=one.d_image_embed + d, d_text_embed=one.d_text_embed + e)
            for one, v, d, e in ((found, value, p_x, p_y), (room, abs(value), np.abs(p_x), np.abs(p_y)))
        )
    if more:
        found = found._replace(d_log_scale=found.d_log_scale + more * parts.value)
        room = room._replace(d_log_scale=room.d_log_scale + abs(more) * parts.magnitude)
    return found, room


def _at(formula: Formula, u: Array, v: Array, s: float, b: float, equal: Array | None = None) -> At:
    """What gradients may be put together from, of the formula without its backward's mistakes."""
    plain = replace(formula, backward=())
    return At(plain, lambda other, similarity, s, b: of_similarity(other, similarity, s, b, equal), u, v, s, b)


def made_of(tensor: str, parts: Sequence[Piece], at: At, x: Array, y: Array, wide: float = 1.0) -> list[Array]:
    """What each piece gives of an embedding's gradient."""
    side, given, other = (at.formula.image_rows, x, y) if tensor == "image_embed" else (at.formula.text_rows, y, x)
    lengths = [np.sqrt((rows * rows).sum(-1, keepdims=True)) for rows in (given, other)]
    back, held = (rows_of(replace(side, detached=one), given)[1] for one in (side.detached, True))
    factor = wide if tensor == "image_embed" else 1.0
    return [
        (held if part.by in HELD else back)(factor * at.rows(tensor, part)) * LENGTHS[part.after](*lengths)
        for part in parts
    ]


def pieces_at(formula: Formula, tensor: str, pieces: Sequence[Piece], x: Array, y: Array, s: float, b: float) -> Array:
    """What each piece gives of a gradient, all numbers of it in a row."""
    wide = float(x.shape[1]) ** formula.width
    with np.errstate(all="ignore"):
        at = _at(formula, rows_of(formula.image_rows, x)[0] * wide, rows_of(formula.text_rows, y)[0], s, b)
        if tensor in EMBEDS:
            return np.stack([one.ravel() for one in made_of(tensor, pieces, at, x, y, wide)], -1)
        return np.array([[at.scalar(tensor, piece) for piece in pieces]])


def _grown(rows: Array, given: Array, mapped: bool) -> Array:
    """By how much each row was stretched; mapped: its numbers, each by another factor."""
    with np.errstate(all="ignore"):
        factor = np.sqrt((rows * rows).sum(-1) / (given * given).sum(-1))
        factor = np.fmax(factor, np.fmax.reduce(np.abs(rows / given), -1)) if mapped else factor
    return np.where(np.isfinite(factor), factor, 1.0)[:, None]


def stretched_by(rows: Sequence[Rows], pairs: int, width: float = 0.0) -> float:
    """By what the product of two unit rows of the instrument is divided."""
    lengths = (np.sqrt(pairs) if one.kind == "whole matrix" else np.ones(()) for one in rows)
    divided = [float(divisor_of(one.kind)(r, one.eps)) for one, r in zip(rows, lengths, strict=True)]
    return float(np.prod(divided) * (2.0 * pairs) ** -width)


def of_unit_rows(formula: Formula, similarity: Array, s: float, b: float) -> Parts:
    """The same by the similarities of unit rows, before anything becomes of those."""
    pairs = len(similarity)
    both = formula.image_rows, formula.text_rows
    divided = stretched_by(both, pairs, formula.width)
    images, texts = (ORDERS[rows.order](pairs) if rows.order else np.arange(pairs) for rows in both)
    found = of_similarity(formula, similarity[images][:, texts] / divided, s, b)
    back = np.zeros_like(similarity)
    np.add.at(back, (images[:, None], texts), found.slopes / divided)
    found.slopes = back
    return found


def of_similarity(formula: Formula, similarity: Array, s: float, b: float, equal: Array | None = None) -> Parts:
    """Value, slopes by similarities, and gradients of the scalars before a backward changes them."""
    pairs = len(similarity)
    none = np.zeros_like(similarity)
    found = Parts(0.0, none, 0.0, 0.0, 0.0, none, none, none, none, none)
    diagonal = np.eye(pairs, dtype=bool)
    logits_in = FORMATS[formula.kept.form] if formula.kept and formula.kept.what == "logits" else None
    for term in formula.terms:
        weights = total(term.weights, pairs)
        if equal is not None:
            own = weights[diagonal]
            weights = np.where(equal & ~diagonal, own.max() if term.sign < 0 and not formula.left_out else 0.0, weights)
        logits, inner, chain = _logits(term.logit, similarity, s, b, pairs)
        u = term.sign * logits
        values = np.where(weights == 0, 0.0, weights * term.function(u))
        read = u if logits_in is None else term.sign * round_to(logits, logits_in)
        by_logit = term.slope(term.sign * inner) if term.slope else term.function.slope(read) * chain
        slopes = np.where(weights == 0, 0.0, weights * by_logit) * term.sign
        _add(found, term.logit, (similarity, s, b), (values, slopes, inner, np.abs(weights)))
    for one in formula.coupled:
        logits, inner, chain = _logits(one.logit, similarity, s, b, pairs)
        value, [slopes] = value_and_slopes(lambda z, of=one: COUPLED[of.kind](z, of.number), logits)
        weight = one.weight(pairs)
        values = np.full_like(similarity, weight * value / similarity.size)
        slopes = weight * slopes * chain
        _add(found, one.logit, (similarity, s, b), (values, slopes, inner, np.full_like(inner, abs(weight))))
    for name, form in formula.extra:
        value, by_s, by_b = (form(pairs) * of_number(name, which, s, b, pairs) for which in range(3))
        found.value += value
        found.of_scale += by_s
        found.of_bias += by_b
        found.magnitude += abs(value)
    return found


def _logits(logit: Logit, similarity: Array, s: float, b: float, pairs: int) -> tuple[Array, Array, Array]:
    """Logits, what they are before the cap, and the cap's slope."""
    own = logit.own(s, b, pairs) * np.eye(pairs)
    inner = logit.scale(s, b, pairs) * logit.similarity(similarity) + logit.offset(s, b, pairs) + own
    if logit.cap.name == "identity":
        return inner, inner, np.ones_like(inner)
    return logit.cap(inner), inner, logit.cap.slope(inner)


def _add(found: Parts, logit: Logit, at: tuple[Array, float, float], each: tuple[Array, ...]) -> None:
    """One term. each : of pairs their values, slopes by the logit before its cap, that logit, sizes of weights"""
    values, slopes, inner, weights = each
    (similarity, s, b), pairs = at, len(values)
    scale = logit.scale(s, b, pairs)
    by_s, by_b = logit.scale.slopes(s, b, pairs)
    (o_s, o_b), m_s = logit.offset.slopes(s, b, pairs), logit.own.slopes(s, b, pairs)[0]
    h = logit.similarity(similarity)
    found.value += float(values.sum())
    by_similarity = slopes * scale * logit.similarity.slope(similarity)
    found.slopes = found.slopes + np.where(slopes == 0, 0.0, by_similarity)
    found.by_logit, found.logits = found.by_logit + slopes, found.logits + slopes * inner
    of_scale, of_bias = slopes * (by_s * h + o_s + m_s * np.eye(pairs)), slopes * (by_b * h + o_b)
    found.scale_pairs, found.bias_pairs = found.scale_pairs + of_scale, found.bias_pairs + of_bias
    found.of_scale += float(of_scale.sum())
    found.of_bias += float(of_bias.sum())
    reach = abs(scale) + abs(logit.offset(s, b, pairs)) + abs(logit.own(s, b, pairs)) + 1
    # what rounding of a logit moves, and what is lost where a sigmoid is near 1
    moved = np.abs(slopes) * reach + weights
    # a logarithm of a sigmoid that is nearly 1 is off by what rounds 1
    found.magnitude += float(np.abs(values).sum() + (np.abs(slopes) * reach).sum() + weights.sum())
    found.slope_magnitude = found.slope_magnitude + moved * max(abs(scale), abs(by_s), 1.0)


def _equal(equal: str, x: Array, y: Array) -> Array | None:
    if not equal:
        return None
    rows = y if equal == "texts" else x
    return (rows[:, None] == rows).all(-1)


# --- a backward that is another


def _embeddings(formula: Formula, slopes: Array, u: Array, v: Array, s: float, b: float) -> tuple[Array, Array]:
    seen = {name: slopes for name in EMBEDS}
    for rule in formula.backward:
        if rule.tensor in EMBEDS and rule.kind == "times":
            seen[rule.tensor] = seen[rule.tensor] * total(rule.rules, len(slopes)) * rule.scalar(s, b, len(slopes))
        elif rule.tensor in EMBEDS and rule.kind == "transposed":
            seen[rule.tensor] = seen[rule.tensor].T
        elif rule.tensor in EMBEDS and rule.kind == "none":
            seen[rule.tensor] = np.zeros_like(slopes)
    return seen["image_embed"] @ v, seen["text_embed"].T @ u


def _changed(formula: Formula, d_x: Array, d_y: Array, x: Array, y: Array) -> tuple[Array, Array]:
    found, rows = {"image_embed": d_x, "text_embed": d_y}, {"image_embed": x, "text_embed": y}
    for rule in formula.backward:
        if rule.kind == "exchanged":
            found = {"image_embed": found["text_embed"], "text_embed": found["image_embed"]}
        elif rule.tensor in EMBEDS and rule.kind in _ROWS:
            found[rule.tensor] = _ROWS[rule.kind](found[rule.tensor], rows[rule.tensor], rule)
    return found["image_embed"], found["text_embed"]


def _tangent(d: Array, rows: Array, rule: Backward) -> Array:
    return d - (d * rows).sum(-1, keepdims=True) * rows


def _clipped(d: Array, rows: Array, rule: Backward) -> Array:
    axis: Any = -1 if rule.kind == "rows clipped" else None
    length = np.sqrt((d * d).sum(axis, keepdims=True))
    return d * np.minimum(1, rule.number / np.maximum(length + rule.eps, 1e-300))


_ROWS: dict[str, Callable[[Array, Array, Backward], Array]] = {
    "tangent": _tangent,
    "clipped": _clipped,
    "rows clipped": _clipped,
    "rolled": lambda d, rows, rule: np.roll(d, int(rule.number), 0),
    "reversed": lambda d, rows, rule: d[::-1],
}


def _scalar(formula: Formula, name: str, parts: Parts, at: At) -> float:
    value = parts.of_scale if name == "log_scale" else parts.of_bias
    for rule in formula.backward:
        if rule.tensor == name and rule.kind == "none":
            value = 0.0
        elif rule.tensor == name and rule.kind == "times":
            matrix = parts.scale_pairs if name == "log_scale" else parts.bias_pairs
            pairs = len(matrix)
            value = float((total(rule.rules, pairs) * matrix).sum()) * rule.scalar(at.s, at.b, pairs)
        elif rule.tensor == name and rule.kind == "of":
            value = sum(at.scalar(name, part) for part in rule.parts)
    return value
