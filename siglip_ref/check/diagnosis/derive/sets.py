"""Sets of pairs that have a name, and matrices of weights told by them: value(B) on a set, for every B at once."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice

import numpy as np

from siglip_ref.check.diagnosis import parts
from siglip_ref.check.diagnosis.parts import Member
from siglip_ref.ops.elementary import Array

_MANY = 40  # descriptions that are compared
_LARGE = 8  # a chunk of so many pairs is larger than most batches in which weights are read


def _members() -> Iterator[tuple[str, Member]]:
    """Simplest first."""
    yield "everywhere", lambda i, j, n: i == i
    yield "diagonal", lambda i, j, n: i == j
    yield "above the diagonal", lambda i, j, n: i < j
    yield from parts.of_sides({"first {}": lambda row, n: row == 0, "last {}": lambda row, n: row == n - 1})
    yield "i + j even", lambda i, j, n: (i + j) % 2 == 0
    yield from parts.of_sides(
        {
            "even {}s": lambda row, n: row % 2 == 0,
            "first half of the {}s": lambda row, n: row < n // 2,
            "larger half of the {}s": lambda row, n: row < -(-n // 2),
        }
    )
    yield "j = i + 1", lambda i, j, n: j == i + 1
    yield "j = i - 1", lambda i, j, n: j == i - 1
    yield "j = i + 1 mod B", lambda i, j, n: j == (i + 1) % n
    yield "j = i - 1 mod B", lambda i, j, n: j == (i - 1) % n
    yield "i + j = B - 1", lambda i, j, n: i + j == n - 1
    yield "|i - j| <= 1", lambda i, j, n: abs(i - j) <= 1
    yield "same half", lambda i, j, n: (i < n // 2) == (j < n // 2)
    yield "j = i - 1, the first its own", lambda i, j, n: j == np.maximum(i - 1, 0)
    yield "i = j - 1, the first its own", lambda i, j, n: i == np.maximum(j - 1, 0)
    yield from parts.members()
    for c in (3, 4):
        for rest in range(c):
            yield f"i + j mod {c} = {rest}", partial(_sum_mod, c, rest, 1, 1)
        yield f"i + 2 j mod {c} = 0", partial(_sum_mod, c, 0, 1, 2)
        yield f"2 i + j mod {c} = 0", partial(_sum_mod, c, 0, 2, 1)


def _sum_mod(c: int, rest: int, times_i: int, times_j: int, i: Array, j: Array, n: int) -> Array:
    return (times_i * i + times_j * j) % c == rest


MEMBERS: dict[str, Member] = dict(_members())
_NAMES = ("diagonal", *(name for name in MEMBERS if name not in ("diagonal", "everywhere")))
# The same as others, for whole matrices of one B, are told by the first that fits.


@dataclass(frozen=True)
class Where:
    """All pairs that are in every one of some sets; "not " before a name: outside of it."""

    names: tuple[str, ...] = ("everywhere",)

    def __call__(self, pairs: int) -> Array:
        """A matrix of truth values, images by texts."""
        mask = np.ones((pairs, pairs), bool)
        for name in self.names:
            mask = mask & _matrix(name, pairs)
        return mask


DIAGONAL, OTHERS = Where(("diagonal",)), Where(("not diagonal",))


@lru_cache(maxsize=4096)
def _matrix(name: str, pairs: int) -> Array:
    plain = name.removeprefix("not ")
    i, j = np.ogrid[:pairs, :pairs]
    mask = np.broadcast_to(MEMBERS[plain](i, j, pairs), (pairs, pairs))
    return mask if plain == name else ~mask


# --- how a value depends on B

POWERS = (
    (0.0, 0.0), (-1.0, 0.0), (-2.0, 0.0), (1.0, 0.0), (-1.0, -1.0), (0.0, -1.0), (0.0, 1.0), (-1.0, 1.0), (-2.0, 1.0),
    (2.0, 0.0), (1.0, 1.0), (-0.5, 0.0), (0.5, 0.0), (-3.0, 0.0), (-2.0, -1.0), (1.0, -1.0), (-1.5, 0.0),
)  # fmt: skip


@dataclass(frozen=True)
class OfPairs:
    """factor * B^power * (B - 1)^less * of^to; of: one of `parts.COUNTED`, or of `parts.PARTS`, for how many rows are
    in the image's part.

    >>> OfPairs(2.0, -1.0)(4)
    0.5
    """

    factor: float = 1.0
    power: float = 0.0
    less: float = 0.0
    of: str = ""
    to: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether `of` is a number that B gives, the same for all rows."""
        return self.of in parts.COUNTED

    def __call__(self, pairs: int) -> float:
        """Its value at B pairs; what is divided by B - 1 is divided by 1 at least."""
        less = max(float(pairs) - 1, 1.0 if self.less < 0 else 0.0)
        counted = float(parts.COUNTED[self.of](pairs)) if self.counts else 1.0
        times = (counted**self.to if counted or self.to >= 0 else 0.0) if self.to else 1.0
        return float(self.factor * float(pairs) ** self.power * less**self.less * times)

    def on(self, pairs: int) -> Array:
        """Its value on each pair, or one for all."""
        own = parts.of_own(self.of, pairs) ** self.to if self.of in parts.PARTS else 1.0
        return np.asarray(self(pairs) * own)


