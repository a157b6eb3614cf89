"""What a gradient may be put together from: slopes of pairs, as they are or another formula's, moved to other pairs, by
the rows that they are multiplied with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.derive.formula import IDENTITY, Coupled, Formula, Logit, Piece
from siglip_ref.check.diagnosis.derive.sets import OfPairs, simple
from siglip_ref.check.diagnosis.derive.shapes import Number, of_number
from siglip_ref.ops.elementary import Array, sigmoid

OWN = "its own"
POWERS, SCALES = (0.0, -1.0, 1.0, -2.0, 2.0), ("1", "exp(-s)", "exp(s)", "s", "1/s")


@dataclass
class Parts:
    """What a formula gives on the way. slopes: of the value by each pair's similarity, by_logit: by its logit, and
    logits: by_logit times that; magnitude: the sum of what was added up, and slope_magnitude that of a slope, for
    rounding; scale_pairs, bias_pairs: of the scalars' gradients each pair's share."""

    value: float
    slopes: Array
    of_scale: float
    of_bias: float
    magnitude: float
    slope_magnitude: Array
    scale_pairs: Array
    bias_pairs: Array
    by_logit: Array
    logits: Array


Of = Callable[[Formula, Array, float, float], Parts]


def _of_sign(sign: int, formula: Formula) -> Formula:
    return replace(formula, terms=tuple(term for term in formula.terms if term.sign == sign), coupled=(), extra=())


def _labels(formula: Formula) -> Formula:
    own = _of_sign(-1, formula)
    return replace(own, terms=tuple(replace(term, function=IDENTITY, slope=None) for term in own.terms))


def _logit(formula: Formula) -> Logit:
    return formula.terms[0].logit if formula.terms else formula.coupled[0].logit


def _softmax(side: str, formula: Formula) -> Formula:
    logit = _logit(formula)
    return replace(formula, terms=(), extra=(), coupled=(Coupled(f"softmax, {side}", OfPairs(1.0, -1.0), logit),))


def _unscaled(formula: Formula) -> Formula:
    plain = (replace(term, logit=replace(term.logit, scale=Number((("1", 1.0),)))) for term in formula.terms)
    return replace(formula, terms=tuple(plain))


# Formulas whose slopes may stand in place of its own.
OTHERS: Mapping[str, Callable[[Formula], Formula]] = {
    OWN: lambda formula: formula,
    "that of positives": partial(_of_sign, -1),
    "that of negatives": partial(_of_sign, 1),
    "what labels take off it": _labels,
    "that of labels 0": lambda formula: replace(formula, terms=tuple(replace(one, sign=1) for one in formula.terms)),
    "that of logits without a scale": _unscaled,
    "that of a softmax over its row": partial(_softmax, "rows"),
    "that of a softmax over its column": partial(_softmax, "columns"),
}
NO_BIAS = "that of logits without a bias"
_TIMES: Mapping[str, Callable[[Array], Array]] = {
    "its own times sigmoid(logit)": sigmoid,
    "its own times sigmoid(-logit)": lambda z: sigmoid(-z),
    "its own times its logit": lambda z: z,
}
MOVED: Mapping[str, Callable[[Array], Array]] = {
    "": lambda g: g,
    "its own where i = j": lambda g: np.diag(np.diagonal(g)),
    "that of the transposed pair": lambda g: g.T,
    "the mean of its row": lambda g: np.broadcast_to(g.mean(1, keepdims=True), g.shape),
    "the mean of its column": lambda g: np.broadcast_to(g.mean(0, keepdims=True), g.shape),
    "the mean of all": lambda g: np.full_like(g, g.mean()),
    "the sum of its row, where i = j": lambda g: np.diag(g.sum(1)),
    "the sum of its column, where i = j": lambda g: np.diag(g.sum(0)),
    "that of the image before": lambda g: np.roll(g, 1, 0),
    "that of the image after": lambda g: np.roll(g, -1, 0),
    "that of the text before": lambda g: np.roll(g, 1, 1),
    "that of the text after": lambda g: np.roll(g, -1, 1),
}
# What slopes of an embedding are multiplied with, given them, its own rows and the other side's, and the right slopes.
Rows = Callable[[Array, Array, Array, Array], Array]
ROWS: Mapping[str, Rows] = {
    "": lambda m, own, other, g: m @ other,
    "its own side's rows": lambda m, own, other, g: m @ own,
    "the other side's gradient": lambda m, own, other, g: m @ (g.T @ own),
    "its own side's gradient": lambda m, own, other, g: m @ (g @ other),
    "the part along its row": lambda m, own, other, g: ((m @ other) * own).sum(-1, keepdims=True) * own,
    "the part along the other side's row": lambda m, own, other, g: (
        ((m @ other) * other).sum(-1, keepdims=True) * other
    ),
    "the part of all along all rows": lambda m, own, other, g: ((m @ other) * own).sum() * own,
    "length held constant": lambda m, own, other, g: m @ other,
    "the rows themselves": lambda m, own, other, g: own,
}
HELD = tuple(name for name in ROWS if "part" in name or "held" in name)  # divided by lengths, but not projected
# By what rows of a gradient may be multiplied besides, of the lengths of its own rows and of the other side's.
LENGTHS: Mapping[str, Callable[[Array, Array], Array]] = {
    "": lambda own, other: np.ones_like(own),
    "divided by their length once more": lambda own, other: 1 / own,
    "not divided by their length": lambda own, other: own,
    "divided by the other side's length": lambda own, other: own / other,
}
# What slopes of a scalar are multiplied with: their own share, or by the logit times something.
NUMBERS = ("", "1", "bias", "similarity", "logit", "the transposed pair's similarity")


@dataclass
class At:
    """A formula at rows u, v, as they go into the product."""

    formula: Formula
    of: Of
    u: Array
    v: Array
    s: float
    b: float

    def __post_init__(self) -> None:
        self.known: dict[str, Parts] = {}

    @cached_property
    def similarity(self) -> Array:
        """Of all pairs."""
        return self.u @ self.v.T

    def parts(self, name: str) -> Parts:
        """What a formula gives, by its name in OTHERS."""
        if name not in self.known:
            other = self.formula if name == NO_BIAS else OTHERS[name](self.formula)
            self.known[name] = self.of(other, self.similarity, self.s, 0.0 if name == NO_BIAS else self.b)
        return self.known[name]

    def slopes(self, piece: Piece) -> Array:
        """Of all pairs, images by texts."""
        if piece.slopes in _TIMES:
            logit = _logit(self.formula)
            z = logit.scale(self.s, self.b, len(self.u)) * self.similarity + logit.offset(self.s, self.b, len(self.u))
            return MOVED[piece.moved](self.parts(OWN).slopes * _TIMES[piece.slopes](z))
        return MOVED[piece.moved](self.parts(piece.slopes).slopes)

    def number(self, piece: Piece) -> float:
        """What multiplies all of it."""
        pairs = len(self.u)
        return float(piece.factor * float(pairs) ** piece.power * of_number(piece.scale, 0, self.s, self.b, pairs))

    def rows(self, tensor: str, piece: Piece) -> Array:
        """A piece of an embedding's gradient, before what becomes of rows."""
        m, own, other, g = self.slopes(piece), self.u, self.v, self.parts(OWN).slopes
        if tensor == "text_embed":
            m, own, other, g = m.T, self.v, self.u, g.T
        return self.number(piece) * ROWS[piece.by](m, own, other, g)

    def scalar(self, tensor: str, piece: Piece) -> float:
        """A piece of a scalar's gradient."""
        whole = self.parts(piece.slopes if piece.slopes not in _TIMES else OWN)
        if piece.by == "":
            pairs = whole.scale_pairs if tensor == "log_scale" else whole.bias_pairs
            with np.errstate(all="ignore"):  # of a slope that is 0 nothing is known
                share = np.where(whole.slopes == 0, 0.0, pairs / whole.slopes)
            found = self.slopes(piece) * share if piece.moved or piece.slopes in _TIMES else pairs
        else:
            by = {"1": 1.0, "bias": self.b, "similarity": self.similarity, "logit": 1.0}
            by["the transposed pair's similarity"] = self.similarity.T
            found = MOVED[piece.moved](whole.logits if piece.by == "logit" else whole.by_logit) * by[piece.by]
        return self.number(piece) * float(found.sum())


