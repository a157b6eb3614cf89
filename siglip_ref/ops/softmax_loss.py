"""CLIP's softmax loss, the baseline: its gradients need every logit's row and column sums first."""

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops


def softmax_loss(
    image_embed: Array, text_embed: Array, log_scale: Array, *, ops: Ops
) -> tuple[Array, Array, Array, Array]:
    """Mean of the two cross-entropies, image to text and text to image, and all gradients.

    Parameters
    ----------
    image_embed, text_embed : array, shape (B, D), unit rows; row i of both belong together
    log_scale : 0-d array; logits = exp(log_scale) * similarity

    Returns
    -------
    loss, d_image_embed, d_text_embed, d_log_scale

    Source: Radford et al. 2021 (CLIP), figure 3.
    """
    scale = np.exp(log_scale)
    similarity = image_embed @ text_embed.T  # (B, B)
    logits = scale * similarity
    pairs = len(logits)
    own = np.eye(pairs, dtype=bool)

    # loss = mean over i of (lse of row i + lse of column i) / 2 - logits_ii
    by_row, _ = ops.softmax.forward(logits)
    by_column = ops.softmax.forward(logits.T)[0].T
    loss = ((_log_sum_exp(logits) + _log_sum_exp(logits.T)) / 2 - logits[own]).sum() / pairs
    # the derivative of a log-sum-exp is the softmax
    d_logits = ((by_row + by_column) / 2 - own) / pairs

    # logits = scale * image_embed @ text_embed.T
    d_log_scale = (d_logits * similarity).sum() * scale
    d_image_embed = scale * (d_logits @ text_embed)
    d_text_embed = scale * (d_logits.T @ image_embed)
    return loss, d_image_embed, d_text_embed, d_log_scale


def _log_sum_exp(x: Array) -> Array:
    """log of the sum of exp over the last axis, without overflow."""
    top = x.max(-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(x - top).sum(-1))