def form_of(values: Mapping[int, float], near: float) -> OfPairs | None:
    """The simplest form that gives these values by B. near : relative error allowed"""
    known = {n: v for n, v in values.items() if n > 1} or dict(values)
    if not known:
        return None
    if all(v == 0 for v in known.values()):
        return OfPairs(0.0) if not values.get(1) else None
    for power, less in POWERS if len(known) > 1 else POWERS[1:2]:
        factors = np.array([v / OfPairs(1.0, power, less)(n) for n, v in known.items()])
        middle = float(np.median(factors))
        if middle and np.abs(factors / middle - 1).max() <= near:
            if 1 in values and abs(values[1] - OfPairs(middle, power, less)(1)) > near * abs(middle):
                continue
            return OfPairs(simple(middle, near), power, less)
    return _counted(values, near) if len(known) > 3 else None


_BASES = tuple(
    (power, of, to)
    for power, to in ((0.0, 1.0), (-1.0, 1.0), (0.0, -1.0), (-1.0, -1.0), (1.0, -1.0), (-2.0, 1.0))
    for of in parts.COUNTED
)


@lru_cache(maxsize=64)
def _bases(sizes: tuple[int, ...]) -> Array:
    return np.array([[OfPairs(1.0, power, 0.0, of, to)(n) for n in sizes] for power, of, to in _BASES])


def _counted(values: Mapping[int, float], near: float) -> OfPairs | None:
    """Of numbers that chunks give."""
    bases, wanted = _bases(tuple(values)), np.array([*values.values()])
    factors = (bases @ wanted) / np.maximum((bases * bases).sum(1), 1e-300)
    off = np.abs(factors[:, None] * bases - wanted).max(1)
    for place in np.flatnonzero((off <= near * np.abs(wanted).max()) & (factors != 0)):
        power, of, to = _BASES[place]
        return OfPairs(simple(float(factors[place]), near), power, 0.0, of, to)
    return None


_SPECIAL = (np.log(2), 1 / np.log(2), np.sqrt(2), 1 / np.sqrt(2), np.pi, 1 / 0.07, np.log(10), 1 / np.pi)


def simple(value: float, near: float) -> float:
    """The simplest number within a relative error: whole, a fraction, a decimal of few digits; else its ten digits.

    >>> simple(0.33333333334, 1e-9), simple(0.05000000001, 1e-9)
    (0.3333333333333333, 0.05)
    """
    if not np.isfinite(value) or value == 0:
        return value
    near = max(near, 1e-12)
    for candidate in _simple(value):
        if abs(candidate / value - 1) <= near:
            return float(candidate)
    return float(f"{value:.10g}")


def _simple(value: float) -> Iterator[float]:
    yield float(round(value)) or np.nan
    if abs(value) > 1e-3:
        for below in range(2, 21):
            yield round(value * below) / below or np.nan
    for digits in (1, 2, 3, 4):
        yield float(f"{value:.{digits}g}")
    for special in _SPECIAL:
        for times in (1, 2, 0.5):
            yield np.copysign(special * times, value)


