"""Sums in which a pair's part depends on its row, its column or the whole batch: generated from what is shared, how it
enters, and whether gradients go through it."""

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.functions.recorded import Recorded
from siglip_ref.check.diagnosis.functions.written import above
from siglip_ref.ops.elementary import Array, sigmoid, softplus

Function = Callable[[Recorded, float], Recorded]  # of logits and a number, the sum
Of = Callable[[Recorded], Recorded]
HELD = ", held constant"


def _one_hot(matrix: Array) -> Array:
    found = np.zeros_like(matrix)
    found[np.arange(len(matrix)), matrix.argmax(1)] = 1
    return found


def log_sum_exp(z: Recorded, mask: Array | float = 1.0) -> Recorded:
    """Of each row, the numbers of a mask alone; NaN where it has none."""
    some = np.where((z.value * 0 + mask).any(1, keepdims=True), 1.0, np.nan)
    top = np.where(mask, z.value, -np.inf).max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    found: Recorded = ((z - top).each(lambda x: np.exp(np.where(mask, x, 0))) * mask).sum(1).each(np.log) * some + top
    return found


def _softmax(z: Recorded) -> Recorded:
    return (z - log_sum_exp(z)).each(np.exp)


def signs(z: Recorded) -> Array:
    """-1 for own pairs, 1 for others."""
    return 1 - 2 * np.eye(len(z))


def _losses(z: Recorded) -> Recorded:
    found: Recorded = (z * signs(z)).each(softplus)
    return found


# Of each row, or of all, a number.
_OF_ROW: Mapping[str, Of] = {
    "its row's own logit": lambda z: z.own,
    "its row's mean": lambda z: z.mean(1),
    "its row's largest": lambda z: z.largest(1),
    "log sum exp of its row": log_sum_exp,
    "the mean of all": lambda z: z.mean(),
    "the largest of all": lambda z: z.largest(),
}


def _less(stat: Of, of: str, held: bool) -> Function:
    """softplus of -z (logit - what is shared), summed over some pairs."""

    def function(z: Recorded, number: float) -> Recorded:
        own, shared = np.eye(len(z)), stat(z)
        mask = {"positives": own, "negatives": 1 - own}.get(of, own**0)
        return (_losses(z - (shared.held if held else shared) + number) * mask).sum()

    return function


def _sum(of: Of) -> Function:
    """Of all that a function gives."""
    return lambda z, number: of(z).sum()


def _largest(share: float, mean: bool) -> Of:
    def of(z: Recorded) -> Recorded:
        losses = _losses(z)
        count = max(1, int(share * losses.value.size))
        chosen = np.zeros(losses.value.shape)
        chosen.flat[np.argsort(-losses.value.ravel(), kind="stable")[:count]] = 1 / count if mean else 1
        return losses * chosen

    return of


def _power(axis: int | None, power: Callable[[Array], Array]) -> Of:
    """Of rows' sums, or of the sum over all."""
    return lambda z: _losses(z).sum(axis).each(power)


_POWERS: Mapping[str, Callable[[Array], Array]] = {
    "the logarithm": np.log, "the square root": np.sqrt, "the square": np.square,
}  # fmt: skip


def _share(each: Array) -> Array:
    each = np.where(np.eye(len(each), dtype=bool), 0.0, each)
    return each / np.maximum(each.sum(1, keepdims=True), 1e-300)


def others(z: Array) -> Array:
    """Logits without those of own pairs."""
    return np.where(np.eye(len(z), dtype=bool), -np.inf, z)


def _rank(z: Array) -> Array:
    """By place in the row's order, from the largest: 1, 1/2, 1/3."""
    order = np.argsort(np.argsort(-others(z), 1, kind="stable"), 1, kind="stable")
    return 1.0 / (1 + order)


def _negatives_softmax(z: Array) -> Array:
    negatives = others(z)
    top = negatives.max(1, keepdims=True)
    return _share(np.exp(negatives - np.where(np.isfinite(top), top, 0)))


# By what each negative is multiplied, in which other pairs have a part; no gradient goes through it.
_WEIGHTS: Mapping[str, Callable[[Array], Array]] = {
    "its row's softmax over negatives": _negatives_softmax,
    "its share of its row's probabilities": lambda z: _share(sigmoid(z)),
    "1 where it is above its row's mean, else 0": lambda z: z > z.mean(1, keepdims=True),
    "1 where it is above the mean of the negatives, else 0": lambda z: (
        z > (z.sum() - np.trace(z)) / max(z.size - len(z), 1)
    ),
    "1 over its place in its row's order": _rank,
}


def negatives(chosen: Callable[[Array], Array]) -> Of:
    """softplus of negatives, each times a weight."""
    return lambda z: z.each(softplus) * (chosen(z.value) * (1 - np.eye(len(z))))


