"""What a loss is given: unit rows, or any rows, which it normalises; the scale, or its logarithm. The one place where
that is applied: around a loss of unit rows and the scale's logarithm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from siglip_ref.check.engine.expected.objective import SIGMOID, Objective
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.normalize import NormKind, normalize_backward, normalize_forward
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Pair

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
