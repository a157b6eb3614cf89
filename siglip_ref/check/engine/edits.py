"""Which change of the specification another program is: tried one by one, pairs where no single one fits.

A change is an entry of the catalogue, or an edit that the grammar made: both are tried by the same search.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol, TypeVar

import numpy as np

from siglip_ref.mistakes.grammar.scope import FREE, ROWS
from siglip_ref.mistakes.grammar.switched import Single
from siglip_ref.ops.elementary import Array


class Change(Protocol):
    """One change of the specification."""

    @property
    def place(self) -> Hashable:
        """Where it is made: two of one place do not go together."""

    @property
    def drops(self) -> bool:
        """Whether it only leaves something out."""

    @property
    def rank(self) -> tuple[int, int]:
        """The plainest of those that are alike is told: the lowest."""


C = TypeVar("C", bound=Change)
S = TypeVar("S")  # what a program is looked at through: a reference, or what gives its numbers
T = TypeVar("T")
Changes = tuple[C, ...]
Program = Callable[[Changes[C]], AbstractContextManager[S]]  # the specification with changes made in it
Screen = Callable[[S], Sequence[float]]  # how far off each tensor is, in what is allowed
Numbers = Callable[[S], Array]
Edits = tuple[Any, ...]  # of changes that can be said, as `Single` can: now, was

_STEPS, _BESIDE = 8, 1e-5  # towards a factor that is not known, and from where its slope is taken
_FALLS = 0.8  # of the squares that are left, after the first step towards a factor: else it is not this one
FITS = 1.0  # of what is allowed
NEAR = 4.0  # times what the best leaves: what leaves more is another program
_ALIKE = 1e-9  # of float64
_MOST = 0.4  # of the way, on the logarithm's scale: what the larger of two mistakes explains
_PARTIAL = 12  # of pairs: one of the two is among the best so many


@dataclass(frozen=True)
class Fitted:
    """Edits that give a program's numbers. alike : others that give the very same; rivals : others that fit as well and
    give other numbers, so that none of them is known to be the program's."""

    edits: Edits
    alike: tuple[Edits, ...] = ()
    rivals: tuple[Edits, ...] = ()

    @property
    def certain(self) -> bool:
        return not self.rivals


def search(
    offers: Sequence[Single],
    program: Program[Any, S],
    screen: Screen[S],
    whole: Screen[S],
    numbers: Numbers[S],
    rest: Numbers[S],
    pairs: bool = True,
    others: Sequence[Any] = (),
    alike: float = _ALIKE,
) -> Fitted | None:
    """The edits of the grammar that explain everything.

    Parameters
    ----------
    offers, program, screen, whole, pairs : as in `fitting`
    numbers : what is predicted, as one array: two edits with the same numbers are the same here
    rest : what the quick look leaves, as one array, for a factor that is not known
    others : changes that are no edit of one formula, tried where no single one fits, and never in pairs
    alike : relative; predictions so near are one
    """

    def more() -> list[Edits]:
        free = (_with_factor(one, program, rest) for one in offers if FREE in one.new)
        return [*((one,) for one in free if one is not None), *((one,) for one in others)]

    known = [one for one in offers if FREE not in one.new and (one.rows or ROWS not in one.new)]
    groups: list[tuple[Array, list[Edits]]] = []
    for edits in fitting(known, program, screen, whole, more, pairs):
        with program(edits) as spec:
            found = numbers(spec)
        its = next((group for known, group in groups if same(known, found, alike)), None)
        if its is None:
            groups.append((found, [edits]))
        else:
            its.append(edits)
    if not groups:
        return None
    first, *rivals = [sorted(group, key=_length) for _, group in groups]
    return Fitted(first[0], tuple(first[1:]), tuple(group[0] for group in rivals))


