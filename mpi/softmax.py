"""The CLIP softmax loss on the same ring: why the sigmoid matters.

A softmax is normalised over the whole row and the whole column of pairs, so no gradient exists before every block
has been seen. The texts travel twice: 3(W-1) chunk-sized messages instead of 2(W-1), and W-1 small ones.
"""

from typing import NamedTuple

import numpy as np

from mpi.comm import Array, Communicator
from mpi.ring import ring


class SoftmaxLossAndGrads(NamedTuple):
    """The record of `mpi.loss`, without a bias."""

    loss: Array
    d_image_embed: Array
    d_text_embed: Array
    d_log_scale: Array


def ring_softmax_loss(
    comm: Communicator, image_embed: Array, text_embed: Array, log_scale: Array | float, sizes: list[int]
) -> SoftmaxLossAndGrads:
    """CLIP's loss of the global batch, the mean of the image-to-text and the text-to-image cross entropy.

    Parameters
    ----------
    comm, image_embed, text_embed, log_scale : as in `mpi.loss.ring_sigmoid_loss`; logits = exp(log_scale) * similarity
    sizes : every rank's number of pairs

    Source: arXiv 2103.00020, figure 3.
    """
    log_scale = np.asarray(log_scale, image_embed.dtype).reshape(())
    scale, pairs = np.exp(log_scale), sum(sizes)
    row_lse = np.full(len(image_embed), -np.inf, image_embed.dtype)

    def first_visit(owner: int, texts: Array) -> Array:
        """Log-sum-exp: of the rows at home, of the columns behind the texts."""
        nonlocal row_lse
        logits = scale * (image_embed @ texts.T)
        row_lse = np.logaddexp(row_lse, log_sum_exp(logits, 1))
        return log_sum_exp(logits, 0)[:, None]

    column_lse = ring(comm, text_embed, sizes, first_visit, np.logaddexp)

    sums = np.zeros(2, image_embed.dtype)  # loss, d_log_scale
    d_image_embed = np.zeros_like(image_embed)

    def second_visit(owner: int, texts_and_lse: Array) -> Array:
        """Now the gradients: the texts travel again, with the log-sum-exp of their column."""
        nonlocal d_image_embed, sums
        texts, lse = texts_and_lse[:, :-1], texts_and_lse[:, -1]
        logits = scale * (image_embed @ texts.T)
        match = np.eye(*logits.shape, dtype=logits.dtype) * (owner == comm.rank)
        d_logits = (np.exp(logits - row_lse[:, None]) + np.exp(logits - lse)) / 2 - match
        sums += np.stack([-(logits * match).sum(), (d_logits * logits).sum()])
        d_image_embed += scale * (d_logits @ texts)
        return scale * (d_logits.T @ image_embed)

    d_text_embed = ring(comm, np.hstack([text_embed, column_lse]), sizes, second_visit)

    sums[0] += (row_lse.sum() + column_lse.sum()) / 2
    totals = np.empty_like(sums)
    comm.Allreduce(sums, totals)
    loss, d_log_scale = totals / pairs
    return SoftmaxLossAndGrads(loss, d_image_embed / pairs, d_text_embed / pairs, d_log_scale)


def log_sum_exp(x: Array, axis: int) -> Array:
    """log of the sum of exp along an axis, without overflow; -inf where there is nothing to add."""
    top = x.max(axis, initial=np.finfo(x.dtype).min, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis)) + top.squeeze(axis)
