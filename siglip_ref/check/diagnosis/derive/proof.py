"""The proof: a formula must give the loss and all its gradients at inputs that no experiment used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from siglip_ref.check.diagnosis.derive.evaluate import with_magnitudes
from siglip_ref.check.diagnosis.derive.formula import Formula
from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.check.diagnosis.derive.shapes import Shape
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

NAMES = ("loss", "image_embed", "text_embed", "log_scale", "bias")
ALONE = "no number of one pair"
_FINE = 3e-9  # what is allowed in float64: a softplus that returns its input above 20 is off by 2e-9
_ROUNDED = (1e-9, 1e-5)  # the noise of float32, relative to a loss
_PAIRS = (1, 2, 3, 4, 5, 6, 7, 11, 19, 6)  # batches that experiments have had: JAX compiles for each
_TIMES = 40  # the precision of a format, which the rounding of a few thousand terms may reach


@dataclass(frozen=True)
class Held:
    """Inputs that no experiment used, and what the loss gave there; allowed: relative to the terms added up."""

    label: str
    image_embed: Array
    text_embed: Array
    s: float
    b: float
    found: LossAndGrads
    allowed: float
    frozen: tuple[str, ...] = ()
    form: str = "float64"


def computed_in(subject: Subject) -> str:
    """float32, where float64 was asked for and the noise is that of float32; "" otherwise."""
    return "float32" if subject.form == "float64" and _ROUNDED[0] < subject.noise < _ROUNDED[1] else ""


def held_back(subject: Subject, raw: bool, seed: int = 0) -> Iterator[Held]:
    """Random inputs: rows near each other and far, scales from 1 to 150, batches of several sizes, equal captions."""
    allowed = _FINE if computed_in(subject) else max(_FINE, 300 * subject.noise)
    for number, plain in enumerate(_PAIRS):
        pairs = -(-plain // subject.batch) * subject.batch
        rng = np.random.Generator(np.random.PCG64([seed, number, 1918]))
        width = -(-2 * pairs // subject.dim) * subject.dim
        x = rng.standard_normal((pairs, width))
        y = float(rng.uniform(0, 2)) * x[rng.permutation(pairs) if number % 3 == 2 else slice(None)]
        y = y + rng.standard_normal((pairs, width))
        if number % 4 == 3:
            y[pairs // 2 :] = y[: pairs - pairs // 2]
        x, y = (rows / np.sqrt((rows * rows).sum(-1, keepdims=True)) for rows in (x, y))
        if raw:
            x, y = (rows * 2.0 ** rng.uniform(-2, 2, (pairs, 1)) for rows in (x, y))
        s, b = subject.number(subject.given(float(rng.uniform(0, 5)))), subject.number(float(rng.uniform(-12, 5)))
        given, label = (subject.rounded(x), subject.rounded(y), s, b), f"held back {number + 1}: {pairs} pairs"
        yield Held(label, *given, subject.at(*given), allowed, subject.frozen, subject.form)


def steep(subject: Subject) -> Iterator[Held]:
    """Inputs whose logits are about 21 and -21, where SigLIP's would be."""
    shape = 2, 4 * subject.batch, -(-8 // subject.dim) * subject.dim
    for seed, bias in enumerate((21.0, -21.0)):
        x, y = np.random.Generator(np.random.PCG64([seed, 1919])).standard_normal(shape)
        x, y = (subject.rounded(rows / np.sqrt((rows * rows).sum(-1, keepdims=True))) for rows in (x, y))
        given = x, y, subject.number(subject.given(0.0)), subject.number(bias)
        yield Held(f"logits of {bias:g}", *given, subject.at(*given), _FINE, subject.frozen, subject.form)


def kinds_of(one: Held) -> set[str]:
    """What is special about inputs: one pair; ties, rows that are equal, so that logits are; logits of 0, a kink;
    several rows of zeros; a loss that is not finite, of one pair, too."""
    rows = (one.image_embed, one.text_embed)
    found = {"one pair"} if len(one.image_embed) == 1 else set()
    if any(len(np.unique(side, axis=0)) < len(side) for side in rows) or not np.any(rows[0] @ rows[1].T):
        found.add("ties")
    if one.b == 0 and (rows[0] @ rows[1].T == 0).any():
        found.add("kinks")
    if any((~side.any(-1)).sum() > 1 for side in rows):
        found.add("zeros")
    if not np.isfinite(one.found.loss).all():
        found |= {"not finite", ALONE} if "one pair" in found else {"not finite"}
    return found


def precision(dtype: str) -> float:
    """What a right program may be off by in this dtype, relative to the terms that it adds up."""
    return {"float64": _FINE, "float32": _TIMES * 2.0**-24, "bfloat16": 6 * 2.0**-8, "float16": 12 * 2.0**-11}[dtype]


# Up to which number exp stays finite, and a sigmoid of minus it above 0.
LIMITS = {
    "float64": {"exp": 709.78, "sigmoid": 745.13},
    "float32": {"exp": 88.72, "sigmoid": 103.97},
    "bfloat16": {"exp": 88.72, "sigmoid": 92.5},
    "float16": {"exp": 11.09, "sigmoid": 17.33},
}


EITHER = "exp or sigmoid"  # where nothing lies between the two


def in_form(formula: Formula, form: str) -> Formula:
    """A formula with what is not finite in a format."""
    straight, slope = formula.straight, None
    if formula.unstable:
        limit = LIMITS[form]["exp" if formula.unstable == EITHER else formula.unstable]
        functions = dict.fromkeys((-1, 1), Shape("softplus, finite up to", (limit,)))
    elif np.isfinite(straight.above):
        above, below = (Shape(f"softplus, {name}", (straight.above,)) for name in ("straight above", "0 below minus"))
        functions = {sign: below if straight.of == {1: "-logit", -1: "logit"}[sign] else above for sign in (-1, 1)}
        slope = Shape("slope of softplus") if straight.in_value else None
    else:
        return formula
    terms = (replace(one, function=functions[one.sign], slope=slope or one.slope) for one in formula.terms)
    return replace(formula, terms=tuple(terms))


def failures(formula: Formula, held: Sequence[Held], first: bool = False) -> list[tuple[str, str]]:
    """What a formula does not give, as (tensor, inputs). first: stop at one"""
    least = precision(formula.computed_in) if formula.computed_in else 0.0
    found = ((name, one.label) for name, one, off in _errors(formula, held) if not off <= max(one.allowed, least))
    return [*islice(found, 1 if first else None)]


def off_by(formula: Formula, held: Sequence[Held]) -> float:
    """The largest error of a formula, relative to the terms that are added up."""
    return max((off for _, _, off in _errors(formula, held)), default=0.0)


def _errors(formula: Formula, held: Sequence[Held]) -> Iterator[tuple[str, Held, float]]:
    """Of each tensor at each input, relative to the terms that are added up."""
    for one in held:
        right, sizes = with_magnitudes(in_form(formula, one.form), one.image_embed, one.text_embed, one.s, one.b)
        for name, expected, size, got in zip(NAMES, right, sizes, one.found, strict=True):
            if name not in one.frozen:
                yield name, one, _off(got, expected, size)


def _off(got: Array | None, expected: Array, size: Array) -> float:
    values = np.zeros_like(expected) if got is None else np.asarray(got, np.float64)
    if values.shape != np.shape(expected):
        return np.inf
    with np.errstate(all="ignore"):
        off = np.maximum(np.abs(values - expected) - 1e-300, 0) / np.maximum(size, np.abs(expected))
        off = np.where((~np.isfinite(values) & ~np.isfinite(expected)) | (values == expected), 0, off)
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))
