"""The pairwise loss on kernels: `pair_block` and the whole `sigmoid_loss`."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.fast.kernels import binned
from siglip_ref.fast.kernels.pairs import LOST, sweep
from siglip_ref.fast.machine.blas import gemm_address
from siglip_ref.fast.machine.fit import rows_in_memory, same_precision
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.fast.machine.product import LEAST
from siglip_ref.fast.machine.tile import STRIP, VECTOR
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.model.loss import sigmoid_loss as whole_loss
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.reproducible import blocks

SIDE = 480  # of a tile: 0.9 MB in float32, which stays in a core's cache; whole strips of every vector's length
_DETERMINISTIC = replace(SPECIFICATION, meet=binned.meet, total=binned.total)


def pair_block(
    image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, match: Array, weights: Array | None = None
) -> LossAndGrads:
    """Twin of `siglip_ref.ops.pair_block`, which computes what has weights."""
    fits = image_embed.ndim == text_embed.ndim == 2 and image_embed.shape[1] == text_embed.shape[1]
    if weights is not None:
        return specification.pair_block(image_embed, text_embed, log_scale, bias, match, weights)
    if not fits or match.shape != (len(image_embed), len(text_embed)) or not same_precision(image_embed, text_embed):
        return specification.pair_block(image_embed, text_embed, log_scale, bias, match)
    rows, own = np.nonzero(match)
    offsets = np.searchsorted(rows, np.arange(len(image_embed) + 1))
    return _swept(image_embed, text_embed, log_scale, bias, offsets, own, 1, SIDE)


def sigmoid_loss(
    image_embed: Array,
    text_embed: Array,
    log_scale: Array,
    bias: Array,
    *,
    tile: int | None = None,
    deterministic: bool = False,
) -> LossAndGrads:
    """Twin of `siglip_ref.model.loss.sigmoid_loss`, which hands over to it.

    Needs one tile per thread (1 MB in float32), and of wide embeddings some texts in order (3 MB at 768), beyond inputs
    and gradients, at any B. Sums are kept in float64.
    """
    if deterministic:
        return blocks.sigmoid_loss(image_embed, text_embed, log_scale, bias, _DETERMINISTIC)
    fits = image_embed.ndim == 2 and image_embed.shape == text_embed.shape
    if not fits or not same_precision(image_embed, text_embed):
        return whole_loss(image_embed, text_embed, log_scale, bias, tile=tile)
    pairs, own = len(image_embed), np.arange(len(image_embed) + 1)
    return _swept(image_embed, text_embed, log_scale, bias, own, own[:-1], pairs, tile or SIDE)


def _strips(side: int, x: Array) -> tuple[int, int]:
    """The shape of strips, see `product.pack`, that hold so many rows of x, or their transpose; empty for BLAS."""
    width, lanes = x.shape[1], STRIP * VECTOR // x.itemsize
    wide = width >= LEAST
    return wide * max(-(-side // lanes) * width, -(-width // lanes) * side), lanes


def _swept(
    x: Array, y: Array, log_scale: Array, bias: Array, offsets: Array, own: Array, divisor: int, side: int
) -> LossAndGrads:
    x, y = rows_in_memory(x), rows_in_memory(y)
    kind: type[Any] = x.dtype.type
    with np.errstate(over="ignore"):  # an overflow shows in the results
        scale, bias = kind(np.exp(log_scale)), kind(bias)
    d_x, d_y = np.zeros_like(x), np.zeros_like(y)
    with parts_for(len(x) * len(y) * x.shape[1]) as number:
        side = min(side, max(len(x), len(y)))
        tiles = np.empty((number, side, side), kind)
        strips = np.zeros((number, 2, *_strips(side, x)), kind)
        sums = sweep(gemm_address(x.dtype), x, y, offsets, own, scale, bias, d_x, d_y, tiles, strips)
    alpha = kind(scale / divisor)
    for d in (d_x, d_y):
        if math.isfinite(alpha) and abs(alpha) >= np.finfo(kind).tiny:
            d *= alpha
        else:  # a product with zero, or beyond the numbers, has an answer of its own
            d *= scale
            d /= divisor
    total = sums.sum(0)
    lost = np.where(np.isfinite(total[LOST : 2 * LOST]), total[LOST : 2 * LOST], 0)
    loss, d_scale, d_bias = (total[:LOST] + lost) / divisor
    return LossAndGrads(kind(loss), d_x, d_y, kind(d_scale * scale), kind(d_bias))
