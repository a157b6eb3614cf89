"""A loss as data: what is summed over which pairs, of which logit and rows; what its backward does otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from siglip_ref.check.diagnosis.derive.sets import DIAGONAL, OTHERS, OfPairs, Rule, joined
from siglip_ref.check.diagnosis.derive.shapes import Number, Shape

IDENTITY = Shape("identity")
SOFTPLUS = Shape("softplus")
ONE = Number((("1", 1.0),))
NOTHING = Number()
KEPT = ("texts", "images", "images and texts", "logits")
BOTH = Shape("softplus + linear", (0.5,))


@dataclass(frozen=True)
class Rows:
    """What becomes of one side's rows. kind: "as given", "unit", "unit + eps" (divided by their length + eps), or
    "unit, root" (by the root of its square + eps), "power" (by its power eps), "whole matrix" (by the length of all);
    detached: the length is held constant in the backward; order: which
    rows stand where, of `siglip_ref.check.diagnosis.derive.evaluate.ORDERS`; undivided: its gradient is not divided by
    the length; mapped: what becomes of them before that, of `mapped.MAPS`; cut: with no gradient through it."""

    kind: str = "as given"
    eps: float = 0.0
    detached: bool = False
    order: str = ""
    undivided: bool = False
    mapped: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Logit:
    """cap(scale * similarity(image . text) + offset); own: what is added where i = j alone."""

    scale: Number
    offset: Number
    similarity: Shape = IDENTITY
    cap: Shape = IDENTITY
    own: Number = NOTHING


@dataclass(frozen=True)
class Term:
    """Summed over pairs: weight * function(sign * logit). sign: -1 for pairs that belong together, +1 for others;
    slope: what gradients take for the derivative of function and cap, of sign * (logit before its cap)."""

    weights: tuple[Rule, ...]
    function: Shape
    sign: int
    logit: Logit
    slope: Shape | None = None


@dataclass(frozen=True)
class Coupled:
    """weight(B) times a function of whole rows or columns of logits; kind: of
    `siglip_ref.check.diagnosis.derive.coupled`."""

    kind: str
    weight: OfPairs
    logit: Logit
    number: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Of a gradient: factor * B^power * scale's function, times slopes of `pieces.OTHERS`, moved to other pairs (of
    `pieces.MOVED`), by rows (of `pieces.ROWS`), or numbers; after: by lengths (of `pieces.LENGTHS`)."""

    slopes: str
    moved: str = ""
    by: str = ""
    after: str = ""
    power: float = 0.0
    scale: str = "1"
    factor: float = 1.0


@dataclass(frozen=True)
class Backward:
    """What one gradient is instead of the derivative of the value.

    kind : "times": each pair's slope times a weight (rules), and a number; "none": it does not arrive; "tangent":
        without its part along the row; "transposed"; "exchanged" with the other embedding's; "rolled" by `number`
        rows; "clipped" to the length `number` (a length has `eps` added), as a whole; "rows clipped", each; "of": made
        of parts
    alike : other gradients of which the same holds
    """

    tensor: str
    kind: str
    rules: tuple[Rule, ...] = ()
    scalar: Number = ONE
    number: float = 0.0
    eps: float = 0.0
    parts: tuple[Piece, ...] = ()
    alike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """What the backward reads in fewer bits than the value was computed in. what: one of KEPT; form: of
    `siglip_ref.arithmetic.rounded.FORMATS`."""

    what: str
    form: str


@dataclass(frozen=True)
class Straight:
    """softplus(x) is x above a number. of: what x is, "u", or of all pairs "logit" or "-logit"; in_value: gradients are
    those of the whole softplus."""

    above: float = np.inf
    of: str = "u"
    in_value: bool = False


@dataclass(frozen=True)
class Formula:
    """A loss. linear: it is given the scale itself; equal: "texts" if pairs with equal texts count as positives, or not
    at all (left_out); unstable: "exp", "sigmoid" or "exp or sigmoid", whose logarithm is taken and is not finite beyond
    a range; straight: what a library's softplus is above a threshold; scalars: the format to which scale and bias are
    rounded, as they come in; computed_in: a format of fewer bits than the inputs have; width, over: powers of the
    embeddings' width, by which similarities and the whole loss are multiplied; times: what else that is multiplied by,
    a function of the scale; several: whole losses, each times a number, whose sum it is instead; penalties: of
    `penalties.PENALTIES`, added to all."""

    terms: tuple[Term, ...]
    coupled: tuple[Coupled, ...] = ()
    extra: tuple[tuple[str, OfPairs], ...] = ()  # of NUMBERS, added to the value
    image_rows: Rows = Rows()
    text_rows: Rows = Rows()
    backward: tuple[Backward, ...] = ()
    linear: bool = False
    equal: str = ""
    left_out: bool = False
    unstable: str = ""
    straight: Straight = Straight()
    kept: Kept | None = None
    scalars: str = ""
    computed_in: str = ""
    width: float = 0.0
    over: float = 0.0
    times: Number = ONE
    several: tuple[tuple[float, "Formula"], ...] = ()
    penalties: tuple[tuple[str, OfPairs], ...] = ()

    @property
    def added(self) -> tuple[Term, ...]:
        """Terms of another function than that which both labels have."""
        both = {one.function for one in self.terms if one.sign < 0} & {
            one.function for one in self.terms if one.sign > 0
        }
        return tuple(one for one in self.terms if one.function not in both) if both else ()


