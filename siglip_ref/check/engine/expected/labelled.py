"""A large batch of a declared variant: labels and weights have places, the rows are few.

All logits are those of the distinct rows. How often one copy of a row counts with each distinct row of the other side
is a matrix, so every copy has a gradient of its own. Its noise is that of the plain loss at the same row, times how
much more there is to add up.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.check.engine.expected.convention import SIGMOID, Counts, Objective
from siglip_ref.check.engine.expected.repeated import Repeated
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise.measure import Noise
from siglip_ref.ops.elementary import Array, sigmoid, softplus

MOST = 2**25  # pairs, whose weights are numbers in memory
TIMES = 2.0  # what is allowed beside the plain loss's noise: other forms, and other orders of a larger sum


class Met(NamedTuple):
    """Weights of the pairs that belong together and of the rest: of one copy of a row with each distinct one."""

    of_image: Counts  # (B, distinct texts)
    of_text: Counts  # (distinct images, M)
    of_both: Counts  # (distinct images, distinct texts)


@lru_cache(maxsize=2)  # tens of megabytes each
def met(probe: Repeated, objective: Objective) -> Met:
    """Of all copies; whole numbers or quarters, so exact."""
    weights = objective.weights if isinstance(objective.weights, str) else None
    counts = replace(objective, smoothing=0.0, weights=weights).counts(len(probe.order), probe.text_embed)
    texts = np.eye(len(probe.rows[1]))[text_order(probe)]
    images = np.eye(len(probe.rows[0]))[probe.order]
    of_image, of_text = Counts(*(part @ texts for part in counts)), Counts(*(images.T @ part for part in counts))
    return Met(of_image, of_text, Counts(*(images.T @ part for part in of_image)))


def text_order(probe: Repeated) -> Array:
    """Which of the distinct texts each one is."""
    per_image = len(probe.rows[1]) // len(probe.rows[0])
    return (probe.order[:, None] * per_image + np.arange(per_image)).reshape(-1)


def labelled(objective: Objective, weights: Counts, arithmetic: Callable[[Any], Array]) -> Counts:
    """How often each counts as one that belongs together, and as one that does not: by smoothing and two weights."""
    alone = objective.weights if isinstance(objective.weights, tuple) else None
    of_two = Objective(smoothing=objective.smoothing, weights=alone).counts(2, np.empty((2, 0)))
    matching, rest = (arithmetic(part) for part in weights)
    return Counts(*(matching * kind[0, 0] + rest * kind[0, 1] for kind in of_two))


def labelled_loss(
    probe: Repeated, objective: Objective, arithmetic: Callable[[Any], Array]
) -> Callable[..., LossAndGrads]:
    """The sum over all pairs divided by the images, given all rows of the batch; as `Objective.computed` gives it.

    Parameters
    ----------
    arithmetic : makes its numbers of float64 ones
    """
    of_image, of_text, of_both = (labelled(objective, part, arithmetic) for part in met(probe, objective))
    orders = probe.order, text_order(probe)
    firsts = [np.unique(order, return_index=True)[1] for order in orders]

    def loss(images: Array, texts: Array, log_scale: Array, bias: Array) -> LossAndGrads:
        scale, some, others = np.exp(log_scale), images[firsts[0]], texts[firsts[1]]
        similarity = some @ others.T
        logits = scale * similarity + bias
        gate, missing = sigmoid(logits), sigmoid(-logits)
        by_image = of_image.negative * gate[orders[0]] - of_image.positive * missing[orders[0]]
        by_text = of_text.negative * gate[:, orders[1]] - of_text.positive * missing[:, orders[1]]
        d_logits = of_both.negative * gate - of_both.positive * missing
        value = (of_both.positive * softplus(-logits) + of_both.negative * softplus(logits)).sum()
        d_images, d_texts = scale * (by_image @ others), scale * (by_text.T @ some)
        sums = value, d_images, d_texts, scale * (d_logits * similarity).sum(), d_logits.sum()
        return LossAndGrads(*(part / len(images) for part in sums))

    return loss


def unlabelled(objective: Objective) -> Objective:
    """The same loss of which every pair counts once."""
    return replace(SIGMOID, bias=objective.bias, reduction=objective.reduction)


@lru_cache(maxsize=64)
def plain_of(probe: Repeated) -> Repeated:
    """The probe with one text of each image."""
    per_image = len(probe.rows[1]) // len(probe.rows[0])
    return replace(probe, text_embed=probe.text_embed[::per_image], rows=(probe.rows[0], probe.rows[1][::per_image]))


def more_to_add_up(noise: Noise, probe: Repeated, objective: Objective) -> Noise:
    """The noise of a variant, by row, from that of the loss `unlabelled` at `plain_of` the probe: as much more as the
    sizes of its terms are."""
    here, there = _sizes(probe, objective), _sizes(plain_of(probe), unlabelled(objective))
    share = TIMES / (objective.per_image if objective.reduction == "mean" else 1)
    found = {}
    for name, level in noise.absolute.items():
        per_size = level / there[name]
        per_size = np.repeat(per_size, objective.per_image, 0) if name == "d_text_embed" else per_size
        found[name] = share * per_size * here[name]
    return Noise(found, noise.overflows)


def _sizes(probe: Repeated, objective: Objective) -> dict[str, Array]:
    """Sums of the sizes of what is added up: a number, or one of each row."""
    of_image, of_text, of_both = (labelled(objective, part, np.asarray) for part in met(probe, objective))
    similarity = probe.rows[0] @ probe.rows[1].T
    logits = np.exp(probe.log_scale) * similarity + (probe.bias if objective.bias else 0.0)
    gate, missing = sigmoid(logits), sigmoid(-logits)
    order, texts = probe.order, text_order(probe)
    both = of_both.positive * missing + of_both.negative * gate
    return {
        "loss": (of_both.positive * softplus(-logits) + of_both.negative * softplus(logits)).sum(),
        "d_image_embed": (of_image.positive * missing[order] + of_image.negative * gate[order]).sum(1)[:, None],
        "d_text_embed": (of_text.positive * missing[:, texts] + of_text.negative * gate[:, texts]).sum(0)[:, None],
        "d_log_scale": (both * np.abs(similarity)).sum(),
        "d_bias": both.sum(),
    }
