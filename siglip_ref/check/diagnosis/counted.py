"""A loss with labels or weights, in which pairs count otherwise than was declared: each way is tried at every probe."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.products import NEAR
from siglip_ref.check.engine.expected.convention import Convention, Objective, as_given
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen, distance
from siglip_ref.model.loss import LossAndGrads, weighted_loss
from siglip_ref.ops.elementary import Array
from siglip_ref.report.counted import Counted

_FINE = 3e-9  # of a tensor: a softplus that returns its input above 20 is off by 2e-9


def ways_of(objective: Objective) -> Iterator[Counted]:
    """All, the declared one first."""
    several, given = objective.per_image > 1, isinstance(objective.weights, str)
    matches = ["", *["own", "left out"] * (objective.positives != "own"), "opposite", *["one after another"] * several]
    weights = ["", *["none", *["transposed"] * (not several)] * given]
    divided = ["", "images" if objective.reduction == "mean" else "pairs", *["texts"] * several]
    yield from (Counted(*way) for way in product(matches, weights, divided))


def counted_otherwise(seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention) -> Counted | None:
    """The way that gives every tensor that was seen; None: none does, or more than one."""
    labels = {one.probe for one in seen}

    def fits(way: Counted) -> bool:
        for label in labels:
            made = _made(probes[label], convention, way)
            for one in (one for one in seen if one.probe == label):
                grown = np.abs(made[one.name]).max() / max(np.abs(one.exact).max(), 1e-300)
                far = float(np.abs(np.asarray(one.got) - made[one.name]).max())
                if far <= _FINE * np.abs(made[one.name]).max():
                    continue
                if not distance(one, made[one.name]) <= NEAR * max(1.0, float(grown)):
                    return False
        return True

    found = [way for way in ways_of(convention.objective) if fits(way)]
    return found[0] if len(found) == 1 else None


def _made(probe: Probe, convention: Convention, way: Counted) -> dict[str, Array]:
    objective = convention.objective
    images, texts = len(probe.image_embed), len(probe.text_embed)
    match = objective.match(images, probe.text_embed)
    own, image = np.arange(texts) // objective.per_image, np.arange(images)[:, None]
    weights: Array = np.ones(1)
    if way.match == "left out":
        weights, match = np.where(match & (image != own), 0.0, 1.0), image == own
    elif way.match == "opposite":
        match = ~match
    elif way.match:
        match = image == (own if way.match == "own" else np.arange(texts) % images)
    if isinstance(objective.weights, str) and way.weights != "none":
        given_weights = objective.extra("weights", images)
        given_weights = given_weights[:, None] if objective.weights == "rows" else given_weights
        given_weights = np.broadcast_to(given_weights, (images, texts))
        weights = weights * (given_weights.T if way.weights else given_weights)
    alone = objective.weights if isinstance(objective.weights, tuple) else None
    kinds_of = Objective(smoothing=objective.smoothing, weights=alone).counts(2, np.empty((2, 0)))
    positive, negative = (weights * np.where(match, kind[0, 0], kind[0, 1]) for kind in kinds_of)
    share = 1 / texts if objective.reduction == "mean" else 1.0
    share = {"": share, "images": 1.0, "pairs": 1 / texts, "texts": images / texts}[way.divided]

    def loss(x: Array, y: Array, log_scale: Array, bias: Array) -> LossAndGrads:
        bias = bias if objective.bias else 0 * bias
        found = weighted_loss(x, y, log_scale, bias, positive=positive, negative=negative)
        return LossAndGrads(*(share * value for value in found))

    given = as_given(loss, convention.normalises, convention.linear)
    scale = probe.scale if convention.linear else probe.log_scale
    with np.errstate(all="ignore"):
        found = given(probe.image_embed, probe.text_embed, np.array(scale), np.array(probe.bias))
    return dict(zip(("loss", "image_embed", "text_embed", convention.scale_name, "bias"), found, strict=True))
