"""What a loss with labels or weights computes, in words: what was declared, and in what the loss differs from it."""

from typing import TYPE_CHECKING, NamedTuple

from siglip_ref.report.words import WORDS

if TYPE_CHECKING:
    from siglip_ref.check.engine.expected.convention import Objective


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
    weights = WORDS["weighed"][objective.weights] if isinstance(objective.weights, str) else ""
    one, other = objective.weights if isinstance(objective.weights, tuple) else (1, 1)
    of_two = [f"{number:g} " * (number != 1) for number in (one, other)]
    labels = f", smoothed by {objective.smoothing:g}" if objective.smoothing else ""
    terms = f"({of_two[0]}m_ij softplus(-u_ij) + {of_two[1]}(1 - m_ij) softplus(u_ij))"
    together = WORDS["together" if objective.per_image == 1 else "together_of_many"][objective.positives]
    together = together.format(objective.per_image)
    return f"{share} sum_ij {weights}{terms}; u_ij = {logit}; {together}{labels}"


def difference_of(way: Counted) -> str:
    """What is not as declared."""
    positive, _, negative = way.match.partition(" / ")
    pairs = f"{WORDS['positive'][positive]}; {WORDS['negative'][negative]}" if negative else ""
    match, texts = WORDS["match"].get(way.match, pairs), WORDS["texts"].get(way.texts)
    parts = (match, texts, WORDS["used"].get(way.weights), WORDS["divided"].get(way.divided))
    return "; ".join(part for part in parts if part)
