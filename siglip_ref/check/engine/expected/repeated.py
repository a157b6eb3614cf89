"""Batches of a real size made of few rows: 1,151 and 4,100 pairs, of 131 distinct ones.

Tiles have limits, sums grow, and what cancels in a small batch may not in a large one; but the exact gradients of 4,100
pairs are costly, unless most of them are equal. So 131 rows come again and again, 131 being prime, each time in another
order: every tile of 16 to 1,024 rows differs from every other, and a kernel that takes one for the other is seen.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from siglip_ref.check.engine.expected.probes import (
    COLD,
    WIDE_FORMATS,
    Dims,
    Point,
    Probe,
    fitted,
    make_scalars,
    read_dims,
)
from siglip_ref.check.engine.expected.rows import rows_of
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.ops.elementary import Array, sigmoid, softplus

Size = Literal["small", "real"]

DISTINCT = 131
MIDDLE = Point("a thousand pairs", (1151, 14), COLD, -10.5, full=True, hunts="tiles that drop what lies beyond")
REAL = Point("a real batch", (4100, 24), 1.46875, -8.9375, "close", full=True, hunts="sums that cancel; tiles")


@dataclass(frozen=True, eq=False)
class Repeated(Probe):
    """rows: the distinct images, and their texts; order: which of them each pair is."""

    rows: tuple[Array, Array] = ()  # type: ignore[assignment]
    order: Array = None


def repeated_probe(
    point: Point, dims: Dims = None, dtype: str = "bfloat16", scalar_dtype: str = "float32"
) -> Repeated | None:
    """The probe of MIDDLE or REAL; None where `dims` lists its shapes. Arguments as for `loss_probes`."""
    batch, dim, listed = read_dims(dims)
    return None if listed else _repeated(point, fitted(point.shape, batch, dim), dtype, scalar_dtype)


@lru_cache(maxsize=16)
def _repeated(point: Point, shape: tuple[int, int], dtype: str, scalar_dtype: str) -> Repeated:
    pairs, width = shape
    full = dtype if dtype in WIDE_FORMATS else None
    rng = np.random.Generator(np.random.PCG64([pairs, width, 2303]))
    rows = rows_of(point.texts, DISTINCT, width, full, rng)
    order = order_of(pairs)
    arrays = rows[0][order], rows[1][order]
    for array in (*rows, *arrays):
        array.flags.writeable = False
    return Repeated(point.name, *arrays, *make_scalars(point, pairs, full, scalar_dtype), rows, order)


def order_of(pairs: int) -> Array:
    """Row r of pass p is row r (p + 1) modulo 131: all of them in every pass, in an order that never comes again.

    >>> order_of(263)[[1, 2, 132, 133, 262]].tolist()
    [1, 2, 2, 4, 0]
    """
    passed, row = np.divmod(np.arange(pairs), DISTINCT)
    return row * (passed % (DISTINCT - 1) + 1) % DISTINCT


def repeated_loss(images: Array, texts: Array, log_scale: Array, bias: Array, order: Array) -> LossAndGrads:
    """B times `sigmoid_loss` of images[order] and texts[order], from one block of the distinct rows; gradients of one
    copy of each row.

    Parameters
    ----------
    images, texts : the distinct rows, in any arithmetic; log_scale, bias : numbers of it
    """
    counts = np.bincount(order, minlength=len(images)).astype(float)  # how often each row comes
    own = np.eye(len(images), dtype=bool)
    scale = np.exp(log_scale)
    similarity = images @ texts.T
    logits = scale * similarity + bias
    gate, missing = sigmoid(logits), np.where(own, sigmoid(-logits), 0)
    # what one copy of image i meets of text j: all its copies, and of its own text one as a match
    of_image = (counts - own) * gate - missing
    of_text = (counts[:, None] - own) * gate - missing
    loss = (counts[:, None] * ((counts - own) * softplus(logits) + np.where(own, softplus(-logits), 0))).sum()
    d_logits = counts[:, None] * of_image
    d_images, d_texts = scale * (of_image @ texts), scale * (of_text.T @ images)
    return LossAndGrads(loss, d_images, d_texts, scale * (d_logits * similarity).sum(), d_logits.sum())


def repeated_softmax(images: Array, texts: Array, log_scale: Array, bias: Array, order: Array) -> LossAndGrads:
    """The same of `softmax_loss`, which does not see the bias. Softmax takes one of equal texts as the own one."""
    counts = np.bincount(order, minlength=len(images)).astype(float)
    own = np.eye(len(images), dtype=bool)
    scale = np.exp(log_scale)
    similarity = images @ texts.T
    logits = scale * similarity
    # of one copy of image i each copy of text j, and the other way round
    by_row, of_rows = chances(logits, counts)
    by_column, of_columns = chances(logits.T, counts)
    both = (by_row + by_column.T) / 2
    loss = (counts * ((of_rows + of_columns) / 2 - np.where(own, logits, 0).sum(1))).sum()
    of_image, of_text = counts * both - own, counts[:, None] * both - own
    d_images, d_texts = scale * (of_image @ texts), scale * (of_text.T @ images)
    d_log_scale = scale * (counts[:, None] * of_image * similarity).sum()
    return LossAndGrads(loss, d_images, d_texts, d_log_scale, 0 * d_log_scale)


def chances(logits: Array, counts: Array) -> tuple[Array, Array]:
    """Softmax along the last axis, of one copy of each column, and the logarithm of the sum that it divides by."""
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - top)
    total = (counts * weights).sum(-1, keepdims=True)
    return weights / total, (top + np.log(total))[:, 0]
