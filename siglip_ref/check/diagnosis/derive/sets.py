"""Sets of pairs that have a name, and matrices of weights told by them: value(B) on a set, for every B at once."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from siglip_ref.ops.elementary import Array

Member = Callable[[Array, Array, int], Array]  # of row (image), column (text) and B

_CHUNKS = (2, 3, 4, 5, 8, 16, 32, 64)
_LARGE = 8  # a chunk of so many pairs is larger than most batches in which weights are read


def _members() -> Iterator[tuple[str, Member]]:
    """Simplest first."""
    yield "everywhere", lambda i, j, n: (i == i) & (j == j)
    yield "diagonal", lambda i, j, n: i == j
    yield "above the diagonal", lambda i, j, n: i < j
    yield "first image", lambda i, j, n: (i == 0) & (j == j)
    yield "last image", lambda i, j, n: (i == n - 1) & (j == j)
    yield "first text", lambda i, j, n: (j == 0) & (i == i)
    yield "last text", lambda i, j, n: (j == n - 1) & (i == i)
    yield "i + j even", lambda i, j, n: (i + j) % 2 == 0
    yield "even images", lambda i, j, n: (i % 2 == 0) & (j == j)
    yield "even texts", lambda i, j, n: (j % 2 == 0) & (i == i)
    yield "first half of the images", lambda i, j, n: (i < n // 2) & (j == j)
    yield "first half of the texts", lambda i, j, n: (j < n // 2) & (i == i)
    yield "larger half of the images", lambda i, j, n: (i < -(-n // 2)) & (j == j)
    yield "larger half of the texts", lambda i, j, n: (j < -(-n // 2)) & (i == i)
    yield "j = i + 1", lambda i, j, n: j == i + 1
    yield "j = i - 1", lambda i, j, n: j == i - 1
    yield "j = i + 1 mod B", lambda i, j, n: j == (i + 1) % n
    yield "j = i - 1 mod B", lambda i, j, n: j == (i - 1) % n
    yield "i + j = B - 1", lambda i, j, n: i + j == n - 1
    yield "|i - j| <= 1", lambda i, j, n: abs(i - j) <= 1
    yield "same half", lambda i, j, n: (i < n // 2) == (j < n // 2)
    yield "j = i - 1, the first its own", lambda i, j, n: j == np.maximum(i - 1, 0)
    yield "i = j - 1, the first its own", lambda i, j, n: i == np.maximum(j - 1, 0)
    for c in _CHUNKS:
        yield from _of_chunks(c)
    for c in (3, 4):
        for rest in range(c):
            yield f"i + j mod {c} = {rest}", partial(_sum_mod, c, rest, 1, 1)
    for c in (3, 4):
        yield f"i + 2 j mod {c} = 0", partial(_sum_mod, c, 0, 1, 2)
        yield f"2 i + j mod {c} = 0", partial(_sum_mod, c, 0, 2, 1)


def _sum_mod(c: int, rest: int, times_i: int, times_j: int, i: Array, j: Array, n: int) -> Array:
    return (times_i * i + times_j * j) % c == rest


def _of_chunks(c: int) -> Iterator[tuple[str, Member]]:
    """Sets that have to do with chunks of c."""
    yield f"chunks of {c}", lambda i, j, n: i // c == j // c
    yield f"j mod {c} = i", lambda i, j, n: i == j % c
    yield f"i mod {c} = j", lambda i, j, n: j == i % c
    yield f"i = j mod {c}", lambda i, j, n: (i - j) % c == 0
    yield f"images of whole chunks of {c}", lambda i, j, n: (i < n // c * c) & (j == j)
    yield f"texts of whole chunks of {c}", lambda i, j, n: (j < n // c * c) & (i == i)
    yield f"images of whole chunks of {c}, or all", lambda i, j, n: (i < (n // c * c or n)) & (j == j)
    yield f"texts of whole chunks of {c}, or all", lambda i, j, n: (j < (n // c * c or n)) & (i == i)
    yield f"first {c} images", lambda i, j, n: (i < c) & (j == j)
    yield f"first {c} texts", lambda i, j, n: (j < c) & (i == i)


MEMBERS: dict[str, Member] = dict(_members())
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
    """factor * B^power * (B - 1)^less.

    >>> OfPairs(2.0, -1.0)(4)
    0.5
    """

    factor: float = 1.0
    power: float = 0.0
    less: float = 0.0

    def __call__(self, pairs: int) -> float:
        """Its value at B pairs; what is divided by B - 1 is divided by 1 at least."""
        less = max(float(pairs) - 1, 1.0 if self.less < 0 else 0.0)
        return float(self.factor * float(pairs) ** self.power * less**self.less)


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
    return sum((value(pairs) * where(pairs) for where, value in rules), np.zeros((pairs, pairs)))


def telling_sizes(rules: Iterable[Rule]) -> set[int]:
    """Numbers of pairs at which chunks of one size are told from chunks of another."""
    found: set[int] = set()
    for where, _ in rules:
        for chunk in (int(word) for name in where.names for word in re.findall(r"\d+", name)):
            if chunk >= _LARGE:
                found |= {chunk - 1, chunk + 1, 3 * chunk // 2 + 1, 2 * chunk + 1}
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
    for first in ("diagonal", *(name for name in names if name != "diagonal")):
        for second in names:
            if second in (first, "everywhere") or first == "everywhere":
                continue
            yes, no = (first,), (f"not {first}",)
            for parts in (
                (Where(yes), Where((*no, second)), Where((*no, f"not {second}"))),
                (
                    Where((*yes, second)),
                    Where((*yes, f"not {second}")),
                    Where((*no, second)),
                    Where((*no, f"not {second}")),
                ),
            ):
                if _split(matrices, order, parts, near):
                    rules = _rules(matrices, parts, near)
                    if rules is not None:
                        return rules
    return None


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
        if form is None:
            return None
        if form.factor != 0:
            rules.append((part, form))
    return joined(rules)


def joined(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Two parts with one value are one where together they are a set that has a name."""
    if len(rules) == 2 and rules[0][1] == rules[1][1]:
        one, other = rules[0][0].names, rules[1][0].names
        if len(one) == len(other) == 1 and (one[0] == f"not {other[0]}" or other[0] == f"not {one[0]}"):
            return ((Where(), rules[0][1]),)
    return tuple(rules)
