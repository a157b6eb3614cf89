"""Sums in which a pair's part depends on its row, its column or the whole batch: generated from what is shared, how it
enters, and whether gradients go through it."""

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np

from siglip_ref.ops.elementary import Array, sigmoid, softplus

# Of logits and a number: the sum, and its slope by each logit.
Function = Callable[[Array, float], tuple[float, Array]]
HELD = ", held constant"


def _one_hot(matrix: Array) -> Array:
    found = np.zeros_like(matrix)
    found[np.arange(len(matrix)), matrix.argmax(1)] = 1
    return found


def _soft(matrix: Array) -> tuple[Array, Array]:
    """log sum exp of each row, and its weights."""
    top = matrix.max(1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    each = np.exp(matrix - top)
    sums = each.sum(1, keepdims=True)
    return np.log(sums) + top, each / np.maximum(sums, 1e-300)


def _others(logits: Array) -> Array:
    return np.where(np.eye(len(logits), dtype=bool), -np.inf, logits)


# Of each row a number, and its slopes by the row's logits.
_OF_ROW: Mapping[str, Callable[[Array], tuple[Array, Array]]] = {
    "its row's own logit": lambda z: (np.diagonal(z)[:, None], np.eye(len(z))),
    "its row's mean": lambda z: (z.mean(1, keepdims=True), np.full_like(z, 1 / len(z))),
    "its row's largest": lambda z: (z.max(1, keepdims=True), _one_hot(z)),
    "log sum exp of its row": _soft,
    "the mean of all": lambda z: (np.full((1, 1), z.mean()), np.full_like(z, 1 / len(z) ** 2)),
    "the largest of all": lambda z: (
        np.full((1, 1), z.max()),
        (np.arange(z.size) == z.argmax()).reshape(z.shape) * 1.0,
    ),
}


def _less(stat: Callable[[Array], tuple[Array, Array]], of: str, held: bool) -> Function:
    """softplus of -z (logit - what is shared), summed over some pairs."""

    def function(logits: Array, number: float) -> tuple[float, Array]:
        own = np.eye(len(logits), dtype=bool)
        shared, by = stat(logits)
        signs = np.where(own, -1.0, 1.0)
        mask = own if of == "positives" else ~own if of == "negatives" else own | True
        u = signs * (logits - shared + number)
        g = np.where(mask, signs * sigmoid(u), 0.0)
        whole = g.sum() if shared.size == 1 else g.sum(1, keepdims=True)
        return float(np.where(mask, softplus(u), 0).sum()), g - (0 if held else whole * by)

    return function


def _losses(logits: Array) -> tuple[Array, Array]:
    signs = np.where(np.eye(len(logits), dtype=bool), -1.0, 1.0)
    return softplus(signs * logits), signs * sigmoid(signs * logits)


def _reduced(of: Callable[[Array], tuple[float, Array]]) -> Function:
    """A function of all pairs' parts, with its slope by each of them."""

    def function(logits: Array, number: float) -> tuple[float, Array]:
        losses, slopes = _losses(logits)
        value, by = of(losses)
        return float(value), by * slopes

    return function


def _largest(share: float, mean: bool) -> Function:
    def of(losses: Array) -> tuple[float, Array]:
        count = max(1, int(share * losses.size))
        chosen = np.zeros(losses.size)
        chosen[np.argsort(-losses.ravel(), kind="stable")[:count]] = 1
        chosen = chosen / count if mean else chosen
        return float((losses.ravel() * chosen).sum()), chosen.reshape(losses.shape)

    return _reduced(of)


def _power(power: float, axis: bool) -> Function:
    """Sums over rows, or the sum over all, to a power (0: their logarithm)."""

    def of(losses: Array) -> tuple[float, Array]:
        sums = losses.sum(1, keepdims=True) if axis else losses.sum(keepdims=True)
        if power == 0:
            return float(np.log(sums).sum()), np.broadcast_to(1 / sums, losses.shape)
        return float((sums**power).sum()), np.broadcast_to(power * sums ** (power - 1), losses.shape)

    return _reduced(of)


def _weighed(weights: Callable[[Array], Array]) -> Function:
    """softplus of negatives, each times a weight that other pairs have a part in; no gradient through the weight."""

    def function(logits: Array, number: float) -> tuple[float, Array]:
        own = np.eye(len(logits), dtype=bool)
        by = np.where(own, 0.0, weights(logits))
        return float((by * softplus(logits)).sum()), by * sigmoid(logits)

    return function


def _share(each: Array) -> Array:
    each = np.where(np.eye(len(each), dtype=bool), 0.0, each)
    return each / np.maximum(each.sum(1, keepdims=True), 1e-300)


def _rank(z: Array) -> Array:
    """By place in the row's order, from the largest: 1, 1/2, 1/3."""
    order = np.argsort(np.argsort(-_others(z), 1, kind="stable"), 1, kind="stable")
    return 1.0 / (1 + order)


_WEIGHTS: Mapping[str, Callable[[Array], Array]] = {
    "its row's softmax over negatives": lambda z: _soft(_others(z))[1],
    "its share of its row's probabilities": lambda z: _share(sigmoid(z)),
    "1 where it is above its row's mean, else 0": lambda z: (z > z.mean(1, keepdims=True)).astype(float),
    "1 where it is above the mean of the negatives, else 0": lambda z: (
        z > (z.sum() - np.trace(z)) / max(z.size - len(z), 1)
    ).astype(float),
    "1 over its place in its row's order": _rank,
}


def _matched(chosen: Callable[[Array], Array]) -> Function:
    """SigLIP's sum with other positives."""

    def function(logits: Array, number: float) -> tuple[float, Array]:
        signs = np.where(chosen(logits) > 0, -1.0, 1.0)
        return float(softplus(signs * logits).sum()), signs * sigmoid(signs * logits)

    return function


def _assigned(z: Array) -> Array:
    """The permutation with the largest sum, as a matrix."""
    from scipy.optimize import linear_sum_assignment  # here: nothing but a wrong loss asks for it

    found = np.zeros_like(z)
    found[linear_sum_assignment(z, maximize=True)] = 1
    return found


_MATCHES: Mapping[str, Callable[[Array], Array]] = {
    "the largest logit of each row": _one_hot,
    "the largest logit of each column": lambda z: _one_hot(z.T).T,
    "logits that are the largest of their row and of their column": lambda z: _one_hot(z) * _one_hot(z.T).T,
    "own pairs and the largest logit of each row": lambda z: np.maximum(_one_hot(z), np.eye(len(z))),
    "pairs above their row's own, and own pairs": lambda z: (z >= np.diagonal(z)[:, None]).astype(float),
    "the best assignment of images to texts": _assigned,
}


def _of_softmax(of: Callable[[Array], tuple[float, Array]]) -> Function:
    """A function of each row's softmax, with its slope by that."""

    def function(logits: Array, number: float) -> tuple[float, Array]:
        p = _soft(logits)[1]
        value, by = of(p)
        return float(value), p * (by - (p * by).sum(1, keepdims=True))

    return function


def _focal(p: Array) -> tuple[float, Array]:
    own = np.maximum(np.diagonal(p), 1e-300)
    return -((1 - own) ** 2 * np.log(own)).sum(), np.diag(2 * (1 - own) * np.log(own) - (1 - own) ** 2 / own)


def _both(logits: Array, number: float) -> tuple[float, Array]:
    """-log of the mean of what an own pair has in its row's softmax and in its column's."""
    p, q = _soft(logits)[1], _soft(logits.T)[1].T
    mean = np.maximum(np.diagonal(p + q) / 2, 1e-300)
    by = np.diag(-0.5 / mean)
    rows, columns = p * (by - (p * by).sum(1, keepdims=True)), q * (by - (q * by).sum(0, keepdims=True))
    return float(-np.log(mean).sum()), rows + columns


_SOFTMAX: Mapping[str, Function] = {
    "1 less the own pair's part in each row's softmax": _of_softmax(lambda p: (len(p) - np.trace(p), -np.eye(len(p)))),
    "(1 - p)^2 (-log p), p the own pair's part in each row's softmax": _of_softmax(_focal),
    "p log p over each row's softmax": _of_softmax(
        lambda p: ((p * np.log(np.maximum(p, 1e-300))).sum(), np.log(np.maximum(p, 1e-300)) + 1)
    ),
    "the square of log sum exp of each row": lambda z, number: (
        float((_soft(z)[0] ** 2).sum()), 2 * _soft(z)[0] * _soft(z)[1],
    ),
    "the square of each row's mean": lambda z, number: (
        float((z.mean(1) ** 2).sum()), np.broadcast_to(2 * z.mean(1, keepdims=True) / len(z), z.shape),
    ),
    "log sum exp of each row": lambda z, number: (float(_soft(z)[0].sum()), _soft(z)[1]),
}  # fmt: skip


def _unit_rows(z: Array) -> tuple[Array, Callable[[Array], Array]]:
    length = np.maximum(np.sqrt((z * z).sum(1, keepdims=True)), 1e-300)
    unit = z / length
    return unit, lambda d: (d - (d * unit).sum(1, keepdims=True) * unit) / length


def _standard(z: Array) -> tuple[Array, Callable[[Array], Array]]:
    unit, back = _unit_rows(z - z.mean(1, keepdims=True))

    def whole(d: Array) -> Array:
        inner = back(d * np.sqrt(len(z)))
        return inner - inner.mean(1, keepdims=True)

    return unit * np.sqrt(len(z)), whole


_CHANGED: Mapping[str, Callable[[Array], tuple[Array, Callable[[Array], Array]]]] = {
    "(logit + that of the transposed pair)/2": lambda z: ((z + z.T) / 2, lambda d: (d + d.T) / 2),
    "(logit + that of the transposed pair)": lambda z: (z + z.T, lambda d: d + d.T),
    "(logit / length of its row's logits)": _unit_rows,
    "(logit - mean of its row) / deviation of its row": _standard,
}


def _changed(of: Callable[[Array], tuple[Array, Callable[[Array], Array]]]) -> Function:
    """SigLIP's sum of logits that are changed first."""

    def function(logits: Array, number: float) -> tuple[float, Array]:
        inner, back = of(logits)
        losses, slopes = _losses(inner)
        return float(losses.sum()), back(slopes)

    return function


def turned(function: Function) -> Function:
    """Of columns."""

    def other(logits: Array, number: float) -> tuple[float, Array]:
        value, slopes = function(logits.T, number)
        return value, slopes.T

    return other


def _row(words: str) -> str:
    return words.replace("row", "column")


def _all() -> dict[str, Function]:
    found: dict[str, Function] = {}
    for (words, stat), of, held in product(_OF_ROW.items(), ("negatives", "positives", "all pairs"), (False, True)):
        name = f"softplus of {of}' logits less {words}" + HELD * held
        found[name] = _less(stat, of, held)
        if "row" in words:
            found[_row(name)] = turned(found[name])
    for share in (0.5, 0.25, 0.1, 0.75, 0.7, 0.2, 0.3, 0.9, 0.8):
        found[f"the largest {share:.0%} of all pairs' parts"] = _largest(share, False)
        found[f"the mean of the largest {share:.0%} of all pairs' parts"] = _largest(share, True)
    for power, words in ((0.0, "the logarithm"), (0.5, "the square root"), (2.0, "the square")):
        found[f"{words} of the sum over all pairs"] = _power(power, False)
        found[f"{words} of each row's sum"] = _power(power, True)
        found[f"{words} of each column's sum"] = turned(_power(power, True))
    found["each row's largest part"] = _reduced(lambda p: (float(p.max(1).sum()), _one_hot(p)))
    found["each column's largest part"] = turned(found["each row's largest part"])
    found["log sum exp of each row's parts"] = _reduced(lambda p: (float(_soft(p)[0].sum()), _soft(p)[1]))
    found["log sum exp of each column's parts"] = turned(found["log sum exp of each row's parts"])
    for words, weights in _WEIGHTS.items():
        found[f"softplus of negatives, each times {words}"] = _weighed(weights)
        if "row" in words:
            found[f"softplus of negatives, each times {_row(words)}"] = turned(_weighed(weights))
    for words, chosen in _MATCHES.items():
        found[f"softplus(-z logit), positives are {words}"] = _matched(chosen)
    for words, function in _SOFTMAX.items():
        found |= {words: function, _row(words): turned(function)}
    found["-log((p + q)/2), p and q the own pair's part in its row's softmax and in its column's"] = _both
    for words, change in _CHANGED.items():
        found[f"softplus(-z {words})"] = _changed(change)
        if "row" in words:
            found[f"softplus(-z {_row(words)})"] = turned(_changed(change))
    return found


SHARED = _all()
