"""What a loss's gradients are instead of the derivative of its value."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.diagnosis.derive.evaluate import EMBEDS, evaluate, of_unit_rows, pieces_at
from siglip_ref.check.diagnosis.derive.fit import Entry, expression
from siglip_ref.check.diagnosis.derive.formula import ONE, Backward, Formula
from siglip_ref.check.diagnosis.derive.instrument import Reading, Subject, drawn
from siglip_ref.check.diagnosis.derive.sets import Where, describe, form_of, simple, telling_sizes, total
from siglip_ref.check.diagnosis.derive.shapes import Number, of_number
from siglip_ref.check.diagnosis.pieces import Parts, fitted, pieces_of
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

SIZES = (1, 2, 3, 4, 6, 7, 11)
_SCALES = ("exp(-s)", "exp(s)", "1/s", "s", "exp(s/2)")
_BY = ("1", "exp(-s)", "exp(s)", "s", "1/s")  # functions of the scale, by which pieces of a gradient may go
_ROUNDS = 3
_POINTS = ((1.0, -1.0), (2.2, -2.0), (0.4, 0.6), (3.0, -4.0), (1.7, 1.0), (2.7, -0.3))


def backward_of(subject: Subject, formula: Formula, more: Sequence[int] = ()) -> Formula | None:
    """The formula with what its gradients do otherwise; None where that is nothing known. more: larger batches"""
    sizes = sorted({*SIZES, *more})
    for _ in range(_ROUNDS):
        found = _backward_at(subject, formula, sizes)
        rules = [rule for one in (found.backward if found else ()) for rule in one.rules]
        unseen = telling_sizes(rules) - set(sizes)
        if found is None or not unseen:
            return found
        sizes = sorted({*sizes, *unseen})
    return None


def _backward_at(subject: Subject, formula: Formula, sizes: Sequence[int]) -> Formula | None:
    readings = list(_readings(subject, formula, sizes))
    rules: list[Backward] = []
    for name in (one for one in EMBEDS if one not in subject.frozen):
        found = _of_embedding(subject, name, readings)
        if found is None:
            whole = _of_rows(subject, formula, name)
            if whole is None:
                return None
            found = [whole] if whole.kind != "as it is" else []
        rules += found
    for name in (one for one in ("log_scale", "bias") if one not in subject.frozen):
        of_scalar = _of_scalar(subject, formula, name, readings, rules)
        if of_scalar is None:
            return None
        rules += of_scalar
    if any(rule.kind == "exchanged" for rule in rules):
        rules = [rule for rule in rules if rule.tensor not in EMBEDS] + [Backward("image_embed", "exchanged")]
    known = _radial(subject, replace(formula, backward=tuple(rules)), readings)
    data = _called(subject, formula)
    for place, name in enumerate(EMBEDS, 1):
        if name not in subject.frozen and not _gives(known, place, data, 100 * _near(subject)):
            made = _put_together(subject, formula, name, data)
            rest = tuple(rule for rule in known.backward if rule.tensor != name)
            known = replace(known, backward=(*rest, made)) if made else known
    return known


ScalarRow = tuple[int, float, float, float, float, Parts]  # B, scale, bias, what it is and what is right
Read = tuple[int, float, float, Reading, Parts]


def _readings(subject: Subject, formula: Formula, sizes: Sequence[int]) -> Iterator[Read]:
    for pairs in sizes:
        if pairs % subject.batch:
            continue
        for seed, (log_scale, bias) in enumerate(_POINTS if pairs == 6 else _POINTS[:2]):
            s, b = subject.number(subject.given(log_scale)), subject.number(bias)
            reading = subject.read(drawn(pairs, 40 + seed), s, b)
            if pairs == 1 and not np.isfinite(reading.value):  # which has no negatives to divide by their number
                continue
            with np.errstate(all="ignore"):
                yield pairs, s, b, reading, of_unit_rows(formula, reading.similarity, s, b)


def _near(subject: Subject) -> float:
    return 3e-8 if subject.noise < 1e-12 else max(300 * subject.noise, 1e-5)


def _of_embedding(subject: Subject, name: str, readings: Sequence[Read]) -> list[Backward] | None:
    """Of one embedding: weights of its slopes; nothing where it is right, None where no weights explain it."""
    near = _near(subject)
    seen = [(read, read[3].of_image if name == "image_embed" else read[3].of_text) for read in readings]
    if all(slopes is None or not np.any(slopes) for _, slopes in seen):
        return [Backward(name, "none")]
    ratios = []
    for (pairs, s, b, _, parts), slopes in seen:
        if slopes is None or not np.isfinite(slopes).all():
            return None
        size = float(np.abs(parts.slopes).max(initial=0.0))
        with np.errstate(all="ignore"):
            ratio = np.where(np.abs(parts.slopes) > 1e-3 * size, slopes / parts.slopes, np.nan)
        if (np.abs(slopes[parts.slopes == 0]) > near * size).any():
            return None
        ratios.append((pairs, s, b, ratio))
    if all(np.nanmax(np.abs(ratio - 1), initial=0.0) <= 1e3 * near for *_, ratio in ratios) and all(
        np.abs(slopes - read[4].slopes).max() <= near * np.abs(read[4].slopes).max() for read, slopes in seen
    ):
        return []
    scalar = _by_scale([(pairs, s, b, _middle(ratio)) for pairs, s, b, ratio in ratios], near)
    if scalar is None:
        return None
    divided: dict[int, Array] = {}
    for pairs, s, b, ratio in ratios:
        matrix = ratio / scalar(s, b, pairs)
        if pairs in divided:
            both = np.stack([divided[pairs], matrix])
            spread = np.abs(both[0] - both[1])
            if np.nanmax(spread, initial=0.0) > 1e3 * near * np.nanmax(np.abs(both), initial=0.0):
                return None
            matrix = np.where(np.isnan(both[0]), both[1], both[0])
        divided[pairs] = matrix
    rules = describe(divided, 1e3 * near)
    return None if rules is None else [Backward(name, "times", rules, scalar)]


def _middle(ratio: Array) -> float:
    """A number that stands for a matrix: the size of the largest of its weights; 0 is none."""
    known = np.abs(ratio[~np.isnan(ratio)])
    return float(known.max(initial=0.0)) or np.nan


def _by_scale(table: Sequence[tuple[int, float, float, float]], near: float) -> Number | None:
    """How a factor depends on the scale: not at all, or by one of a few functions."""
    main = max({pairs for pairs, *_ in table}, key=lambda n: sum(pairs == n for pairs, *_ in table))
    entries = [
        Entry(s, b, n, value, 1e3 * near * abs(value)) for n, s, b, value in table if n == main and np.isfinite(value)
    ]
    if len(entries) < 4 or np.ptp([entry.value for entry in entries]) <= 2e3 * near * max(
        abs(e.value) for e in entries
    ):
        return ONE
    found = expression(entries, _SCALES, most=1)
    if found is None or len(found.parts) != 1 or found.low > -np.inf or found.high < np.inf:
        return None
    return Number(((found.parts[0][0], 1.0),))


# --- whole gradients


Datum = tuple[Array, Array, float, float, LossAndGrads]


def _called(subject: Subject, formula: Formula) -> list[Datum]:
    """Calls at random rows, unit ones where the formula takes them as they are."""
    sides = [1.0 * (rows.kind != "as given") for rows in (formula.image_rows, formula.text_rows)]
    data = []
    for seed, pairs in enumerate((4, 5, 6, 3, 4, 7)):
        if pairs % subject.batch:
            continue
        rng = np.random.Generator(np.random.PCG64([seed, 5]))
        x, y = (rng.standard_normal((pairs, -(-16 // subject.dim) * subject.dim)) for _ in range(2))
        x, y = (
            subject.rounded(z / np.sqrt((z * z).sum(-1, keepdims=True)) * 2.0 ** (raw * rng.uniform(-1, 1, (pairs, 1))))
            for z, raw in zip((x, y), sides, strict=True)
        )
        s, b = subject.number(subject.given((1.5, 1.5, 1.5, 0.7, 2.2, 1.1)[seed])), subject.number(0.6 * seed - 1.4)
        data.append((x, y, s, b, subject.at(x, y, s, b)))
    return data


def _of_rows(subject: Subject, formula: Formula, name: str) -> Backward | None:
    """What one embedding's whole gradient is: another's, rows in other places, cut to a length, put together."""
    place = EMBEDS.index(name)
    data = _called(subject, formula)
    if any(found[1 + place] is None or np.shape(found[1 + place]) != x.shape for x, *_, found in data):
        return None
    candidates = [Backward(name, kind) for kind in ("transposed", "exchanged", "tangent", "reversed")]
    candidates += [Backward(name, "rolled", number=float(step)) for step in (1, -1)]
    candidates += [_clipping(formula, name, kind, data) for kind in ("clipped", "rows clipped")]
    for rule in candidates:
        if _gives(replace(formula, backward=(rule,)), 1 + place, data, 100 * _near(subject)):
            return rule
    return _put_together(subject, formula, name, data)


def _gives(formula: Formula, place: int, data: Sequence[Datum], near: float) -> bool:
    """Whether a formula gives one of the tensors."""
    for *given, found in data:
        made, got = evaluate(formula, *given)[place], found[place]
        got = np.zeros_like(made) if got is None else np.asarray(got)
        if np.shape(got) != np.shape(made) or not np.abs(made - got).max() <= near * np.abs(made).max():
            return False
    return True


def _put_together(
    subject: Subject, formula: Formula, name: str, data: Sequence[Datum], known: Sequence[Backward] = ()
) -> Backward | None:
    """A gradient as a sum of pieces, of those that another gradient has, or of one or two of all."""
    pieces = pieces_of(name, formula)
    place = 1 + ("image_embed", "text_embed", "log_scale", "bias").index(name)
    columns, pairs, scales, seen, raw = [], [], [], [], []
    for x, y, s, b, found in data:
        made = pieces_at(formula, name, pieces, x, y, s, b)
        got = np.zeros(len(made)) if found[place] is None else np.ravel(found[place])
        raw.append(got)
        size = max(float(np.abs(made[:, 0]).max()), 1e-300)
        columns.append(made / size)
        seen.append(got / size)
        pairs.append(np.full(len(got), float(len(x))))
        scales.append(np.array([[of_number(one, 0, s, b, len(x)) for one in _BY] for _ in got]))
    by = dict(zip(_BY, np.concatenate(scales).T, strict=True))
    near = 100 * _near(subject)
    for rule in (one for one in known if one.kind == "of" and not any(part.by or part.after for part in one.parts)):
        made = np.concatenate([pieces_at(formula, name, rule.parts, *given).sum(1) for *given, _ in data])
        sizes = np.concatenate([np.abs(pieces_at(formula, name, rule.parts, *given)).sum(1) for *given, _ in data])
        if (np.abs(made - np.concatenate(raw)) <= near * sizes).all():
            return replace(rule, tensor=name)
    parts = fitted(pieces, np.concatenate(columns), np.concatenate(pairs), by, np.concatenate(seen), near)
    return Backward(name, "of", parts=parts) if parts else None


def _clipping(formula: Formula, name: str, kind: str, data: Sequence[Datum]) -> Backward:
    """Cut to a length: where lengths differ from the right ones, right / cut = (right + eps) / length, a line."""
    axis = -1 if kind == "rows clipped" else None
    rights, cuts = [], []
    for *given, found in data:
        got = np.asarray(found[1 + EMBEDS.index(name)])
        right = evaluate(replace(formula, backward=()), *given)[1 + EMBEDS.index(name)]
        rights += list(np.ravel(np.sqrt((right * right).sum(axis))))
        cuts += list(np.ravel(np.sqrt((got * got).sum(axis))))
    lengths, quotients = np.array(rights), np.array(rights) / np.maximum(np.array(cuts), 1e-300)
    cut = quotients > 1 + 1e-4
    if cut.sum() < 2:
        return Backward(name, kind, number=np.inf)
    steep, high = np.polyfit(lengths[cut], quotients[cut], 1)
    eps = high / steep if abs(high / steep) > 1e-9 else 0.0
    return Backward(name, kind, number=simple(1 / steep, 1e-6), eps=simple(eps, 1e-3) if eps else 0.0)


def _radial(subject: Subject, formula: Formula, readings: Sequence[Read]) -> Formula:
    """Whether the part of a gradient along its row is there where it should be, and only there."""
    found = formula
    for name in EMBEDS:
        rows = formula.image_rows if name == "image_embed" else formula.text_rows
        removed = _removed(name, readings)
        if removed is None or any(rule.tensor == name and rule.kind == "none" for rule in formula.backward):
            continue
        if rows.kind == "as given" and removed:
            found = replace(found, backward=(*found.backward, Backward(name, "tangent")))
        elif rows.kind == "unit" and not removed:
            held = replace(rows, detached=True)
            found = replace(found, image_rows=held) if name == "image_embed" else replace(found, text_rows=held)
    return found


def _removed(name: str, readings: Sequence[Read]) -> bool | None:
    """Whether a gradient has no part along its rows; None where that does not show."""
    kept, without, most = 0.0, 0.0, 0.0
    for _, _, _, reading, _ in readings:
        slopes = reading.of_image if name == "image_embed" else reading.of_text
        along = reading.along_image if name == "image_embed" else reading.along_text
        if slopes is None or along is None:
            return None
        part = (slopes * reading.similarity).sum(1 if name == "image_embed" else 0)
        # images hold their part along the row itself, texts hold what was taken away
        full, gone = (part, 0 * part) if name == "image_embed" else (0 * part, -part)
        kept = max(kept, float(np.abs(along - full).max()))
        without = max(without, float(np.abs(along - gone).max()))
        most = max(most, float(np.abs(part).max()))
    if most == 0 or min(kept, without) > 1e-3 * most:
        return None
    return without < kept


# --- scale and bias


def _of_scalar(
    subject: Subject, formula: Formula, name: str, readings: Sequence[Read], known: Sequence[Backward]
) -> list[Backward] | None:
    near = max(10 * _near(subject), FORMATS[formula.scalars].unit if formula.scalars else 0.0)
    rows = []
    for pairs, s, b, reading, parts in readings:
        got = reading.scale if name == "log_scale" else reading.bias
        right = parts.of_scale if name == "log_scale" else parts.of_bias
        rows.append((pairs, s, b, 0.0 if got is None else got, right, parts))
    size = max(abs(right) for *_, right, _ in rows)
    if not all(np.isfinite(got) for _, _, _, got, _, _ in rows):
        return None
    if all(abs(got - right) <= near * (np.abs(parts.slopes).sum() + abs(right)) for *_, got, right, parts in rows):
        return []
    if all(got == 0 for _, _, _, got, _, _ in rows):
        return [Backward(name, "none")] if size else []
    telling = [row for row in rows if abs(row[4]) > 1e-3 * np.abs(row[5].slopes).sum()]
    ratios = [(pairs, s, b, got / right) for pairs, s, b, got, right, _ in telling]
    scalar = _by_scale(ratios, near) if ratios else None
    if scalar is not None:
        by_pairs: dict[int, float] = {}
        steady = True
        for pairs, s, b, ratio in ratios:
            value = ratio / scalar(s, b, pairs)
            steady &= abs(by_pairs.setdefault(pairs, value) - value) <= 1e3 * near * abs(value)
        form = form_of(by_pairs, 1e3 * near) if steady else None
        if form is not None:
            return [Backward(name, "times", ((Where(), form),), scalar)]
    found = _as_embeddings(name, rows, near, known)
    if found is None and (whole := _put_together(subject, formula, name, _called(subject, formula), known)):
        return [whole]
    return found or _masked(subject, formula, name)


def _as_embeddings(
    name: str, rows: Sequence[ScalarRow], near: float, known: Sequence[Backward]
) -> list[Backward] | None:
    """Pairs weighed as in an embedding's gradient; perhaps times a function of the scale."""
    for rule in (one for one in known if one.kind == "times"):
        shares = [
            float((total(rule.rules, n) * (parts.scale_pairs if name == "log_scale" else parts.bias_pairs)).sum())
            for n, _, _, _, _, parts in rows
        ]
        for scalar in (rule.scalar, ONE, *(Number(((one, 1.0),)) for one in _SCALES)):
            if all(
                abs(got - share * scalar(s, b, n)) <= near * (np.abs(parts.slopes).sum() + abs(got))
                for (n, s, b, got, _, parts), share in zip(rows, shares, strict=True)
            ):
                return [replace(rule, tensor=name, scalar=scalar)]
    return None