# --- matrices told by sets


Rule = tuple[Where, OfPairs]


def total(rules: Sequence[Rule], pairs: int) -> Array:
    """The matrix that rules stand for."""
    return sum((value.on(pairs) * where(pairs) for where, value in rules), np.zeros((pairs, pairs)))


def telling_sizes(rules: Iterable[Rule]) -> set[int]:
    """Numbers of pairs at which chunks of one size are told from chunks of another."""
    found: set[int] = set()
    for where, form in rules:
        for chunk in (int(word) for name in (*where.names, form.of) for word in re.findall(r"\d+", name)):
            if chunk >= _LARGE:
                found |= {chunk - 1, chunk + 1, 3 * chunk // 2 + 1, 2 * chunk, 2 * chunk + 1}
    return found


def describe(matrices: Mapping[int, Array], near: float, most: int = 2) -> tuple[Rule, ...] | None:
    """The fewest rules that give these matrices by B; None where no two sets do.

    Parameters
    ----------
    matrices : by B; an element that is not a number is not known
    near : error allowed, relative to the largest element
    most : sets that are taken together
    """
    order = sorted(matrices, key=lambda n: (n < 4, n))  # small ones are quick, the smallest tell little
    names = [name for name in MEMBERS]
    singles = [name for name in names if _split(matrices, order, (Where((name,)), Where((f"not {name}",))), near)]
    for name in singles:
        rules = _rules(matrices, (Where((name,)), Where((f"not {name}",))), near)
        if rules is not None:
            return rules
    if most < 2:
        return None
    best: tuple[Rule, ...] | None = None
    for first, second in islice(_likely(matrices, order, near), _MANY):
        yes, no = (first,), (f"not {first}",)
        for chosen in (
            (Where(yes), Where((*no, second)), Where((*no, f"not {second}"))),
            (
                Where((*yes, second)),
                Where((*yes, f"not {second}")),
                Where((*no, second)),
                Where((*no, f"not {second}")),
            ),
        ):
            if _split(matrices, order, chosen, near):
                rules = _rules(matrices, chosen, near)
                if rules is not None and (best is None or len(rules) < len(best)):
                    best = rules
    return best or _beside_diagonal(matrices, near) or _by_own(matrices, near)


def _by_own(matrices: Mapping[int, Array], near: float) -> tuple[Rule, ...] | None:
    """A mean over each part: one set, whose values go by how many rows are in the image's part."""
    top = max(float(np.nanmax(np.abs(matrix), initial=0.0)) for matrix in matrices.values())
    found = {n: np.where(np.isnan(m), np.nan, np.abs(m) > near * top) for n, m in matrices.items()}
    if all(len(np.unique(m[(m != 0) & ~np.isnan(m)])) < 2 for m in matrices.values()):
        return None
    support = describe(found, near)
    if support is None or any(form != OfPairs() for _, form in support):
        return None
    inside = {n: total(support, n) * ~np.isnan(m) > 0 for n, m in matrices.items()}
    for words in parts.PARTS:
        values = {}
        for n, m in matrices.items():
            seen = (m * parts.of_own(words, n))[inside[n]]
            if seen.size:
                values[n] = float(np.median(seen)) if np.ptp(seen) <= 100 * near * np.abs(seen).max() else np.nan
        form = None if np.isnan([*values.values()]).any() else form_of(values, 100 * near)
        if form is not None and not form.of:
            return tuple((where, replace(form, of=words, to=-1.0)) for where, _ in support)
    return None


def _beside_diagonal(matrices: Mapping[int, Array], near: float) -> tuple[Rule, ...] | None:
    """The diagonal's value, and the others by two sets."""
    eyes = {n: np.eye(n, dtype=bool) for n in matrices}
    if all(np.isnan(matrix[eyes[n]]).all() for n, matrix in matrices.items()):
        return None
    own = _rules(matrices, (DIAGONAL,), near) if _split(matrices, list(matrices), (DIAGONAL,), near) else None
    if own is None:
        return None
    rest = describe({n: np.where(eyes[n], np.nan, matrix) for n, matrix in matrices.items() if n > 1}, near)
    return None if rest is None else (*own, *((Where((*OTHERS.names, *where.names)), form) for where, form in rest))


def _likely(matrices: Mapping[int, Array], order: Sequence[int], near: float) -> Iterator[tuple[str, str]]:
    """Pairs of sets of whose four parts each holds one value at every B, those with the diagonal first."""
    fits = np.ones((len(_NAMES), len(_NAMES)), bool)
    for n in (one for one in order if one > 3):
        values = matrices[n].ravel()
        known = ~np.isnan(values)
        allowed = near * max(float(np.abs(values[known]).max(initial=0.0)), 1e-300)
        ranked = np.sort(values[known])
        starts = ranked[np.r_[True, np.diff(ranked) > allowed]] if ranked.size else ranked
        if len(starts) > 4:
            return
        masks = _stacked(n)[:, known]
        kinds = np.zeros((4, len(_NAMES), len(_NAMES)), int)
        for inside in np.searchsorted(starts, values[known], "right")[None] == 1 + np.arange(len(starts))[:, None]:
            both = masks @ (masks * inside).T  # how many of one value are in both sets
            one = (masks * inside).sum(1)
            kinds += np.stack([both, one[:, None] - both, one - both, inside.sum() - one[:, None] - one + both]) > 0
        fits &= (kinds <= 1).all(0)
    for place, other in np.argwhere(fits):
        if place != other:
            yield _NAMES[place], _NAMES[other]


@lru_cache(maxsize=12)
def _stacked(pairs: int) -> Array:
    return np.stack([_matrix(name, pairs).ravel() for name in _NAMES]).astype(np.float32)


def _split(matrices: Mapping[int, Array], order: Sequence[int], parts: Sequence[Where], near: float) -> bool:
    """Whether each part holds one value at every B."""
    for n in order:
        matrix = matrices[n]
        allowed = near * max(float(np.nanmax(np.abs(matrix), initial=0.0)), 1e-300)
        for part in parts:
            inside = matrix[part(n)]
            inside = inside[~np.isnan(inside)]
            if inside.size and np.ptp(inside) > allowed:
                return False
    return True


def _rules(matrices: Mapping[int, Array], parts: Sequence[Where], near: float) -> tuple[Rule, ...] | None:
    rules = []
    for part in parts:
        values = {}
        for n, matrix in matrices.items():
            inside = matrix[part(n)]
            inside = inside[~np.isnan(inside)]
            if inside.size:
                top = float(np.nanmax(np.abs(matrix)))
                value = float(np.median(inside))
                values[n] = 0.0 if abs(value) <= near * top else value
        form = form_of(values, max(near, 1e-9) * 10) if values else OfPairs(0.0)
        forms = (form,) if form is not None else _of_two(values, max(near, 1e-9) * 10)
        if not forms:
            return None
        rules += [(part, one) for one in forms if one.factor != 0]
    return joined(rules)


_TWO = ((-1.0, -2.0), (0.0, -1.0), (0.0, -2.0), (-1.0, 1.0))


def _of_two(values: Mapping[int, float], near: float) -> tuple[OfPairs, ...]:
    """A sum of two powers of B; nothing where none of these is it."""
    sizes, wanted = np.array([*values], np.float64), np.array([*values.values()])
    for powers in _TWO if len(values) > 3 else ():
        bases = np.stack([sizes**power for power in powers], -1)
        factors = (
            np.linalg.lstsq(bases / wanted[:, None], np.ones(len(wanted)), rcond=None)[0] if wanted.all() else None
        )
        if factors is not None and np.abs(bases @ factors / wanted - 1).max() <= near:
            return tuple(OfPairs(simple(float(f), 1e-5), power) for f, power in zip(factors, powers, strict=True))
    return ()


def joined(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Two parts with one value are one where together they are a set that has a name."""
    if len(rules) == 2 and rules[0][1] == rules[1][1]:
        one, other = rules[0][0].names, rules[1][0].names
        if len(one) == len(other) == 1 and (one[0] == f"not {other[0]}" or other[0] == f"not {one[0]}"):
            return ((Where(), rules[0][1]),)
    return tuple(rules)