def pieces_of(tensor: str, formula: Formula) -> list[Piece]:
    """All that are tried of one gradient, simplest first."""
    if not (formula.terms or formula.coupled):
        return [Piece(OWN)]
    others = [name for name in (*OTHERS, NO_BIAS) if formula.terms or "softmax" in name or name == OWN]
    found = [Piece(name) for name in others] + [Piece(OWN, moved) for moved in MOVED if moved]
    if tensor in ("log_scale", "bias"):
        return found + [Piece(name, "", by) for by in NUMBERS[1:] for name in others]
    found += [Piece(name) for name in _TIMES]
    found += [Piece(OWN, moved, by) for by in ROWS if by for moved in ("", "that of the transposed pair")]
    raw = (formula.image_rows if tensor == "image_embed" else formula.text_rows).kind != "as given"
    return found + [Piece(OWN, "", by, after) for by in ("", *HELD) for after in LENGTHS if raw and after]


def fitted(
    pieces: Sequence[Piece], columns: Array, pairs: Array, scales: Mapping[str, Array], got: Array, near: float
) -> tuple[Piece, ...] | None:
    """One or two of the pieces, each times a power of B and a function of the scale, that give what was seen.

    Parameters
    ----------
    columns : (numbers, pieces), each what a piece gives; pairs, scales : B, and functions of the scale, of each number
    """
    ways = [(k, power, name) for (power, name), k in product(product(POWERS, scales), range(len(pieces)))]
    table = np.stack([columns[:, k] * pairs**power * scales[name] for k, power, name in ways], -1)
    lengths = np.sqrt((table * table).sum(0))
    known = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
    unit = table[:, known] / lengths[known]
    size = float(np.sqrt(got @ got))
    gram, along = unit.T @ unit, unit.T @ got / size
    with np.errstate(all="ignore"):  # what two columns leave of it, by Cramer's rule
        rest = 1 - (along[:, None] ** 2 + along**2 - 2 * gram * along[:, None] * along) / (1 - gram**2)
    rest[1 - gram**2 < 1e-9] = np.inf
    np.fill_diagonal(rest, 1 - along**2)
    limit = max((30 * near) ** 2, 1e-11)
    order = sorted(np.argwhere(np.triu(rest <= limit)).tolist(), key=lambda at: (at[0] != at[1], sum(at)))
    for at in order[:200]:
        chosen = [int(known[k]) for k in dict.fromkeys(at)]
        factors = np.linalg.lstsq(table[:, chosen], got, rcond=1e-12)[0]
        tidy = np.array([simple(float(one), 1e-5) for one in factors])
        for numbers in (tidy, factors):
            if np.abs(table[:, chosen] @ numbers - got).max() <= near:
                made = zip((ways[k] for k in chosen), numbers, strict=True)
                return tuple(replace(pieces[k], power=p, scale=n, factor=float(f)) for (k, p, n), f in made)
    return None
