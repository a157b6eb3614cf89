"""Positives and negatives that weigh otherwise than once, by numbers that may depend on the batch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from siglip_ref.check.diagnosis.predict import EMBEDS, Context
from siglip_ref.check.diagnosis.terms import Term, loss_terms, weights_of
from siglip_ref.check.engine.findings import Pattern
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.ops.elementary import Array

WEIGHTED = "positives-weighted"
Form = Callable[[int], float]
# How a weight may depend on the number of pairs: alone, and with a constant before it.
FORMS: tuple[tuple[str, str, Form], ...] = (
    ("1", "{}", lambda pairs: 1.0),
    ("B", "{}(B)", lambda pairs: float(pairs)),
    ("B - 1", "{}(B - 1)", lambda pairs: pairs - 1.0),
    ("1/B", "{}/B", lambda pairs: 1 / pairs),
    ("1/(B - 1)", "{}/(B - 1)", lambda pairs: 1 / max(pairs - 1, 1)),
    ("(B - 1)/B", "{}((B - 1)/B)", lambda pairs: (pairs - 1) / pairs),
    ("1/B^2", "{}/B^2", lambda pairs: 1 / pairs**2),
    ("1/(B^2 - B)", "{}/(B^2 - B)", lambda pairs: 1 / max(pairs**2 - pairs, 1)),
)
_NEAR = 1e-3  # of a weight; it was found by least squares
_ROUND = 3  # digits of a constant


def weighted(seen: Sequence[Seen], contexts: Mapping[str, Context]) -> list[Pattern]:
    """Every wrong tensor of one process, where two weights explain all of them at every probe; else nothing."""
    if not contexts or any(len(context.sizes) > 1 for context in contexts.values()):
        return []
    terms = {label: loss_terms(c.probe, c.convention, c.sizes) for label, c in contexts.items()}
    found = _measured(seen, terms, contexts)
    if len(found) < 2:
        return []
    forms = [_form({pairs: weights[place] for pairs, weights in found.items()}) for place in (0, 1)]
    if None in forms:
        return []
    (positives, of_positives), (negatives, of_negatives) = (form for form in forms if form)
    if positives == negatives or not _explain(seen, terms, contexts, of_positives, of_negatives):
        return []
    said = [f"{kind} counted {w} times" for kind, w in (("positives", positives), ("negatives", negatives)) if w != "1"]
    return [
        Pattern(name, WEIGHTED, ", ".join(said), WEIGHTED)
        for name in dict.fromkeys(one.name for one in seen if is_wrong(one))
    ]


def _measured(
    seen: Sequence[Seen], terms: Mapping[str, list[Term]], contexts: Mapping[str, Context]
) -> dict[int, tuple[float, float]]:
    """By number of pairs, how often positives and negatives count in an embedding's gradient, where both show."""
    found: dict[int, tuple[float, float]] = {}
    for one in seen:
        pairs = contexts[one.probe].probe.shape[0]
        if one.name in EMBEDS and pairs > 1 and pairs not in found:
            weights = weights_of(one, terms[one.probe])
            if weights:
                found[pairs] = weights[0, 0, True], weights[0, 0, False]
    return found


def _form(by_pairs: Mapping[int, float]) -> tuple[str, Form] | None:
    """The simplest form that a weight has, in words and as a function."""
    for alone, multiple, form in FORMS:
        constants = [weight / form(pairs) for pairs, weight in by_pairs.items()]
        constant = float(f"{np.median(constants):.{_ROUND}g}")
        if constant and all(abs(one / constant - 1) <= _NEAR for one in constants):
            words = alone if constant == 1 else multiple.format(f"{constant:g}")
            return words, lambda pairs, c=constant, f=form: c * f(pairs)
    return None


def _explain(
    seen: Sequence[Seen],
    terms: Mapping[str, list[Term]],
    contexts: Mapping[str, Context],
    positives: Form,
    negatives: Form,
) -> bool:
    for one in seen:
        pairs = contexts[one.probe].probe.shape[0]
        weights = {True: positives(pairs), False: negatives(pairs)}
        total: Array = np.asarray(sum(weights[term.key[2]] * term.tensors[one.name] for term in terms[one.probe]))
        if distance(one, total) > 2 * max(1.0, *map(abs, weights.values())):
            return False
    return True
