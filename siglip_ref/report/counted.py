"""What a loss with labels or weights computes, in words: what was declared, and in what the loss differs from it."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from siglip_ref.check.engine.expected.convention import Objective

_TOGETHER = {
    "own": "m_ij = 1 where j = i, else 0",
    "ids": "m_ij = 1 where ids[i] = ids[j], else 0",
    "captions": "m_ij = 1 where text j equals the text of image i, else 0",
}
_WEIGHTS = {"pairs": "weights[i, j] ", "rows": "weights[i] ", "columns": "weights[j] "}
_MATCH = {
    "own": "pairs that stand side by side belong together, and no others",
    "left out": "other pairs that belong together are left out of the sum: they count neither so nor as others",
    "opposite": "pairs that belong together are taken for the others, and the others for them",
    "one after another": "text j belongs to image j mod B: the captions of an image stand one batch after the other",
}
_USED = {"none": "the weights are not used", "transposed": "the weights are transposed: row and column exchanged"}
_DIVIDED = {
    "images": "divided by the number of images, not of all pairs",
    "pairs": "divided by the number of all pairs, not of images",
    "texts": "divided by the number of texts",
}


class Counted(NamedTuple):
    """How pairs count otherwise than was declared: which belong together, what of the weights, divided by what."""

    match: str = ""
    weights: str = ""
    divided: str = ""


def declared_in_words(objective: "Objective") -> str:
    """The formula of what was declared."""
    logit = "exp(log_scale) sim_ij" + " + bias" * objective.bias
    share = {"batch": "1/B", "mean": "1/B^2" if objective.per_image == 1 else "1/(B M)"}[objective.reduction]
    weights = _WEIGHTS[objective.weights] if isinstance(objective.weights, str) else ""
    one, other = objective.weights if isinstance(objective.weights, tuple) else (1, 1)
    of_two = [f"{number:g} " * (number != 1) for number in (one, other)]
    labels = f", smoothed by {objective.smoothing:g}" if objective.smoothing else ""
    terms = f"({of_two[0]}m_ij softplus(-u_ij) + {of_two[1]}(1 - m_ij) softplus(u_ij))"
    together = _TOGETHER[objective.positives]
    if objective.per_image > 1:
        together = {
            "own": f"m_ij = 1 where i = floor(j / {objective.per_image}), else 0",
            "ids": "m_ij = 1 where ids[i] = text_ids[j], else 0",
            "captions": "m_ij = 1 where text j equals a text of image i, else 0",
        }[objective.positives]
    return f"{share} sum_ij {weights}{terms}; u_ij = {logit}; {together}{labels}"


def difference_of(way: Counted) -> str:
    """What is not as declared."""
    parts = (_MATCH.get(way.match), _USED.get(way.weights), _DIVIDED.get(way.divided))
    return "; ".join(part for part in parts if part)
