"""Online curation: of a large batch the pairs that the learner can still learn and a better model has learnt."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.siglip2.record import Recipe

First = Literal["uniform", "diagonal"]


def pair_losses(image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, *, ops: Ops) -> Array:
    """out_ij = softplus(-+(exp(log_scale) x_i . y_j + bias)), minus where i = j: the sigmoid loss of each pair, (G, G).

    Its sum divided by G is the loss of the batch.
    """
    logits = np.exp(log_scale) * (image_embed @ text_embed.T) + bias
    return ops.softplus(np.where(np.eye(len(logits), dtype=bool), -logits, logits))


def learnability(learner: Sequence[Array], teacher: Sequence[Array], *, ops: Recipe) -> Array:
    """scores = loss of the learner - loss of the teacher, pair by pair, (G, G).

    Parameters
    ----------
    learner, teacher : image_embed, text_embed, log_scale, bias of each: every model has a scale and a bias of its own

    Summed over the pairs of a batch and divided by its size, this is the difference of the two losses of that batch.

    Source: Evans et al. 2024 (JEST), section 3.1; arXiv 2502.14786, section 2.5.
    """
    return ops.pair_losses(*learner) - ops.pair_losses(*teacher)


def choose(scores: Array, count: int, noise: Array, first: First, divided: bool) -> Array:
    """Round by round the largest of gain + noise, gain_i = S_ii + sum over k that are chosen of S_ki + S_ik.

    Without replacement. The gain is what the chosen batch's sum of scores grows by with i; examples of one chunk do not
    see each other.

    Parameters
    ----------
    scores : array, shape (G, G), of images (rows) with texts
    count : how many are chosen, as many in each round: computed in floating point a chunk can fall one short
    noise : array, shape (n, G), Gumbel's: with it, the largest sums are a draw in proportion to exp of the scores.
        Nothing else here is random
    first : the first chunk, before any is chosen, is drawn "uniform", or in proportion to the "diagonal" less its
        minimum; not published
    divided : whether a round's scores are divided by 2 len(chosen) + 1; not published

    Returns
    -------
    chosen : int array, shape (count,), in the order in which they were drawn

    Source: Evans et al. 2024 (JEST), algorithm 1.

    Examples
    --------
    >>> scores = np.diag([5.0, 1.0, 4.0, 2.0])
    >>> choose(scores, 2, np.array([[0.0, 9.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]]), "uniform", False)
    array([1, 0])
    """
    rounds = len(noise)
    if count > len(scores) or count % rounds:
        raise UsageError(
            expected=f"a multiple of {rounds}, the rows of noise, up to {len(scores)}",
            got=f"count={count}",
            cause="each round chooses as many as every other, and an example is chosen once at most",
            repair="another count, another number of rounds, or a larger batch to choose from",
        )
    chunk = count // rounds
    own = np.diagonal(scores)
    chosen = np.zeros(0, int)
    for gumbel in noise:
        gain = own + scores[chosen].sum(0) + scores[:, chosen].sum(1)
        gain = gain / (2 * len(chosen) + 1) if divided else gain
        if not len(chosen):
            with np.errstate(divide="ignore"):  # the least of the diagonal is never drawn first
                gain = 0 * own if first == "uniform" else np.log(own - own.min())
        gain = np.where(np.isin(np.arange(len(scores)), chosen), -np.inf, gain)
        chosen = np.concatenate([chosen, np.argsort(-(gain + gumbel), kind="stable")[:chunk]])
    return chosen
