"""The image encoder as a classifier: a linear layer on its unit embeddings, and their cross entropy."""

from collections.abc import Mapping

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.ops.softmax import softmax_forward
from siglip_ref.training.gradient import SIDES
from siglip_ref.use.search.classifier import logits_of


def head(classes: int, cfg: Config, dtype: np.dtype[np.generic]) -> Params:
    """A layer that knows nothing yet."""
    return {"head/kernel": np.zeros((cfg.embed, classes), dtype), "head/bias": np.zeros(classes, dtype)}


def calibrating_scale(logits: Array, labels: Array) -> float:
    """The factor of logits at which the probabilities of a softmax are worth their numbers (temperature scaling).

    It makes the mean of -log p(label) least, which has one minimum in the factor; found by halving the range in which
    its slope changes sign, between 1/1000 and 1000.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """
    exact, rows = logits.astype(np.float64), np.arange(len(labels))
    low, high = -3.0, 3.0
    for _ in range(50):
        scale = 10.0 ** ((low + high) / 2)
        chances, _ = softmax_forward(scale * exact)
        slope = float(((chances * exact).sum(1) - exact[rows, labels]).mean())
        low, high = ((low + high) / 2, high) if slope < 0 else (low, (low + high) / 2)
    return float(10.0 ** ((low + high) / 2))


def classifier_gradient(
    params: Mapping[str, Array],
    images: Array,
    labels: Array,
    pairs: int,
    cfg: Config,
    ops: Ops,
    micro: int,
    side: str,
) -> tuple[float, Params]:
    """This rank's share of the mean cross entropy of all ranks' pictures, and what it adds to the gradients.

    Parameters
    ----------
    images, labels : this rank's
    pairs : of all ranks
    micro : pictures computed at once (0: all); they need nothing of one another
    side : a name in `siglip_ref.training.gradient.SIDES`
    """
    loss, grads = 0.0, dict[str, Array]()
    for start in range(0, len(images), micro or len(images)):
        rows = slice(start, start + (micro or len(images)))
        embed, backward = SIDES[side][0](params, images[rows], cfg, ops)
        right = np.eye(params["head/bias"].size, dtype=bool)[labels[rows]]  # (b, classes)
        chances, _ = softmax_forward(logits_of(params, embed))
        loss -= float(np.log(chances[right]).sum()) / pairs
        # the derivative of a cross entropy: chances minus the truth
        d_logits = (chances - right) / pairs
        # logits = sqrt(D) * embed @ kernel + bias
        d_scaled = np.sqrt(embed.shape[1]).astype(embed.dtype) * d_logits
        part = backward(d_scaled @ params["head/kernel"].T)
        part |= {"head/kernel": embed.T @ d_scaled, "head/bias": d_logits.sum(0)}
        grads |= {name: grads[name] + g if name in grads else g for name, g in part.items()}
    return loss, grads
