"""What may become of embeddings before the product, with the way back of their gradients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.derive.formula import Formula
from siglip_ref.check.diagnosis.derive.sets import OfPairs
from siglip_ref.check.diagnosis.derive.shapes import Number
from siglip_ref.check.diagnosis.functions.recorded import Recorded
from siglip_ref.check.diagnosis.functions.shared import unit_rows
from siglip_ref.check.diagnosis.functions.written import size
from siglip_ref.ops.elementary import Array

Of = Callable[[Recorded], Recorded]


def _of_largest(x: Array, axis: int | None, top: int) -> Array:
    step = np.abs(x).max(axis, keepdims=True, initial=0.0) / top
    return np.where(step > 0, np.round(x / np.where(step > 0, step, 1)) * step, 0.0)


def _norm(x: Recorded) -> Recorded:
    centred = x - x.mean(1)
    return centred / ((centred * centred).mean(1) + 1e-5).root


def _kept(x: Recorded, kept: Array) -> Recorded:
    """The rest is 0."""
    return Recorded(np.where(kept, x.value, 0.0), (x, lambda d: np.where(kept, d, 0.0)))


def _part(start: float, end: float) -> Of:
    def of(x: Recorded) -> Recorded:
        place, width = np.arange(x.value.shape[1]), x.value.shape[1]
        return _kept(x, (place >= int(start * width)) & (place < int(end * width)))

    return of


def _rounded(to: Callable[[Array], Array]) -> Of:
    return lambda x: x.through(to)


def mapped_rows(name: str, x: Recorded, cut: bool) -> Recorded:
    """cut : no gradient goes through the map: what rounds has then none, others are as if they were not there"""
    found = MAPS[name](x)
    if not cut:
        return found
    return found.held if "rounded" in name or "signs" in name else x.through(lambda _: found.value)


MAPS: Mapping[str, Of] = {
    **{  # whose gradients go through as if there were none
        f"rounded to multiples of 1/{n}": _rounded(lambda x, n=n: np.clip(np.round(x * n), -n, n) / n)  # type: ignore[misc]  # a default binds n
        for n in (127, 128, 255, 7, 8, 64, 32, 16, 100, 1000, 10)
    },
    **{f"rounded to {form}": _rounded(lambda x, f=form: round_to(x, FORMATS[f])) for form in ("bfloat16", "float16")},  # type: ignore[misc]  # the same
    "rounded to 255 steps of each row's largest": _rounded(lambda x: _of_largest(x, -1, 127)),
    "rounded to 255 steps of the largest of all": _rounded(lambda x: _of_largest(x, None, 127)),
    "rounded to 15 steps of each row's largest": _rounded(lambda x: _of_largest(x, -1, 7)),
    "replaced by their signs": _rounded(np.sign),
    "divided by the length of each column": lambda x: unit_rows(x, 1e-24, 0),
    "less each row's mean": lambda x: x - x.mean(1),
    "less the mean of all rows": lambda x: x - x.mean(0),
    "less each row's mean, divided by its deviation": _norm,
    "divided by the sum of their sizes": lambda x: x / x.each(size).sum(1),
    "cut to the first half of the width": _part(0, 1 / 2),
    "cut to the first quarter of the width": _part(0, 1 / 4),
    "cut to the first eighth of the width": _part(0, 1 / 8),
    "cut to the last half of the width": _part(1 / 2, 1),
    "cut at 0 from below": lambda x: _kept(x, x.value > 0),
    "through tanh": lambda x: x.each(np.tanh),
    "made positive": lambda x: x.each(size),
}


def mapped(right: Formula) -> Iterator[Formula]:
    """The right formula with rows that are mapped before it, on both sides or one; again divided by their length or
    not; with gradients of the map, or none that goes through it; then with one other thing, too."""
    sides = (("image_rows", "text_rows"), ("image_rows",), ("text_rows",))
    for formula in (right, *_otherwise(right)):
        for name, kind, chosen in product(MAPS, ("as given", "unit"), sides):
            for held in (False, True) if formula is right else (False,):
                rows = replace(right.image_rows, kind=kind, mapped=name, cut=held)
                yield replace(formula, **dict.fromkeys(chosen, rows))  # type: ignore[arg-type]  # rows, by their names


def _otherwise(right: Formula) -> Iterator[Formula]:
    """The right formula with one other thing: how the sum is divided, the scale, the bias."""
    for factor, power in ((1.0, -2.0), (1.0, 0.0), (2.0, -1.0), (0.5, -1.0)):
        terms = ((one, one.weights[0][0]) for one in right.terms)
        yield replace(right, terms=tuple(replace(t, weights=((where, OfPairs(factor, power)),)) for t, where in terms))
    for place, names in (("scale", ("s", "exp(-s)", "1/s", "exp(2 s)", "1")), ("offset", ("", "exp(s) b"))):
        for name in names:
            number = Number(((name, 1.0),) if name else ())
            logits = (replace(one.logit, **{place: number}) for one in right.terms)  # type: ignore[arg-type]  # by its name
            yield replace(
                right, terms=tuple(replace(t, logit=logit) for t, logit in zip(right.terms, logits, strict=True))
            )
