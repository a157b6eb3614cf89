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
_POSITIVE = {
    "all": "of pairs that belong together each is a positive",
    "own": "pairs that stand side by side are positives",
    "rows": "what belongs together has the label 1 divided by how many texts belong to the image",
    "columns": "what belongs together has the label 1 divided by how many images belong to the text",
    "first": "the first text that belongs to an image is its positive",
}
_NEGATIVE = {
    "rest": "the rest to 1 counts as a negative",
    "others": "pairs that do not belong together are negatives",
    "not own": "all pairs that do not stand side by side are negatives",
    "all": "all pairs are negatives, too",
}
_TEXTS = {
    "averaged": "the texts of an image are averaged before the product: each image meets B texts",
    "averaged, unit": "the texts of an image are averaged and divided by their length: each image meets B texts",
    "first": "of each image's texts the first alone is used: each image meets B texts",
    "last": "of each image's texts the last alone is used: each image meets B texts",
}
_USED = {"none": "the weights are not used", "transposed": "the weights are transposed: row and column exchanged"}
_DIVIDED = {
    "images": "divided by the number of images, not of all pairs",
    "pairs": "divided by the number of all pairs, not of images",
    "texts": "divided by the number of texts",
}


class Counted(NamedTuple):
    """How pairs count otherwise than was declared: which belong together (a word, or one for positives / one for
    negatives), what of the weights, divided by what; what becomes of the texts of an image."""

    match: str = ""
    weights: str = ""
    divided: str = ""
    texts: str = ""


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
    positive, _, negative = way.match.partition(" / ")
    match = _MATCH.get(way.match) or (f"{_POSITIVE[positive]}; {_NEGATIVE[negative]}" if negative else "")
    parts = (match, _TEXTS.get(way.texts), _USED.get(way.weights), _DIVIDED.get(way.divided))
    return "; ".join(part for part in parts if part)
