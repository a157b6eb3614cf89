"""What is added to a loss and knows nothing of the scale: similarities, distances and lengths of rows by themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.check.diagnosis.derive.sets import OfPairs, simple
from siglip_ref.check.diagnosis.functions.recorded import Recorded, value_and_slopes
from siglip_ref.check.diagnosis.functions.written import written
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

Penalty = tuple[float, Array, Array]  # value, and its gradients
Of = Callable[[Recorded, Recorded], Recorded]
Named = tuple[str, OfPairs]
_NO_SCALE = -40.0  # the logarithm of one that is as good as 0
_PARTS = ("similarity", "similarity^2", "max(0, similarity)^2")


def _of_similarity(words: str, own: bool, other: bool) -> Of:
    of = written(words, "similarity")

    def penalty(x: Recorded, y: Recorded) -> Recorded:
        eye = np.eye(len(x), dtype=bool)
        return (x @ y.T).each(of) * ((eye & own) | (~eye & other))

    return penalty


def _within(of: Of, side: int) -> Of:
    """Of the rows of one side with each other."""
    return lambda *rows: of(rows[side], rows[side])


PENALTIES: Mapping[str, Of] = {
    **{f"{words} over own pairs": _of_similarity(words, True, False) for words in _PARTS},
    **{f"{words} over all pairs": _of_similarity(words, True, True) for words in _PARTS},
    **{f"{words} over other pairs": _of_similarity(words, False, True) for words in _PARTS},
    "|x - y|^2 over own pairs": lambda x, y: (x - y) * (x - y),
    **{
        f"{words} of {name} with {whom}": _within(_of_similarity(words, all, True), side)
        for words in _PARTS
        for side, name in enumerate(("images", "texts"))
        for all, whom in ((False, f"other {name}"), (True, f"all {name}"))
    },
    **{f"squared lengths of {name}": _within(_of_similarity("similarity", True, False), side)
       for side, name in enumerate(("images", "texts"))},
}  # fmt: skip


def added(penalties: Sequence[Named], x: Array, y: Array) -> Penalty:
    """All of them together."""
    value, d_x, d_y = 0.0, np.zeros_like(x), np.zeros_like(y)
    for name, form in penalties:
        one, [by_x, by_y] = value_and_slopes(PENALTIES[name], x, y)
        value, d_x, d_y = value + form(len(x)) * one, d_x + form(len(x)) * by_x, d_y + form(len(x)) * by_y
    return value, d_x, d_y


def penalties_of(subject: Subject) -> tuple[Named, ...]:
    """One or two that give the gradients which are left where the scale is 0; none where nothing known does."""
    if subject.frozen:
        return ()
    s = 0.0 if subject.linear else subject.number(_NO_SCALE)
    columns, seen, values = [], [], []
    ways = list(product(PENALTIES, (-1.0, 0.0, -2.0)))
    for seed, pairs in enumerate((4, 4, 5, 6)):
        if pairs % subject.batch:
            return ()
        rng = np.random.Generator(np.random.PCG64([seed, 51]))
        x, y = (rng.standard_normal((pairs, -(-16 // subject.dim) * subject.dim)) for _ in range(2))
        x, y = (z / np.sqrt((z * z).sum(-1, keepdims=True)) * rng.uniform(0.7, 1.4, (pairs, 1)) for z in (x, y))
        x, y = subject.rounded(x), subject.rounded(y)
        found = subject.at(x, y, s, subject.number(-1.0 if seed < 2 else 0.6))  # nothing of it goes with a bias
        sides = zip(found[1:3], (x, y), strict=True)
        got = np.concatenate([np.zeros(z.size) if d is None else np.ravel(d) for d, z in sides])
        if not 1e-9 <= np.abs(got).max() < 1e3:  # nothing is left, or the scale divides
            return ()
        each = {name: np.ravel(value_and_slopes(PENALTIES[name], x, y)[1]) for name in PENALTIES}
        columns.append(np.stack([each[name] * float(pairs) ** power for name, power in ways], -1))
        seen.append(got)
        values.append((x, y, float(found.loss)))
    table, wanted = np.concatenate(columns), np.concatenate(seen)
    near = max(1e-8, 1e3 * subject.noise) * np.abs(wanted).max()
    for count in (1, 2):
        for chosen in combinations(range(len(ways)), count):
            some = table[:, list(chosen)]
            factors = np.linalg.lstsq(some, wanted, rcond=1e-11)[0]
            if np.abs(some @ factors - wanted).max() <= near:
                chosen_ways = zip((ways[k] for k in chosen), factors, strict=True)
                known = tuple((name, OfPairs(simple(float(f), 1e-6), power)) for (name, power), f in chosen_ways)
                # the value must have it, too, not the gradients alone
                one, other = (value - added(known, x, y)[0] for x, y, value in values[:2])
                return known if abs(one - other) <= 1e-6 * abs(one) else ()
    return ()


def less_penalties(subject: Subject, penalties: Sequence[Named]) -> Subject:
    """The loss less what is added to it."""

    def call(x: Array, y: Array, s: float, b: float) -> LossAndGrads:
        found = subject.call(x, y, s, b)
        less = added(penalties, x, y)
        d_x, d_y = (None if d is None else np.asarray(d) - off for d, off in zip(found[1:3], less[1:], strict=True))
        return LossAndGrads(np.asarray(found.loss) - less[0], d_x, d_y, *found[3:])

    return replace(subject, call=call) if penalties else subject
