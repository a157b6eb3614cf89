"""What the stated loss is at a probe's stated numbers, rounded once to float64: every digit the judge relies on.

The specification runs in double-double, on the rows as they are: nothing is assumed of their lengths. `proven` runs it
in balls instead, and stops at the same float64 numbers: tests hold the two to equal bits at every standard probe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from siglip_ref.arithmetic.double_double import double_double
from siglip_ref.check.expected.probes import Probe
from siglip_ref.check.expected.repeated import Repeated, repeated_loss
from siglip_ref.model.loss import LossAndGrads, sigmoid_loss
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.normalize import NormKind, normalize_backward, normalize_forward

ScaleKind = Literal["log", "linear"]
EmbeddingKind = Literal["unit", "raw"]


# Products of a probe, up to which its truth is always right to the last bit of float64: all of the standard ones.
PROVEN_UP_TO = 2**18


@dataclass(frozen=True)
class Convention:
    """What a loss is given. scale: the logarithm, or the scale itself; embeddings: unit rows, or any rows, which it
    normalises; norm: how it then guards the division (of no interest for unit rows)."""

    scale: ScaleKind
    embeddings: EmbeddingKind
    norm: NormKind = "none"

    @property
    def eps(self) -> float:
        """What the guard adds to a row's length."""
        return 1e-8 if self.norm == "additive" else 0.0


@lru_cache(maxsize=512)  # of a probe, which is made once, under each convention
def exact_loss(probe: Probe, convention: Convention, coarse: bool = False) -> LossAndGrads:
    """Loss and gradients by the numbers the function is given; by the scale itself, if that is what it is given.

    Parameters
    ----------
    coarse : nothing finer than float32 is held to it: float64 will do at shapes that a kernel's dims ask for
    """
    coarse = coarse and not isinstance(probe, Repeated) and probe.shape[0] ** 2 * probe.shape[1] > PROVEN_UP_TO
    arithmetic = np.asarray if coarse else double_double
    with np.errstate(all="ignore"):
        found = LossAndGrads(*(np.asarray(value, np.float64) for value in _loss_in(arithmetic, probe, convention)))
    for value in found:
        value.flags.writeable = False
    return found


def proven(probe: Probe, convention: Convention) -> LossAndGrads:
    """The same by balls: no other float64 number is nearer to the exact value. Needs python-flint.

    Raises
    ------
    UndecidedError : a value that is zero by structure, or lies in the middle between two float64 numbers

    Examples
    --------
    >>> from siglip_ref.check.expected.probes import POINTS, loss_probes
    >>> probe = loss_probes(POINTS[:1], None, "float64", "float64")[0][0]
    >>> plain = Convention("log", "unit")
    >>> bool(proven(probe, plain).loss == exact_loss(probe, plain).loss)
    True
    """
    from siglip_ref.arithmetic.ball import balls, certify

    found = certify(lambda: _loss_in(balls, probe, convention)._asdict())
    return LossAndGrads(*(found[name].value for name in LossAndGrads._fields))


def _loss_in(arithmetic: Callable[[Any], Array], probe: Probe, convention: Convention) -> LossAndGrads:
    """arithmetic: makes its numbers of float64 ones."""
    linear = convention.scale == "linear"
    scale: Array = arithmetic(np.asarray(probe.scale))
    log_scale = np.log(scale) if linear else arithmetic(np.asarray(probe.log_scale))
    bias, norm = arithmetic(np.asarray(probe.bias)), convention.norm if convention.embeddings == "raw" else None
    if isinstance(probe, Repeated):
        images, texts = (arithmetic(rows) for rows in probe.rows)
        found = repeated_loss(images, texts, log_scale, bias, probe.order, norm, convention.eps)
    else:
        images, texts = arithmetic(probe.image_embed), arithmetic(probe.text_embed)
        caches: list[Any] = []
        if norm:
            (images, one), (texts, other) = (normalize_forward(x, norm, convention.eps) for x in (images, texts))
            caches = [one, other]
        found = sigmoid_loss(images, texts, log_scale, bias)
        if caches:
            by_rows = (found.d_image_embed, found.d_text_embed)
            d_x, d_y = (normalize_backward(d, cache) for d, cache in zip(by_rows, caches, strict=True))
            found = found._replace(d_image_embed=d_x, d_text_embed=d_y)
    return found._replace(d_log_scale=found.d_log_scale / scale) if linear else found
