"""What may become of embeddings before the product, with the way back of their gradients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.derive.formula import Formula
from siglip_ref.check.diagnosis.derive.sets import OfPairs
from siglip_ref.check.diagnosis.derive.shapes import Number
from siglip_ref.ops.elementary import Array

Back = Callable[[Array], Array]


def _of_largest(x: Array, axis: int | None, top: int) -> Array:
    step = np.abs(x).max(axis, keepdims=True, initial=0.0) / top
    return np.where(step > 0, np.round(x / np.where(step > 0, step, 1)) * step, 0.0)


def _norm(x: Array) -> tuple[Array, Back]:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    y = centred / deviation

    def back(d: Array) -> Array:
        return (d - d.mean(-1, keepdims=True) - y * (d * y).mean(-1, keepdims=True)) / deviation

    return y, back


def _size(x: Array) -> tuple[Array, Back]:
    total = np.abs(x).sum(-1, keepdims=True)
    return x / total, lambda d: d / total - (d * x).sum(-1, keepdims=True) / total**2 * np.sign(x)


def _batch(x: Array) -> tuple[Array, Back]:
    return x - x.mean(0), lambda d: d - d.mean(0)


def _columns(x: Array) -> tuple[Array, Back]:
    length = np.maximum(np.sqrt((x * x).sum(0, keepdims=True)), 1e-12)
    return x / length, lambda d: d / length - (d * x).sum(0, keepdims=True) / length**3 * x


def _first(x: Array, share: int) -> tuple[Array, Back]:
    kept = np.arange(x.shape[-1]) < x.shape[-1] // share
    return np.where(kept, x, 0.0), lambda d: np.where(kept, d, 0.0)


def _last(x: Array, share: int) -> tuple[Array, Back]:
    kept = np.arange(x.shape[-1]) >= x.shape[-1] // share
    return np.where(kept, x, 0.0), lambda d: np.where(kept, d, 0.0)


def _rounded(to: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Back]]:
    return lambda x: (to(x), lambda d: d)


def way_back(name: str, back: Back, cut: bool) -> Back:
    """With none through the map: what rounds has then no gradient, others are as if they were not there."""
    return back if not cut else (lambda d: 0 * d) if "rounded" in name or "signs" in name else lambda d: d


MAPS: Mapping[str, Callable[[Array], tuple[Array, Back]]] = {
    **{  # whose gradients go through as if there were none
        f"rounded to multiples of 1/{n}": _rounded(lambda x, n=n: np.clip(np.round(x * n), -n, n) / n)  # type: ignore[misc]  # a default binds n
        for n in (127, 128, 255, 7, 8, 64, 32, 16, 100, 1000, 10)
    },
    **{f"rounded to {form}": _rounded(lambda x, f=form: round_to(x, FORMATS[f])) for form in ("bfloat16", "float16")},  # type: ignore[misc]  # the same
    "rounded to 255 steps of each row's largest": _rounded(lambda x: _of_largest(x, -1, 127)),
    "rounded to 255 steps of the largest of all": _rounded(lambda x: _of_largest(x, None, 127)),
    "rounded to 15 steps of each row's largest": _rounded(lambda x: _of_largest(x, -1, 7)),
    "replaced by their signs": _rounded(np.sign),
    "divided by the length of each column": _columns,
    "less each row's mean": lambda x: (x - x.mean(-1, keepdims=True), lambda d: d - d.mean(-1, keepdims=True)),
    "less the mean of all rows": _batch,
    "less each row's mean, divided by its deviation": _norm,
    "divided by the sum of their sizes": _size,
    "cut to the first half of the width": lambda x: _first(x, 2),
    "cut to the first quarter of the width": lambda x: _first(x, 4),
    "cut to the first eighth of the width": lambda x: _first(x, 8),
    "cut to the last half of the width": lambda x: _last(x, 2),
    "cut at 0 from below": lambda x: (np.maximum(x, 0), lambda d: np.where(x > 0, d, 0.0)),
    "through tanh": lambda x: (np.tanh(x), lambda d: d * (1 - np.tanh(x) ** 2)),
    "made positive": lambda x: (np.abs(x), lambda d: d * np.sign(x)),
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