@dataclass(frozen=True)
class Difference:
    """One thing that is not SigLIP's.

    place : what `got` and `right` are of: "reduction" (OfPairs), "weights" (rules), "labels", "function", "similarity"
        and "cap" (Shape), "scale", "offset" and "own" (Number), "rows" (Rows), "extra", "coupled", "unstable",
        "added" (terms), "backward", "kept" (Kept), "straight", "scalars", "computed in", "slope" (Shape), "width",
        "over" (powers), "times" (Number), "several" (losses), "penalty";
        "targets" (forms of the labels of own pairs, and of others);
        of CLIP's loss "directions", "terms", "smoothing" (a number)
    of : which of several: "positives", "negatives", "both", or a tensor; "softmax", of CLIP's loss
    got, right : values of the formula
    ids : entries of the catalogue that it is
    """

    place: str
    of: str
    got: object
    right: object
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured where no formula was proven. kind: a word; numbers: a small table, by name."""

    kind: str
    numbers: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Derived:
    """The result. certain: everything was reproduced at inputs that no experiment used.

    formula : None where none was found; differences : to SigLIP's; failed : what the formula does not reproduce, as
        (tensor, inputs); besides : inputs that a certain formula does not speak of, of `proof.kinds_of`;
        calls : of the loss; compared : tensors that the proof compared; left : what a certain formula is off by where
        float64's rounding is less, relative to the terms that are added up
    """

    formula: Formula | None
    certain: bool
    differences: tuple[Difference, ...] = ()
    measured: tuple[Measured, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    besides: tuple[str, ...] = ()
    calls: int = 0
    compared: int = 0
    dtype: str = "float64"
    left: float = 0.0


def siglip(
    linear: bool = False,
    rows: Rows = Rows(),
    bias: bool = True,
    weights: tuple[float, float] = (1.0, 1.0),
    power: float = -1.0,
    smoothing: float = 0.0,
) -> Formula:
    """SigLIP's own, or a declared variant of it.

    Parameters
    ----------
    bias : whether logits have one; weights : of positives and of negatives, times B^power; smoothing : labels are
        1 - smoothing / 2 and smoothing / 2

    >>> [term.sign for term in siglip().terms]
    [-1, 1]
    """
    logit = Logit(Number((("s" if linear else "exp(s)", 1.0),)), Number((("b", 1.0),) if bias else ()))
    own, other = (OfPairs(weight, power) for weight in weights)
    function = Shape("softplus + linear", (smoothing / 2,)) if smoothing else SOFTPLUS
    terms = (Term(((DIAGONAL, own),), function, -1, logit), Term(((OTHERS, other),), function, 1, logit))
    return Formula(terms, image_rows=rows, text_rows=rows, linear=linear)


def clip(linear: bool = False, rows: Rows = Rows()) -> Formula:
    """The softmax loss: half of each direction's mean."""
    logit = Logit(Number((("s" if linear else "exp(s)", 1.0),)), NOTHING)
    both = tuple(Coupled(f"softmax, {side}", OfPairs(0.5, -1.0), logit) for side in ("rows", "columns"))
    return Formula((), both, image_rows=rows, text_rows=rows, linear=linear)


def told_apart(terms: Sequence[Term]) -> tuple[Term, ...]:
    """2 (softplus(u) - u / 2) is softplus(u) + softplus(-u): pairs that count as both are told as both.

    >>> own = Term(((DIAGONAL, OfPairs(2.0, -1.0)),), Shape("softplus + linear", (0.5,)), 1, siglip().terms[0].logit)
    >>> [(term.sign, term.weights[0][0].names) for term in told_apart([own, siglip().terms[1]])]
    [(-1, ('diagonal',)), (1, ('everywhere',))]
    """
    found: dict[tuple[int, Shape, Logit], tuple[Rule, ...]] = {}
    for term in terms:
        both = term.function == BOTH
        rules = tuple((where, replace(form, factor=form.factor / (1 + both))) for where, form in term.weights)
        for sign in (-1, 1) if both else (term.sign,):
            key = sign, SOFTPLUS if both else term.function, term.logit
            found[key] = joined((*found.get(key, ()), *rules))
    return tuple(Term(rules, function, sign, logit) for (sign, function, logit), rules in found.items())