def fitting(
    offers: Sequence[C],
    program: Program[Any, S],
    screen: Screen[S],
    whole: Screen[S] = lambda spec: (),
    more: Callable[[], Sequence[Changes[Any]]] = list,
    pairs: bool = True,
    partial: int = _PARTIAL,
) -> list[Changes[Any]]:
    """All that fit: single changes; where none does, what `more` has; else pairs. The nearest first.

    Parameters
    ----------
    screen : a quick look at a part; whole : at everything, of what passed the first
    partial : of pairs one is among those so many that help most
    """

    def fit(scored: Sequence[tuple[Sequence[float], Changes[C]]]) -> list[Changes[C]]:
        near = [changes for scores, changes in scored if _fit(scores)]
        ends = [(scores, changes) for changes in near if (scores := _tried(changes, program, whole)) is not None]
        found = sorted(((max(by, default=0.0), one) for by, one in ends if _fit(by)), key=lambda entry: entry[0])
        return [one for off, one in found if off <= NEAR * found[0][0] + 1e-3]

    def scored(candidates: Sequence[Changes[C]]) -> list[tuple[Sequence[float], Changes[C]]]:
        return [(scores, one) for one in candidates if (scores := _tried(one, program, screen)) is not None]

    alone = scored([(one,) for one in offers])
    found = fit(alone) or fit(scored(more()))
    before = _tried((), program, screen)
    if found or before is None or not pairs:
        return found
    touching = [(_gain(before, scores), one) for scores, one in alone if not np.array_equal(scores, before)]
    touching = sorted(touching, key=lambda entry: -entry[0])
    best = [one for _, one in touching[:partial]]
    pairs_ = list(_pairs(best, [*best, *(one for _, one in alone if one[0].drops)]))
    if touching and touching[0][0] > _MOST * np.log(max(before)):  # one mistake, and something beside it
        pairs_ += _pairs(best[:1], [one for _, one in alone])
    return fit(scored(list(dict.fromkeys(pairs_))))


def _with_factor(one: Single, program: Program[Any, S], rest: Numbers[S]) -> Single | None:
    """The edit with the factor that leaves least, by Gauss and Newton's steps."""
    factor, of_first = 1.0, np.inf
    for step in range(_STEPS):
        here = _tried((replace(one, factor=factor),), program, rest)
        beside = _tried((replace(one, factor=factor * (1 + _BESIDE)),), program, rest)
        if here is None or beside is None:
            return None
        left = float(np.sum(np.square(here)))
        if not left <= _FALLS * of_first:
            if step != 1 or left <= of_first:
                return None
            factor = float(np.exp(factor - 1.0))  # the first step went too far: the same in the factor's logarithm
            continue
        of_first = left if step == 0 else np.inf
        slope = (np.asarray(beside) - here) / (factor * _BESIDE)
        steep = float(np.sum(slope * slope))
        moved = float(np.sum(slope * here)) / steep if steep > 0 else np.nan
        if not np.isfinite(moved) or factor == moved:
            return None
        factor, last = factor - moved, factor
        if abs(factor - last) <= 1e-12 * abs(factor):
            break
    return replace(one, factor=factor)


def _pairs(firsts: Sequence[Changes[C]], seconds: Sequence[Changes[C]]) -> Iterator[Changes[C]]:
    """Each of those that help most, with each of the others, and with whatever only leaves something out."""
    known: set[frozenset[C]] = set()
    for (one,), (other,) in product(firsts, seconds):
        if one.place != other.place and (pair := frozenset((one, other))) not in known:
            known.add(pair)
            yield one, other


def _tried(changes: Changes[Any], program: Program[Any, S], look: Callable[[S], T]) -> T | None:
    """None where it is no program."""
    try:
        with program(changes) as spec, np.errstate(all="ignore"):
            return look(spec)
    except Exception:  # an edit may raise whatever NumPy and Python raise
        return None


def _fit(scores: Sequence[float]) -> bool:
    """Whether each is within what is allowed; NaN is not, wherever it stands."""
    return all(score <= FITS for score in scores)


def _gain(before: Sequence[float], after: Sequence[float]) -> float:
    """How much nearer, on the logarithm's scale; nothing where what was right goes wrong."""
    gains = [np.log(max(b, FITS)) - np.log(max(a, FITS)) for b, a in zip(before, after, strict=True)]
    return float(np.sum(gains)) if np.isfinite(gains).all() else 0.0


def same(one: Array, other: Array, alike: float = _ALIKE) -> bool:
    """Whether two predictions are one, to rounding."""
    if one.shape != other.shape:
        return False
    return bool(np.max(np.abs(one - other), initial=0.0) <= alike * np.max(np.abs(one), initial=0.0))


def _length(edits: Edits) -> tuple[int, int, int]:
    """Fewer edits first, then the plainest."""
    kinds, sizes = zip(*(one.rank for one in edits), strict=True)
    return len(edits), sum(kinds), sum(sizes)
