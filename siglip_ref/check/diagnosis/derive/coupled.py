"""Parts of a loss that whole rows or columns of logits share: softmax, the hardest negatives, margins between pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.diagnosis.derive.formula import NOTHING, Coupled, Logit
from siglip_ref.check.diagnosis.derive.instrument import Subject, drawn
from siglip_ref.check.diagnosis.derive.sets import OfPairs, form_of, simple
from siglip_ref.check.diagnosis.derive.shapes import Number
from siglip_ref.check.diagnosis.functions.recorded import Recorded
from siglip_ref.check.diagnosis.functions.shared import HELD, SHARED, Function, log_sum_exp, negatives, others, turned
from siglip_ref.check.diagnosis.functions.written import above
from siglip_ref.ops.elementary import Array, softplus


def _others(z: Recorded) -> Array:
    return 1 - np.eye(len(z))


def _count_of(number: float, pairs: int) -> int:
    """Below 1: that share of B, and below 0 of B - 1, rounded down, at least one."""
    return int(number) if number >= 1 else max(1, int((pairs - (number < 0)) * abs(number)))


def _hardest(z: Recorded, number: float) -> Recorded:
    """softplus of the `number` largest negatives of each row."""
    order = np.argsort(-others(z.value), 1, kind="stable")[:, : _count_of(number, len(z))]
    chosen = np.zeros(z.value.shape)
    np.put_along_axis(chosen, order, 1, 1)
    return negatives(lambda logits: chosen)(z).sum()


def _above_median(logits: Array) -> Array:
    """Not below the (lower) median of their row, the diagonal counting as lowest."""
    masked = others(logits)
    return masked >= np.sort(masked, 1)[:, [(len(logits) - 1) // 2]]


def _above_own(logits: Array) -> Array:
    return logits > np.diagonal(logits)[:, None]


_ROWS: dict[str, Function] = {
    "softmax": lambda z, number: (log_sum_exp(z) - z.own).sum(),
    # the diagonal left out of the sum, as in decoupled contrastive losses
    "softmax of the others": lambda z, number: (log_sum_exp(z, _others(z)) - z.own).sum(),
    "hardest": _hardest,
    "above the median": lambda z, number: negatives(_above_median)(z).sum(),
    "above own": lambda z, number: negatives(_above_own)(z).sum(),
    "number above own": lambda z, number: z.held.each(_above_own).sum(),
    # max(0, number + negative - positive), of the hardest negative of each row, or of all
    "triplet": lambda z, number: ((z + others(0 * z.value)).largest(1) - z.own + number).each(above).sum(),
    "all triplets": lambda z, number: ((z - z.own + number).each(above) * _others(z)).sum(),
}
COUPLED: dict[str, Function] = (
    {f"{name}, rows": function for name, function in _ROWS.items()}
    | {f"{name}, columns": turned(function) for name, function in _ROWS.items()}
    | {
        "positives": lambda z, number: (z * -1).each(softplus).own.sum(),
        "negatives": lambda z, number: negatives(np.ones_like)(z).sum(),
        "all logits": lambda z, number: z.sum(),
        "diagonal logits": lambda z, number: z.own.sum(),
    }
    | SHARED
)


# --- the search

_TOGETHER = tuple(
    [(f"{name}, {side}", 0.0) for name in ("above own", "number above own")] for side in ("rows", "columns")
)


_OF_SHARED = tuple((name, 0.0) for name in SHARED if HELD not in name)
_BOTH = tuple(
    [(name, 0.0), (other, 0.0)]
    for name in SHARED
    if HELD not in name and (other := name.replace("row", "column")) in SHARED and other != name
)
_PLAIN = 4  # logits of the usual scales, of which all of them are tried
_RANDOM = 36  # sets of similarities, scales and biases; more than there are functions
_SUMS = ("positives", "negatives", "all logits", "diagonal logits", "softmax, rows", "softmax, columns",
         "softmax of the others, rows", "softmax of the others, columns")  # fmt: skip
_HARDEST = (1.0, 0.5, -0.5, 2.0, 3.0, 0.25, -0.25)
_SINGLE = (
    *(("hardest, rows", n) for n in _HARDEST),
    *(("hardest, columns", n) for n in _HARDEST),
    ("above the median, rows", 0.0),
    ("above the median, columns", 0.0),
    *((name, m) for m in (0.2, 1.0, 0.1, 0.5) for name in ("triplet, rows", "triplet, columns")),
    *((name, m) for m in (0.2, 1.0, 0.1, 0.5) for name in ("all triplets, rows", "all triplets, columns")),
)


def coupled(subject: Subject, pairs: int) -> tuple[Coupled, ...] | None:
    """Parts that rows or columns share, with their weights at every B; None where the known ones do not give the value.

    The value is a sum of multiples of these functions: least squares over random similarities say which.
    """
    data = _data(subject, pairs, _RANDOM)
    for place, logit in enumerate(_logits(subject, pairs)):
        sums = [_columns_of(one, logit, [(name, 0.0) for name in _SUMS]) for one in data]
        singles = () if logit.own.parts else _SINGLE if place > _PLAIN else (*_SINGLE, *_OF_SHARED)
        both = _BOTH if place <= _PLAIN and not logit.own.parts else ()
        for more in ([], *([one] for one in singles), *_TOGETHER, *both):
            names = [(name, 0.0) for name in _SUMS] + more
            columns = [[*known, *_columns_of(one, logit, more)] for known, one in zip(sums, data, strict=True)]
            factors = _factors(subject, data, logit, names, columns)
            if factors is None:
                continue
            chosen = [name for name, factor in zip(names, factors, strict=True) if factor != 0]
            weights = _weights(subject, logit, chosen, pairs)
            if weights is not None:
                return tuple(Coupled(n, w, logit, m) for (n, m), w in zip(chosen, weights, strict=True))
    return None


Datum = tuple[Array, float, float, float]  # similarities, scale, bias, value


def _data(subject: Subject, pairs: int, count: int) -> list[Datum]:
    found = []
    for seed in range(count):
        rng = np.random.Generator(np.random.PCG64([pairs, seed, 77]))
        similarity = drawn(pairs, seed)
        s = subject.number(subject.given(float(rng.uniform(0.5, 3.0))))
        b = subject.number(float(rng.uniform(-4, 2)))
        found.append((similarity, s, b, subject.value(similarity, s, b)))
    return found


def _logits(subject: Subject, pairs: int) -> Iterator[Logit]:
    functions = (("exp(s)", 1.0), ("s", 1.0), ("exp(2 s)", 1.0), ("s^2", 1.0), ("exp(-s)", 1.0), ("1/s", 1.0))
    for scale in (*functions, *(("1", factor) for factor in (1 / 0.07, 1.0, 10.0, 20.0, 100.0))):
        plain = Logit(Number((scale,)), NOTHING)
        yield plain
        yield replace(plain, offset=Number((("b", 1.0),)))
        own = _own(subject, pairs, scale)
        if own is not None:
            yield replace(plain, own=own)


def _own(subject: Subject, pairs: int, scale: tuple[str, float]) -> Number | None:
    """What a softmax adds to the logits of own pairs alone, a number or a multiple of the scale; None: nothing.

    Where own pairs are far below the others, the value is a multiple of log(B - 1) - logit.
    """
    found = []
    for log_scale in (5.0, 4.6):
        s = subject.number(subject.given(log_scale))
        steep = Number((scale,))(s, 0.0, pairs)
        low, high = (np.float64(subject.value(place * np.eye(pairs), s, 0.0)) for place in (-0.875, -0.5))
        with np.errstate(all="ignore"):
            own = np.log(pairs - 1) + 0.875 * steep - low * 0.375 * steep / (low - high)
        found.append((own, own / steep))
    near = 1e-7 if subject.noise < 1e-12 else 1e-3
    for name, (one, other) in zip(("1", scale[0]), zip(*found, strict=True), strict=True):
        if np.isfinite(one) and abs(one) > near and abs(one - other) <= near * abs(one):
            return Number(((name, simple(one, near)),))
    return None


def _factors(
    subject: Subject,
    data: Sequence[Datum],
    logit: Logit,
    names: Sequence[tuple[str, float]],
    known: Sequence[Sequence[float]] = (),
) -> list[float] | None:
    """By how much each function counts; None where they do not give every value. What is not needed is zero."""
    values = np.array([value for _, _, _, value in data])
    columns = np.array(known or [_columns_of(one, logit, names) for one in data])
    if not (np.isfinite(columns).all() and np.isfinite(values).all()):
        return None
    allowed = 100 * subject.noise * np.abs(values).max() + 1e-9 * np.abs(values)
    chosen = list(range(len(names)))
    if not _explained(columns, values, allowed, chosen):
        return None
    for place in reversed(range(len(names))):  # as few as will do
        fewer = [k for k in chosen if k != place]
        if fewer and _explained(columns, values, allowed, fewer):
            chosen = fewer
    solution = np.linalg.lstsq(columns[:, chosen], values, rcond=1e-11)[0]
    found = np.zeros(len(names))
    found[chosen] = solution
    return [float(one) for one in found]


def _columns_of(datum: Datum, logit: Logit, names: Sequence[tuple[str, float]]) -> list[float]:
    similarity, s, b, _ = datum
    pairs = len(similarity)
    z = logit.scale(s, b, pairs) * similarity + logit.offset(s, b, pairs) + logit.own(s, b, pairs) * np.eye(pairs)
    return [float(COUPLED[name](Recorded(z), number).value.sum()) for name, number in names]


def _explained(columns: Array, values: Array, allowed: Array, chosen: Sequence[int]) -> bool:
    some = columns[:, list(chosen)]
    solution = np.linalg.lstsq(some, values, rcond=1e-11)[0]
    return bool((np.abs(some @ solution - values) <= allowed).all())


def _weights(subject: Subject, logit: Logit, names: Sequence[tuple[str, float]], main: int) -> list[OfPairs] | None:
    """Each function's factor by B."""
    by_pairs: list[dict[int, float]] = [{} for _ in names]
    for pairs in (main, 3, 4, 5, 2, 9):
        data = _data(subject, pairs, 2 * len(names) + 2)
        factors = _factors(subject, data, logit, names)
        if pairs == 2 and (not factors or 0 in factors):  # where several functions are one
            continue
        if factors is None:
            return None
        for known, factor in zip(by_pairs, factors, strict=True):
            if factor:
                known[pairs] = factor
    forms = [form_of(known, 1e-7 if subject.noise < 1e-12 else 1e-3) for known in by_pairs]
    return None if None in forms else [form for form in forms if form is not None]
