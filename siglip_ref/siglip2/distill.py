"""Distillation: what the teacher says, as a distribution over prototypes, and how far the student is from it."""

from collections import namedtuple

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.siglip2.token_loss import log_sum_exp

CrossEntropyCache = namedtuple("CrossEntropyCache", "probability target temperature")


def centred(scores: Array, centre: Array, temperature: float, *, ops: Ops) -> Array:
    """The teacher's distribution: softmax((scores - centre) / temperature). Nobody's gradient goes through it.

    Parameters
    ----------
    scores : array, shape (..., K), the teacher's
    centre : array, shape (K,), as it was before this step
    temperature : below the student's

    Source: Caron et al. 2021 (DINO), section 3.1; main_dino.py, DINOLoss.
    """
    return ops.softmax.forward((scores - centre) / temperature)[0]


def sinkhorn(scores: Array, temperature: float, rounds: int) -> Array:
    """share = exp(scores / temperature), by turns columns divided by K times their sum, rows by B times theirs.

    The other normaliser: prototypes are used alike, and in the end B share has rows that sum to one.

    Parameters
    ----------
    scores : array, shape (B, K), the rows of all ranks
    temperature : of the teacher
    rounds : DINOv2's 3; rows sum to one after each, prototypes to B / K only in the limit

    The one maximum that is subtracted is that of all rows: a maximum of each row would change the result.

    Source: DINOv2 loss/dino_clstoken_loss.py, sinkhorn_knopp_teacher.

    Examples
    --------
    >>> sinkhorn(np.array([[2.0, 0.0], [2.0, 0.0]]), 1.0, 3)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    rows, prototypes = scores.shape
    share = np.exp((scores - scores.max(0).max()) / temperature)
    share = share / share.sum()
    for _ in range(rounds):
        share = share / share.sum(0) / prototypes
        share = share / share.sum(1, keepdims=True) / rows
    return share * rows


def cross_entropy_forward(scores: Array, target: Array, temperature: float) -> tuple[Array, CrossEntropyCache]:
    """out = -sum_k target_k log softmax(scores / temperature)_k.

    Parameters
    ----------
    scores : array, shape (..., K), the student's
    target : array, broadcast to scores, rows that sum to one: a constant
    temperature : of the student

    Returns
    -------
    out : array, shape (...), never below the target's entropy, and equal to it where both agree
    """
    scaled = scores / temperature
    log_probability = scaled - log_sum_exp([scaled])[..., None]
    return -(target * log_probability).sum(-1), CrossEntropyCache(np.exp(log_probability), target, temperature)


def cross_entropy_backward(d_out: Array, cache: CrossEntropyCache) -> Array:
    """Gradient of `cross_entropy_forward`: d_scores (..., K), whose rows sum to zero."""
    probability, target, temperature = cache
    # out = log sum exp(scores / temperature) - target . scores / temperature
    return d_out[..., None] * (probability - target) / temperature