def _assigned(z: Array) -> Array:
    """The permutation with the largest sum, as a matrix."""
    from scipy.optimize import linear_sum_assignment  # here: nothing but a wrong loss asks for it

    found = np.zeros_like(z)
    found[linear_sum_assignment(z, maximize=True)] = 1
    return found


# Other positives of SigLIP's sum.
_MATCHES: Mapping[str, Callable[[Array], Array]] = {
    "the largest logit of each row": _one_hot,
    "the largest logit of each column": lambda z: _one_hot(z.T).T,
    "logits that are the largest of their row and of their column": lambda z: _one_hot(z) * _one_hot(z.T).T,
    "own pairs and the largest logit of each row": lambda z: np.maximum(_one_hot(z), np.eye(len(z))),
    "pairs above their row's own, and own pairs": lambda z: z >= np.diagonal(z)[:, None],
    "the best assignment of images to texts": _assigned,
}


def _matched(chosen: Callable[[Array], Array]) -> Of:
    return lambda z: (z * np.where(chosen(z.value) > 0, -1.0, 1.0)).each(softplus)


def _focal(z: Recorded) -> Recorded:
    log_p = z.own - log_sum_exp(z)
    return log_p * (log_p.each(np.exp) - 1) * (log_p.each(np.exp) - 1) * -1


def _both(z: Recorded) -> Recorded:
    """-log of the mean of what an own pair has in its row's softmax and in its column's."""
    return ((_softmax(z).own + _softmax(z.T).own) * 0.5).each(np.log) * -1


_OF_SOFTMAX: Mapping[str, Of] = {
    "1 less the own pair's part in each row's softmax": lambda z: _softmax(z).own * -1 + 1,
    "(1 - p)^2 (-log p), p the own pair's part in each row's softmax": _focal,
    "p log p over each row's softmax": lambda z: _softmax(z) * (z - log_sum_exp(z)),
    "the square of log sum exp of each row": lambda z: log_sum_exp(z) * log_sum_exp(z),
    "the square of each row's mean": lambda z: z.mean(1) * z.mean(1),
    "log sum exp of each row": log_sum_exp,
}


def unit_rows(z: Recorded, least: float = 1e-300, axis: int = 1) -> Recorded:
    """Divided by their length. least : of its square"""
    return z / (z * z).sum(axis).each(lambda square: np.sqrt(above(square, least)))


_CHANGED: Mapping[str, Of] = {
    "(logit + that of the transposed pair)/2": lambda z: (z + z.T) * 0.5,
    "(logit + that of the transposed pair)": lambda z: z + z.T,
    "(logit / length of its row's logits)": unit_rows,
    "(logit - mean of its row) / deviation of its row": lambda z: unit_rows(z - z.mean(1)) * np.sqrt(len(z)),
}


def _after(change: Of) -> Of:
    """SigLIP's sum of logits that are changed first."""
    return lambda z: _losses(change(z))


def turned(function: Function) -> Function:
    """Of columns."""
    return lambda z, number: function(z.T, number)


def _all() -> dict[str, Function]:
    found: dict[str, Function] = {}

    def add(name: str, of: Function, both: bool = True) -> None:
        """With the same of columns, where it is of rows."""
        found[name] = of
        if both and "row" in name:
            found[name.replace("row", "column")] = turned(of)

    for (words, stat), which, held in product(_OF_ROW.items(), ("negatives", "positives", "all pairs"), (False, True)):
        add(f"softplus of {which}' logits less {words}{HELD * held}", _less(stat, which, held))
    for share in (0.5, 0.25, 0.1, 0.75, 0.7, 0.2, 0.3, 0.9, 0.8):
        add(f"the largest {share:.0%} of all pairs' parts", _sum(_largest(share, False)))
        add(f"the mean of the largest {share:.0%} of all pairs' parts", _sum(_largest(share, True)))
    for words, power in _POWERS.items():
        add(f"{words} of the sum over all pairs", _sum(_power(None, power)))
        add(f"{words} of each row's sum", _sum(_power(1, power)))
    add("each row's largest part", _sum(lambda z: _losses(z).largest(1)))
    add("log sum exp of each row's parts", _sum(lambda z: log_sum_exp(_losses(z))))
    for words, weights in _WEIGHTS.items():
        add(f"softplus of negatives, each times {words}", _sum(negatives(weights)))
    for words, chosen in _MATCHES.items():
        add(f"softplus(-z logit), positives are {words}", _sum(_matched(chosen)), both=False)
    for words, of in _OF_SOFTMAX.items():
        add(words, _sum(of))
    add("-log((p + q)/2), p and q the own pair's part in its row's softmax and in its column's", _sum(_both), False)
    for words, change in _CHANGED.items():
        add(f"softplus(-z {words})", _sum(_after(change)))
    return found


SHARED = _all()
