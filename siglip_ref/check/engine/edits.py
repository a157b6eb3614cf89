"""Which edit of the specification's formulas another program is: tried one by one, pairs where no single one fits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np

from siglip_ref.mistakes.grammar.scope import FREE
from siglip_ref.mistakes.grammar.switched import Single, made
from siglip_ref.ops.elementary import Array

T = TypeVar("T")
Edits = tuple[Single, ...]
_STEPS, _BESIDE = 8, 1e-5  # towards a factor that is not known, and from where its slope is taken
Screen = Callable[[], Sequence[float]]  # with the edits made: how far off each tensor is, in what is allowed

FITS = 1.0  # of what is allowed
NEAR = 4.0  # times what the best leaves: what leaves more is another program
_ALIKE = 1e-9  # relative: predictions so near are one
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
    screen: Screen,
    whole: Screen,
    numbers: Callable[[], Array],
    rest: Callable[[], Array],
    pairs: bool = True,
) -> Fitted | None:
    """The edits that explain everything.

    Parameters
    ----------
    offers : single edits
    screen : a quick look at a part; whole : at everything, of what passed the first
    numbers : what is predicted, as one array: two edits with the same numbers are the same here
    rest : what the quick look leaves, as one array, for a factor that is not known
    """
    free = [one for one in offers if FREE in one.new]
    offers = [one for one in offers if FREE not in one.new]
    before = _scores((), screen)
    alone = [(scores, (one,)) for one in offers if (scores := _scores((one,), screen)) is not None]
    fitting = _fitting([edits for scores, edits in alone if max(scores) <= FITS], whole)
    if not fitting:
        factors = [(found,) for one in free if (found := _with_factor(one, rest)) is not None]
        fitting = _fitting([edits for edits in factors if _fits(edits, screen)], whole)
    if not fitting and before is not None and pairs:
        helps = [(gain, edits) for scores, edits in alone if (gain := _gain(before, scores)) > 0]
        helps.sort(key=lambda entry: -entry[0])
        firsts = [edits for _, edits in helps[:_PARTIAL]]
        seconds = [edits for _, edits in helps[:_PARTIAL]] + [edits for _, edits in alone if edits[0].drops]
        near = [edits for scores, edits in _pairs(firsts, seconds, screen) if max(scores) <= FITS]
        fitting = _fitting(near, whole)
    if not fitting:
        return None
    groups: list[tuple[Array, list[Edits]]] = []
    for _, edits in fitting:
        with made(edits):
            found = numbers()
        same = next((group for known, group in groups if _same(known, found)), None)
        if same is None:
            groups.append((found, [edits]))
        else:
            same.append(edits)
    first, *others = [sorted(group, key=_length) for _, group in groups]
    return Fitted(first[0], tuple(first[1:]), tuple(group[0] for group in others))


def _fitting(candidates: Sequence[Edits], whole: Screen) -> list[tuple[float, Edits]]:
    """Those that fit everywhere, the nearest first."""
    found = [(max(scores, default=0.0), edits) for edits in candidates if (scores := _scores(edits, whole)) is not None]
    found = sorted((entry for entry in found if entry[0] <= FITS), key=lambda entry: entry[0])
    return [entry for entry in found if entry[0] <= NEAR * found[0][0] + 1e-3]


def _fits(edits: Edits, screen: Screen) -> bool:
    scores = _scores(edits, screen)
    return scores is not None and max(scores) <= FITS


def _with_factor(one: Single, rest: Callable[[], Array]) -> Single | None:
    """The edit with the factor that leaves least, by Gauss and Newton's steps."""
    factor = 1.0
    for _ in range(_STEPS):
        here = _scores((replace(one, factor=factor),), rest)
        beside = _scores((replace(one, factor=factor * (1 + _BESIDE)),), rest)
        if here is None or beside is None:
            return None
        slope = (np.asarray(beside) - here) / (factor * _BESIDE)
        steep = float(np.sum(slope * slope))
        moved = float(np.sum(slope * here)) / steep if steep > 0 else np.nan
        if not np.isfinite(moved) or factor == moved:
            return None
        factor, last = factor - moved, factor
        if abs(factor - last) <= 1e-12 * abs(factor):
            break
    return replace(one, factor=factor)


def _pairs(
    firsts: Sequence[Edits], seconds: Sequence[Edits], screen: Screen
) -> Iterator[tuple[Sequence[float], Edits]]:
    """Each of those that help most, with each of the others, and with whatever only leaves something out."""
    tried: set[frozenset[int]] = set()
    for one, other in product(firsts, seconds):
        key = frozenset((one[0].number, other[0].number))
        if one[0].place == other[0].place or key in tried:
            continue
        tried.add(key)
        scores = _scores((*one, *other), screen)
        if scores is not None:
            yield scores, (*one, *other)


def _scores(edits: Edits, screen: Callable[[], T]) -> T | None:
    """None where it is no program."""
    with made(edits), np.errstate(all="ignore"):
        try:
            return screen()
        except Exception:  # an edit may raise whatever NumPy and Python raise
            return None


def _gain(before: Sequence[float], after: Sequence[float]) -> float:
    """How much nearer, on the logarithm's scale; nothing where what was right goes wrong."""
    gains = [np.log(max(b, FITS)) - np.log(max(a, FITS)) for b, a in zip(before, after, strict=True)]
    return float(np.sum(gains)) if np.isfinite(gains).all() else 0.0


def _same(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.max(np.abs(one - other), initial=0.0) <= _ALIKE * np.max(np.abs(one), initial=0.0))


def _length(edits: Edits) -> tuple[int, int, int]:
    """The plainest first: fewer edits, something left out, then something else in its place, then something done to
    it, then another way taken; short."""
    kinds = sum(
        3 if one.text.startswith("if ") else 0 if one.drops else 1 if one.old not in one.new else 2 for one in edits
    )
    return len(edits), kinds, sum(len(one.new) + len(one.old) for one in edits)
