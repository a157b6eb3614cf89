"""A batch with fewer negatives: random ones, or those with the highest or the lowest loss."""

from collections.abc import Mapping

import numpy as np

from siglip_ref.model.loss import LossAndGrads, weighted_loss
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.training.settings import Settings


def kept_negatives(logits: Array, count: int, kind: str, rng: np.random.Generator) -> Array:
    """Which of the pairs off the diagonal count, bool (B, B): "random", "hard" (highest logit) or "easy" ones.

    Of a whole batch, not of each row: the paper gives a ratio of pairs.

    Source: arXiv 2303.15343, section 4.8.

    >>> kept_negatives(np.array([[0.0, 3.0], [2.0, 0.0]]), 1, "hard", np.random.default_rng(0))
    array([[False,  True],
           [False, False]])
    """
    places = np.flatnonzero(~np.eye(len(logits), dtype=bool))
    order = rng.permutation(len(places)) if kind == "random" else logits.reshape(-1)[places].argsort(kind="stable")
    chosen = order[-count:] if kind == "hard" else order[:count]
    kept = np.zeros(logits.size, bool)
    kept[places[chosen]] = True
    return kept.reshape(logits.shape)


def masked_loss(
    x: Array, y: Array, params: Mapping[str, Array], settings: Settings, number: int, ops: Ops
) -> LossAndGrads:
    """The sigmoid loss with so many negatives for each positive; number : of the batch, for the random ones."""
    rng = np.random.default_rng([settings.seed, 5, number])
    pairs = len(x)
    count = min(round(settings.negatives * pairs), pairs * (pairs - 1))
    kept = kept_negatives(x @ y.T, count, settings.kept, rng)  # scale and bias change no order
    positive = np.eye(pairs, dtype=x.dtype)
    return weighted_loss(x, y, params["log_scale"], params["bias"], positive, kept.astype(x.dtype), ops=ops)
