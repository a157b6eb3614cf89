"""The heart of SigLIP: one rectangular block of image-text pairs, its loss and all its gradients."""

from typing import NamedTuple

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Function, Ops


class LossAndGrads(NamedTuple):
    """A loss and its gradients, each in the shape and arithmetic of what it belongs to."""

    loss: Array
    d_image_embed: Array
    d_text_embed: Array
    d_log_scale: Array
    d_bias: Array


def pair_block(
    image_embed: Array,
    text_embed: Array,
    log_scale: Array,
    bias: Array,
    match: Array,
    weights: Array | None = None,
    *,
    ops: Ops,
) -> LossAndGrads:
    """Sigmoid loss of one block of image-text pairs, and all its gradients.

    Parameters
    ----------
    image_embed : array, shape (Bi, D), unit rows
    text_embed : array, shape (Bt, D), unit rows
    log_scale, bias : 0-d arrays; logits = exp(log_scale) * similarity + bias
    match : array of bool, shape (Bi, Bt): which pairs belong together (a remote block has none)
    weights : array, shape (Bi, Bt): how often each pair counts; None: once, which is SigLIP's loss

    Returns
    -------
    LossAndGrads: the sum over the block's pairs (the caller divides by the number of images), and its gradients

    Source: arXiv 2303.15343, algorithm 1. The blocks need nothing from one another: that is why the loss can travel.
    """
    softplus, sigmoid = _counted(ops.softplus, weights), _counted(ops.sigmoid, weights)
    scale = np.exp(log_scale)
    similarity = image_embed @ text_embed.T  # (Bi, Bt)
    logits = scale * similarity + bias

    # loss = sum softplus(-+logits): minus where the pair belongs together
    loss = softplus(np.where(match, -logits, logits)).sum()
    d_logits = np.where(match, -sigmoid(-logits), sigmoid(logits))

    # logits = scale * similarity + bias
    d_bias = d_logits.sum()
    d_log_scale = (d_logits * similarity).sum() * scale
    # similarity = image_embed @ text_embed.T
    d_image_embed = scale * (d_logits @ text_embed)
    d_text_embed = scale * (d_logits.T @ image_embed)
    return LossAndGrads(loss, d_image_embed, d_text_embed, d_log_scale, d_bias)


def _counted(of_pairs: Function, weights: Array | None) -> Function:
    """What is computed of every pair, as often as it counts: the loss and the logits' gradient are linear in it."""
    return of_pairs if weights is None else lambda logits: weights * of_pairs(logits)
