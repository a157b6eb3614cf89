"""What is declared of a loss. `Objective`: what it computes of unit rows, SigLIP's loss, a variant of it, or CLIP's.
`Convention`: what it is given, unit rows or any rows, the scale or its logarithm; the one place where that is applied.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from siglip_ref.arithmetic.variants import Variant, pair_block
from siglip_ref.check.engine.expected.probes import ONE, SOFTMAX_POINTS, Point
from siglip_ref.model.loss import sigmoid_loss, weighted_loss
from siglip_ref.model.specification import chosen
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.normalize import NormKind, normalize_backward, normalize_forward
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops, Pair

LossKind = Literal["sigmoid", "softmax"]
Reduction = Literal["batch", "mean"]
Positives = Literal["own", "ids", "captions"]
PerPair = Literal["pairs", "rows", "columns"]
Weights = PerPair | tuple[float, float] | None


class Counts(NamedTuple):
    """How often each pair counts as one that belongs together, and as one that does not; (B, M) each."""

    positive: Array
    negative: Array


@dataclass(frozen=True)
class Objective:
    """What is declared of a loss.

    bias : whether it is given one; softmax does not see it
    reduction : the sum over all pairs is divided by B, or by their number, B * M
    positives : "ids", pairs whose ids are equal belong together; fn is given the ids; "captions", an image belongs to
        every text that is equal to one of its own; fn finds them
    weights : of pairs, rows or columns, which fn is given; or of all positives and of all negatives; None: 1
    smoothing : labels are 1 - smoothing / 2 and smoothing / 2
    per_image : captions of each image, side by side: M = per_image * B texts
    """

    kind: LossKind = "sigmoid"
    bias: bool = True
    reduction: Reduction = "batch"
    positives: Positives = "own"
    weights: Weights = None
    smoothing: float = 0.0
    per_image: int = 1

    @property
    def plain(self) -> bool:
        """SigLIP's own, of which diagnosis knows most."""
        return self == SIGMOID

    @property
    def labelled(self) -> bool:
        """Whether pairs count otherwise than in SigLIP's own."""
        return self != Objective(self.kind, self.bias, self.reduction)

    @property
    def ships(self) -> bool:
        """Whether its noise at the standard probes was measured for everybody."""
        return self in (SIGMOID, SOFTMAX)

    @property
    def extras(self) -> tuple[str, ...]:
        """What fn is given behind the bias."""
        ids = ("ids", "text_ids")[: 1 + (self.per_image > 1)] if self.positives == "ids" else ()
        return ids + (("weights",) if isinstance(self.weights, str) else ())

    def extra(self, name: str, pairs: int) -> Array:
        """What fn is given of this name, with so many images."""
        if name == "weights":
            return weights_of(self.weights, pairs, pairs * self.per_image)  # type: ignore[arg-type]  # else there are none
        return ids_of(pairs) if name == "ids" else text_ids_of(pairs, self.per_image)

    @property
    def kin(self) -> "tuple[Objective, ...]":
        """Others that a loss of the same arguments may compute, and that are no mistake."""
        alike = self.bias and self.per_image == 1 and not self.extras
        return (SIGMOID,) if alike and not self.plain else ()

    @property
    def measured(self) -> "Objective":
        """The one of which noise is measured: softmax with a bias, which is as good as without."""
        return replace(self, bias=True) if self.kind == "softmax" else self

    def points(self, standard: Sequence[Point]) -> tuple[Point, ...]:
        """Those of the standard ones at which it says something, and its own: the softmax of a single logit is 1."""
        if self.kind == "sigmoid":
            return tuple(standard)
        return (*(point for point in standard if point.shape != ONE), *SOFTMAX_POINTS)

    def match(self, pairs: int, captions: Array) -> Array:
        """Which pairs belong together, of so many images; captions : the text rows as they are given."""
        if self.positives == "ids":
            return ids_of(pairs)[:, None] == text_ids_of(pairs, self.per_image)
        kinds = np.arange(pairs * self.per_image) // self.per_image
        if self.positives == "own":
            return np.arange(pairs)[:, None] == kinds
        kinds = np.unique(np.asarray(captions).view(np.ndarray) + 0.0, axis=0, return_inverse=True)[1].reshape(-1)
        found: Array = (kinds.reshape(pairs, -1, 1) == kinds).any(1)
        return found

    def counts(self, pairs: int, captions: Array) -> Counts:
        """Of a batch of so many."""
        match = self.match(pairs, captions)
        label = np.where(match, 1 - self.smoothing / 2, self.smoothing / 2)
        if isinstance(self.weights, tuple):
            return Counts(self.weights[0] * label, self.weights[1] * (1 - label))
        weights = np.ones(1) if self.weights is None else self.extra("weights", pairs)
        weights = weights[:, None] if self.weights == "rows" else weights
        return Counts(weights * label, weights * (1 - label))

    def computed(
        self,
        images: Array,
        texts: Array,
        log_scale: Array,
        bias: Array,
        *,
        captions: Array,
        ops: Ops | None = None,
        tiles: int = 1,
    ) -> LossAndGrads:
        """Loss and gradients of unit rows, in any arithmetic.

        Parameters
        ----------
        captions : the texts as numbers, before anything was done to them: of these, which are equal
        ops : another record than the specification's; tiles : of a side, where the loss can be cut
        """
        pairs, form = len(images), getattr(ops, "form_of_loss", None)
        if self.kind == "softmax":
            # to give every logit the same bias changes nothing but their rounding, which a form of its own measures
            given: dict[str, Any] = {"bias": bias} if self.bias and form else {}
            loss, d_images, d_texts, d_log_scale = chosen(ops).softmax_loss(images, texts, log_scale, **given)
            return LossAndGrads(loss, d_images, d_texts, d_log_scale, 0 * d_log_scale)
        bias = bias if self.bias else 0 * bias
        if self.reduction == "mean" and isinstance(ops, Variant) and form:  # what comes first may underflow
            ops = replace(ops, pair_block=pair_block(form[0], form[1], form[2], pairs * len(texts)))
        if self.labelled:
            found = weighted_loss(images, texts, log_scale, bias, *self.counts(pairs, captions), ops=ops)
        else:
            found = sigmoid_loss(images, texts, log_scale, bias, tile=-(-pairs // tiles), ops=ops)
        return self.reduced(found, pairs)

    def reduced(self, found: LossAndGrads, pairs: int) -> LossAndGrads:
        """The mean over all pairs, where that is declared, from the sum divided by B."""
        texts = pairs * self.per_image
        return found if self.reduction == "batch" else LossAndGrads(*(value / texts for value in found))

    def __str__(self) -> str:
        """Part of a key of measured noise."""
        return self.kind if self.ships else repr(self)


SIGMOID, SOFTMAX = Objective(), Objective("softmax")


def ids_of(pairs: int) -> Array:
    """Groups of different sizes, no indices.

    >>> ids_of(9).tolist()
    [5, 8, 17, 5, 26, 26, 5, 17, 8]
    """
    return 5 + 3 * (np.arange(pairs) ** 2 % pairs)


def text_ids_of(pairs: int, per_image: int) -> Array:
    """Of so many texts for each image: the images' own ids, which come again and again, not side by side.

    >>> text_ids_of(3, 2).tolist()
    [5, 8, 8, 5, 8, 8]
    """
    return np.tile(ids_of(pairs), per_image)


def weights_of(kind: PerPair, pairs: int, texts: int) -> Array:
    """Quarters from 0.25 to 1.75, so exact in every format: (B, M), not symmetric; or (B,), or (M,).

    >>> weights_of("rows", 4, 4).tolist()
    [0.25, 1.0, 1.75, 0.75]
    """
    rows, columns = 3 * np.arange(pairs), 5 * np.arange(texts)
    number = {"pairs": rows[:, None] + columns, "rows": rows, "columns": columns}[kind]
    return (1 + number % 7) / 4


ScaleKind = Literal["log", "linear"]
EmbeddingKind = Literal["unit", "raw"]
Loss = Callable[[Array, Array, Array, Array], LossAndGrads]

NORM_EPS = {"none": 0.0, "additive": 1e-8, "clamp": 1e-12}
NORMALIZE = Pair(normalize_forward, normalize_backward)


@dataclass(frozen=True)
class Convention:
    """What a loss is given. scale: the logarithm, or the scale itself; embeddings: unit rows, or any rows, which it
    normalises; norm: how it then guards the division (of no interest for unit rows); objective: what it computes."""

    scale: ScaleKind
    embeddings: EmbeddingKind
    norm: NormKind = "none"
    objective: Objective = SIGMOID

    @property
    def linear(self) -> bool:
        """Whether it is given the scale itself."""
        return self.scale == "linear"

    @property
    def normalises(self) -> NormKind | None:
        """How it normalises its rows; None: not at all."""
        return self.norm if self.embeddings == "raw" else None

    @property
    def scale_name(self) -> str:
        """What the gradient of the scale is called."""
        return "scale" if self.linear else "log_scale"

    def unit(self, rows: Array) -> "Unit":
        """What the loss works on."""
        return unit_rows(rows, self.normalises)


class Unit(NamedTuple):
    """Rows as a loss works on them, and what makes of their gradient that of the rows it was given."""

    rows: Array
    back: Callable[[Array], Array]


def unit_rows(rows: Array, norm: NormKind | None, normalize: Pair = NORMALIZE) -> Unit:
    """Normalised, unless they are unit already. normalize : in another arithmetic, or with a mistake."""
    if norm is None:
        return Unit(rows, lambda d_rows: d_rows)
    out, cache = normalize.forward(rows, norm, NORM_EPS[norm])
    return Unit(out, lambda d_rows: normalize.backward(d_rows, cache))


def as_given(
    loss: Loss,
    norm: NormKind | None,
    linear: bool,
    normalize: Pair = NORMALIZE,
    sides: tuple[bool, bool] = (True, True),
) -> Callable[[Array, Array, Any, Array], LossAndGrads]:
    """The loss as one that normalises its rows so first, and is given the scale itself.

    Parameters
    ----------
    loss : of unit rows, the scale's logarithm and the bias; in any arithmetic
    norm : None: rows are unit; linear : False: it is given the logarithm
    sides : whether images and texts are normalised
    """

    def given(images: Array, texts: Array, scale: Any, bias: Array) -> LossAndGrads:
        x, y = (
            unit_rows(rows, norm if side else None, normalize)
            for rows, side in zip((images, texts), sides, strict=True)
        )
        found = loss(x.rows, y.rows, np.log(scale) if linear else scale, bias)
        d_images, d_texts = x.back(found.d_image_embed), y.back(found.d_text_embed)
        of_scale = found.d_log_scale / scale if linear else found.d_log_scale
        return LossAndGrads(found.loss, d_images, d_texts, of_scale, found.d_bias)

    return given