def _masked(subject: Subject, formula: Formula, name: str) -> list[Backward] | None:
    """Only some pairs' shares of a scalar's gradient, or each with a weight: one pair is moved at a time."""
    s, b = subject.number(subject.given(1.6)), subject.number(-1.0)
    found: dict[int, Array] = {}
    for pairs in (1, 2, 3, 4, 6, 7):
        if pairs % subject.batch:
            continue
        similarities = [np.zeros((pairs, pairs)) for _ in range(1 + pairs * pairs)]
        for place in range(pairs * pairs):
            similarities[1 + place].flat[place] = 0.5
        got, right = [], []
        for similarity in similarities:
            reading = subject.read(similarity, s, b)
            value = reading.scale if name == "log_scale" else reading.bias
            parts = of_unit_rows(formula, reading.similarity, s, b)
            got.append(0.0 if value is None else value)
            right.append(parts.of_scale if name == "log_scale" else parts.of_bias)
        seen, wanted = np.array(got[1:]) - got[0], np.array(right[1:]) - right[0]
        with np.errstate(all="ignore"):
            ratio = np.where(np.abs(wanted) > 1e-3 * np.abs(wanted).max(), seen / wanted, np.nan)
        found[pairs] = ratio.reshape(pairs, pairs)
    rules = describe(found, 1e-5 if subject.noise < 1e-12 else 1e-2)
    return [Backward(name, "times", rules)] if rules else None
