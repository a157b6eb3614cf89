"""A loss with labels or weights, in which pairs count otherwise than was declared: each way is tried at every probe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.functions.recorded import Recorded
from siglip_ref.check.diagnosis.functions.shared import unit_rows
from siglip_ref.check.diagnosis.predict import given_at
from siglip_ref.check.diagnosis.products import NEAR
from siglip_ref.check.engine.expected.convention import Convention, Objective
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
    if objective.positives != "own" or several:
        pairs = (f"{one} / {other}" for one, other in product(_POSITIVE, _NEGATIVE))
        yield from (Counted(*way) for way in product([one for one in pairs if one not in _SAID], weights, divided))
    texts = ("averaged", "averaged, unit", "first", "last") if several else ()
    yield from (Counted("", weights[-1] and "none", end, one) for one, end in product(texts, ("", "images")))


# Of which pairs belong together, and which stand side by side: how much of a positive each is, and of a negative.
_POSITIVE: Mapping[str, Callable[[Array, Array], Array]] = {
    "all": lambda match, own: match,
    "own": lambda match, own: own,
    "rows": lambda match, own: match / match.sum(1, keepdims=True),
    "columns": lambda match, own: match / match.sum(0, keepdims=True),
    "first": lambda match, own: match * (np.cumsum(match, 1) == 1),
}
_NEGATIVE: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "rest": lambda match, own, positive: 1 - positive,
    "others": lambda match, own, positive: 1 - match,
    "not own": lambda match, own, positive: 1 - own,
    "all": lambda match, own, positive: np.ones_like(match),
}
_SAID = ("all / rest", "all / others", "own / rest", "own / others", "own / not own")  # as declared, or have a word


def counted_otherwise(seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention) -> Counted | None:
    """The way that gives every tensor that was seen; None: none does, or several that are not the same."""
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

    def same(way: Counted) -> bool:
        """Whether it is the first by another name, as rows and columns are where who belongs together is mutual."""
        made = ((_made(probes[label], convention, one) for one in (found[0], way)) for label in labels)
        return all(np.allclose(one[name], other[name], 1e-9, 1e-300) for one, other in made for name in one)

    found = [way for way in ways_of(convention.objective) if fits(way)]
    return found[0] if found and all(map(same, found[1:])) else None


def _merged(y: Recorded, how: str, per: int) -> Recorded:
    """One text for each image."""
    if not how:
        return y
    place = np.arange(per)
    share = {"first": place == 0, "last": place == per - 1}.get(how, np.full(per, 1 / per)) * np.ones((1, per))
    rows = Recorded(np.kron(np.eye(len(y) // per), share)) @ y
    return unit_rows(rows) if "unit" in how else rows


def _made(probe: Probe, convention: Convention, way: Counted) -> dict[str, Array]:
    objective = convention.objective
    images, texts = len(probe.image_embed), len(probe.text_embed)
    match = objective.match(images, probe.text_embed)
    own, image = np.arange(texts) // objective.per_image, np.arange(images)[:, None]
    side, weights = image == own, np.ones(1)
    first, _, second = way.match.partition(" / ")
    if way.texts:
        match, texts = np.eye(images, dtype=bool), images
    elif way.match == "left out":
        weights, match = np.where(match & ~side, 0.0, 1.0), side
    elif way.match == "opposite":
        match = ~match
    elif way.match and not second:
        match = side if way.match == "own" else image == np.arange(texts) % images
    positives = _POSITIVE[first](1.0 * match, 1.0 * side) if second else 1.0 * match
    negatives = _NEGATIVE[second or "rest"](1.0 * match, 1.0 * side, positives)
    if isinstance(objective.weights, str) and way.weights != "none":
        given_weights = objective.extra("weights", images)
        given_weights = given_weights[:, None] if objective.weights == "rows" else given_weights
        given_weights = np.broadcast_to(given_weights, (images, texts))
        weights = weights * (given_weights.T if way.weights else given_weights)
    alone = objective.weights if isinstance(objective.weights, tuple) else None
    kinds_of = Objective(smoothing=objective.smoothing, weights=alone).counts(2, np.empty((2, 0)))
    # a label p has p of what a match has, and the rest of what another has
    positive = weights * (positives * kinds_of[0][0, 0] + (1 - positives) * kinds_of[0][0, 1])
    negative = weights * ((1 - negatives) * kinds_of[1][0, 0] + negatives * kinds_of[1][0, 1])
    share = 1 / texts if objective.reduction == "mean" else 1.0
    share = {"": share, "images": 1.0, "pairs": 1 / texts, "texts": images / texts}[way.divided]

    def loss(x: Array, y: Array, log_scale: Array, bias: Array) -> LossAndGrads:
        bias = bias if objective.bias else 0 * bias
        texts = Recorded(y)
        rows = _merged(texts, way.texts, objective.per_image)
        found = weighted_loss(x, rows.value, log_scale, bias, positive=positive, negative=negative)
        found = LossAndGrads(*(share * value for value in found))
        rows.back(found.d_text_embed)
        return found._replace(d_text_embed=texts.slope)

    return given_at(loss, probe, convention)
