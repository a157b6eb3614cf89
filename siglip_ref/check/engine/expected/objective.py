"""What a loss computes of unit rows, the scale's logarithm and the bias: SigLIP's loss, or CLIP's softmax loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from siglip_ref.check.engine.expected.probes import ONE, Point
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.specification import chosen
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops

LossKind = Literal["sigmoid", "softmax"]


@dataclass(frozen=True)
class Objective:
    """What is declared of a loss. bias: whether it is given one; softmax does not see it."""

    kind: LossKind = "sigmoid"
    bias: bool = True

    @property
    def plain(self) -> bool:
        """SigLIP's own, of which diagnosis knows most."""
        return self == SIGMOID

    def computed(
        self, images: Array, texts: Array, log_scale: Array, bias: Array, *, ops: Ops | None = None, tiles: int = 1
    ) -> LossAndGrads:
        """Loss and gradients of unit rows, in any arithmetic.

        Parameters
        ----------
        ops : another record than the specification's; tiles : of a side, where the loss can be cut
        """
        if self.kind == "sigmoid":
            return sigmoid_loss(images, texts, log_scale, bias, tile=-(-len(images) // tiles), ops=ops)
        # to give every logit the same bias changes nothing but their rounding, which a form of its own measures
        form: dict[str, Any] = {"bias": bias} if self.bias and getattr(ops, "form_of_loss", None) else {}
        loss, d_images, d_texts, d_log_scale = chosen(ops).softmax_loss(images, texts, log_scale, **form)
        return LossAndGrads(loss, d_images, d_texts, d_log_scale, 0 * d_log_scale)

    def points(self, standard: Sequence[Point]) -> tuple[Point, ...]:
        """Those of the standard ones at which it says something: the softmax of a single logit is 1, whatever it is."""
        return tuple(point for point in standard if self.kind == "sigmoid" or point.shape != ONE)

    @property
    def kin(self) -> "tuple[Objective, ...]":
        """Others that a loss of the same arguments may compute, and that are no mistake."""
        return (SIGMOID,) if self.kind == "softmax" and self.bias else ()

    @property
    def measured(self) -> "Objective":
        """The one of which noise is measured: softmax with a bias, which is as good as without."""
        return replace(self, bias=True) if self.kind == "softmax" else self

    def __str__(self) -> str:
        """Part of a key of measured noise."""
        return self.kind


SIGMOID, SOFTMAX = Objective(), Objective("softmax")
