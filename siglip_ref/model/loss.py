"""The loss as it is called; what a fresh model's loss should be."""

import math
from types import ModuleType

import numpy as np

from siglip_ref.architecture.validate import require_embeddings
from siglip_ref.errors import UsageError
from siglip_ref.model.specification import chosen
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops
from siglip_ref.ops.reproducible import blocks

__all__ = ["LossAndGrads", "expected_loss", "sigmoid_loss", "weighted_loss"]


def sigmoid_loss(
    image_embed: Array,
    text_embed: Array,
    log_scale: Array,
    bias: Array,
    *,
    tile: int | None = None,
    deterministic: bool = False,
    ops: Ops | ModuleType | None = None,
) -> LossAndGrads:
    """The sigmoid loss of B pairs and all its gradients: the sum over all pairs, divided by B.

    Parameters
    ----------
    image_embed, text_embed : array, shape (B, D), unit rows; row i of both belong together
    log_scale, bias : numbers; logits = exp(log_scale) * image_embed @ text_embed.T + bias
    tile : rows and columns of a block (None: one block); changes memory and the order of summation, nothing else
    deterministic : bits that do not depend on tiles, threads and ranks; see `siglip_ref.ops.reproducible.blocks`, which
        is slower
    ops : the operations: `siglip_ref.ops`, the specification (default), or a twin: `siglip_ref.fast`

    Returns
    -------
    LossAndGrads, in the arithmetic of the embeddings

    Source: arXiv 2303.15343, algorithm 1.

    Examples
    --------
    >>> eye = np.eye(3)
    >>> round(float(sigmoid_loss(eye, eye, math.log(10.0), -10.0).loss), 6)
    0.693238
    """
    require_embeddings(image_embed, text_embed)
    log_scale, bias = _scalar(log_scale, image_embed), _scalar(bias, image_embed)
    operations = chosen(ops)
    if deterministic:
        return blocks.sigmoid_loss(image_embed, text_embed, log_scale, bias, operations)
    found: LossAndGrads = operations.sigmoid_loss(image_embed, text_embed, log_scale, bias, tile=tile)
    return found


def weighted_loss(
    image_embed: Array,
    text_embed: Array,
    log_scale: Array,
    bias: Array,
    positive: Array,
    negative: Array,
    *,
    ops: Ops | ModuleType | None = None,
) -> LossAndGrads:
    """The sigmoid loss of images and texts with labels and weights, and all its gradients, divided by the images.

    loss = sum over pairs of positive * -log sigmoid(logit) + negative * -log sigmoid(-logit), over Bi. SigLIP's own has
    positive = I and negative = 1 - I; a soft label y makes a pair y positives and 1 - y negatives.

    Parameters
    ----------
    image_embed, text_embed : array, shapes (Bi, D), (Bt, D), unit rows; the other numbers as for `sigmoid_loss`
    positive, negative : array of float, shape (Bi, Bt): how often each pair counts as one that belongs together, and as
        one that does not
    """
    log_scale, bias = _scalar(log_scale, image_embed), _scalar(bias, image_embed)
    block, match = chosen(ops).pair_block, positive >= negative
    less: Array = np.where(match, negative, positive)
    found = block(image_embed, text_embed, log_scale, bias, match, np.where(match, positive, negative))
    if less.any():
        rest = block(image_embed, text_embed, log_scale, bias, ~match, less)
        found = LossAndGrads(*(one + other for one, other in zip(found, rest, strict=True)))
    return LossAndGrads(*(value / len(image_embed) for value in found))


def expected_loss(pairs: int, log_scale: float, bias: float, similarity: float = 0.0) -> float:
    """The loss of a model that gives every pair the same similarity: what a fresh model shows.

    Parameters
    ----------
    pairs : B, over all ranks
    log_scale, bias : the parameters, as stored
    similarity : of every pair; fresh towers give nearly 0, and then the scale does not matter

    Examples
    --------
    >>> round(expected_loss(32768, math.log(10), -10.0), 4)
    11.4876
    """
    if pairs < 1:
        raise UsageError("at least one pair", str(pairs), "an empty batch has no loss", "give the global batch size")
    logit = math.exp(log_scale) * similarity + bias
    return _softplus(-logit) + (pairs - 1) * _softplus(logit)


def _softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def _scalar(value: Array, like: Array) -> Array:
    """A 0-d array of the embeddings' arithmetic; shape (1,), as some models store it, is welcome."""
    if like.dtype == object:
        return value
    return np.asanyarray(value).astype(like.dtype if not np.iscomplexobj(value) else np.complex128).reshape(())
