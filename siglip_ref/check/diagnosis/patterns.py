"""What a wrong gradient or loss is made of, where no mistake of the catalogue has that name: simple, general patterns.

A tensor may be the right one times a factor, with its rows in other places, or with some of its terms missing or
counted twice. The terms are the blocks (images of one rank, texts of another), positives and negatives apart; how often
each of them was counted is found by least squares, since every row of a gradient holds as many numbers as D.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np

from siglip_ref.check.diagnosis.astray import SHIFTED, astray
from siglip_ref.check.diagnosis.predict import EMBEDS, Context
from siglip_ref.check.diagnosis.terms import (
    Counted,
    Term,
    Weights,
    at_each_number_of_ranks,
    counted,
    describe,
    loss_terms,
    odd_groups,
    weights_of,
)
from siglip_ref.check.diagnosis.weights import WEIGHTED, weighted
from siglip_ref.check.engine.findings import Factor, Pattern
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.ops.elementary import Array

ZERO_BUFFER = "ring-received-buffer-zero"
_ALL = 5  # the loss and its gradients
ZEROS = ", scored against zeros instead: softplus(bias) a pair"


Contexts = Mapping[str, Context]


def quantities(context: Context) -> dict[str, float]:
    """Numbers by which people forget to divide, or divide twice."""
    pairs, width = context.probe.shape
    found = {"B": pairs, "t": context.probe.scale, "D": width, "log t": context.probe.log_scale}
    ranks = len(context.sizes)
    return found | ({"W": ranks, "b": pairs / ranks} if ranks > 1 else {})


def patterns(seen: Sequence[Seen], contexts: Contexts) -> list[Pattern]:
    """For each tensor that is wrong, the first pattern that explains it wholly, if one does."""
    seen = [one for one in seen if np.shape(one.got) == np.shape(one.exact)]
    wrong = list(dict.fromkeys(one.name for one in seen if is_wrong(one)))
    found: dict[str, Pattern] = {}
    for name in wrong:
        mine = [one for one in seen if one.name == name]
        pattern = _factor(mine, contexts) or _moved(mine, seen, contexts)
        if pattern:
            found[name] = pattern
    if not all(context.convention.objective.plain for context in contexts.values()):
        return list(found.values())  # of other losses the terms are others
    for pattern in chain(_counted(seen, contexts), astray([one for one in seen if one.name in wrong], contexts)):
        found.setdefault(pattern.tensor, pattern)
    for pattern in weighted(seen, contexts) if len(found) < len(wrong) else ():
        found.setdefault(pattern.tensor, pattern)
    return _named(list(found.values()), wrong)


def _named(found: list[Pattern], wrong: Sequence[str]) -> list[Pattern]:
    """What is seen in all tensors that are wrong may be a general form of a mistake that has a name: another number of
    micro-batches, another hop."""
    forms = [pattern.form for pattern in found]
    if len(set(forms)) > 1 or {pattern.tensor for pattern in found} != set(wrong):
        return found
    zeros = [pattern.id for pattern in found if pattern.id == ZERO_BUFFER]
    names = zeros + [_name_of(form, set(wrong)) for form in forms[:1]]
    return [replace(pattern, id=names[0] or pattern.id) for pattern in found]


def _name_of(form: Hashable, wrong: set[str]) -> str:
    """The id of the mistake that a form is, if it has one; a factor of zero is none: nothing arrives."""
    every = len(wrong) == _ALL
    if isinstance(form, Factor) and form.name.isdecimal() and int(form.name) > 0:
        if every:
            return "accum-loss-not-divided"
        return "accum-cached-not-divided" if wrong <= {"log_scale", "scale", "bias"} else ""
    if not isinstance(form, Counted) or not every:
        return ""
    odds = [odd for _, odd in form.by_world]
    if len(odds) == 1 and form.by_world[0][0] == 1:
        (weight, groups), *others = odds[0] or ((0.0, ()),)
        return WEIGHTED if weight > 0 and len(groups) == 1 and not others else ""
    counts = [{weight: [group.hop for group in groups] for weight, groups in odd} for odd in odds]
    one_hop = all(len(hops) == 1 and hops[0] for of in counts for hops in of.values())
    if one_hop and all(of.keys() == {0.0} for of in counts):
        return "ring-hop-missing"
    return "ring-hop-repeated" if one_hop and all(of.keys() == {0.0, 2.0} for of in counts) else ""


# --- a factor


def _factor(seen: Sequence[Seen], contexts: Contexts) -> Pattern | None:
    """One tensor that is, at every probe, the right one times a number that has a name, or is always the same."""
    known = [quantities(contexts[one.probe]) if one.probe in contexts else {} for one in seen]
    shared = set.intersection(*(set(q) for q in known))
    for word, value in _FACTORS.items():
        for name in sorted(shared) if "q" in word else [""]:
            factors = [value(q.get(name, 0.0)) for q in known]
            if np.isfinite(factors).all() and _fits(seen, factors):
                return _times(seen[0].name, word.replace("q", name))
    ratio = _ratio(seen)
    if ratio is None or not _fits(seen, [ratio] * len(seen)):
        return None
    return _times(seen[0].name, f"{ratio:.0f}" if abs(ratio - round(ratio)) < 1e-6 * abs(ratio) else f"{ratio:.6g}")


def _times(tensor: str, number: str) -> Pattern:
    return Pattern(tensor, "unknown", f"{number} times the right one", Factor(number))


_FACTORS: dict[str, Callable[[float], float]] = {
    "0": lambda q: 0.0,
    "-1": lambda q: -1.0,
    "1/q": lambda q: 1 / q if q else np.inf,
    "q": lambda q: q,
    "2q": lambda q: 2 * q,
    "2/q": lambda q: 2 / q if q else np.inf,
    "-q": lambda q: -q,
    "1/q^2": lambda q: 1 / q**2 if q else np.inf,
    "q^2": lambda q: q**2,
    "1/sqrt(q)": lambda q: 1 / np.sqrt(q) if q > 0 else np.inf,
    "sqrt(q)": lambda q: np.sqrt(q) if q > 0 else np.inf,
    "log(2)": lambda q: np.log(2),
    "1/log(2)": lambda q: 1 / np.log(2),
}


def _fits(seen: Sequence[Seen], factors: Sequence[float]) -> bool:
    """Rounding errors grow with the factor."""
    return all(
        distance(one, factor * np.asarray(one.exact)) <= 2 * max(1.0, abs(factor))
        for one, factor in zip(seen, factors, strict=True)
    )


def _ratio(seen: Sequence[Seen]) -> float | None:
    """Least squares, at the probe where it is known best."""
    best = max(seen, key=lambda one: float(np.max(np.abs(one.exact)) / np.max(one.allowed)))
    got, exact = np.ravel(best.got), np.ravel(best.exact)
    with np.errstate(all="ignore"):
        ratio = float(got @ exact / (exact @ exact)) if got.shape == exact.shape else np.nan
    return ratio if np.isfinite(ratio) else None


# --- rows in other places


def _moved(mine: Sequence[Seen], seen: Sequence[Seen], contexts: Contexts) -> Pattern | None:
    """An embedding's gradient whose rows stand at other rows, at other ranks, or in the other embedding's gradient."""
    name = mine[0].name
    if name not in EMBEDS:
        return None
    other = {one.probe: one for one in seen if one.name == EMBEDS[1 - EMBEDS.index(name)]}
    if all(distance(one, np.asarray(other[one.probe].exact)) <= 2 for one in mine if one.probe in other):
        text = "the other embedding's gradient: the two are exchanged"
        return Pattern(name, "unknown", text, text)
    for text, id, order in _orders([contexts[one.probe] for one in mine if one.probe in contexts], name):
        if all(distance(one, np.asarray(one.exact)[order(contexts[one.probe])]) <= 2 for one in mine):
            return Pattern(name, id, text, text)
    return None


def _orders(contexts: Sequence[Context], name: str) -> Iterator[tuple[str, str, Callable[[Context], Array]]]:
    """Ways in which rows change places: in words, by the catalogue's name, and which row then stands where."""
    if not contexts:
        return
    yield "the right rows in reverse order", "unknown", lambda c: np.arange(sum(c.sizes))[::-1]
    yield "the right rows, up by one", "unknown", lambda c: np.roll(np.arange(sum(c.sizes)), -1)
    yield "the right rows, down by one", "unknown", lambda c: np.roll(np.arange(sum(c.sizes)), 1)
    worlds = [len(c.sizes) for c in contexts]
    if min(worlds) < 2 or any(len(set(c.sizes)) > 1 for c in contexts):
        return
    for step in (s for n in range(1, max(worlds)) for s in (n, -n)):
        text = f"the right rows, but rank r holds those of rank r {'+' if step > 0 else '-'} {abs(step)}, modulo W"
        yield text, SHIFTED.get(name, "unknown"), partial(_of_rank, owner=partial(_shifted, step))
    yield "the right rows, the ranks in reverse order", "unknown", partial(_of_rank, owner=_reversed)


def _shifted(step: int, rank: int, world: int) -> int:
    return (rank + step) % world


def _reversed(rank: int, world: int) -> int:
    return world - 1 - rank


def _of_rank(context: Context, owner: Callable[[int, int], int]) -> Array:
    world, each = len(context.sizes), context.sizes[0]
    rows = np.arange(world * each).reshape(world, each)
    return rows[[owner(rank, world) for rank in range(world)]].ravel()


# --- terms that are missing, or count more than once


def _counted(seen: Sequence[Seen], contexts: Contexts) -> Iterator[Pattern]:
    """Every tensor, as a sum of its terms with other weights."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for label, context in contexts.items():
        groups.setdefault(context.sizes if len(context.sizes) > 1 else (1,), []).append(label)
    by_name = {(one.probe, one.name): one for one in seen}
    terms = {label: loss_terms(c.probe, c.convention, c.sizes) for label, c in contexts.items()}
    fitted: dict[str, dict[tuple[int, ...], Weights]] = {}
    for name in EMBEDS:
        of_group = {key: _weights(labels, name, by_name, terms) for key, labels in groups.items()}
        found = {key: weights for key, weights in of_group.items() if weights is not None}
        if len(found) == len(groups):
            fitted[name] = found
    for name in dict.fromkeys(one.name for one in seen if is_wrong(one)):
        # of texts that were met as zeros, and got a gradient for it, the images' gradient knows how often
        for source in dict.fromkeys([name, EMBEDS[0]] if name in EMBEDS else EMBEDS):
            if source in fitted and (pattern := _as_counted(name, source, fitted[source], groups, by_name, terms)):
                yield pattern
                break


def _weights(
    labels: Sequence[str], name: str, by_name: Mapping[tuple[str, str], Seen], terms: Mapping[str, list[Term]]
) -> Weights | None:
    """How often each term counts in an embedding's gradient; at the probe that shows its weakest term best."""
    shown = [label for label in labels if (label, name) in by_name]

    def visible(label: str) -> float:
        allowed = by_name[label, name].allowed
        return float(min(np.max(np.abs(term.tensors[name]) / allowed) for term in terms[label]))

    best = max(shown, key=visible, default=None)
    return None if best is None else weights_of(by_name[best, name], terms[best])


def _as_counted(
    name: str,
    source: str,
    weights: Mapping[tuple[int, ...], Weights],
    groups: Mapping[tuple[int, ...], list[str]],
    by_name: Mapping[tuple[str, str], Seen],
    terms: Mapping[str, list[Term]],
) -> Pattern | None:
    """The pattern, if the weights found in one gradient explain a tensor at all probes; or if, besides, blocks that
    were scored against zeros do."""
    for zeros in (False, True):
        if all(
            distance(one, _summed(name, terms[label], weights[key], zeros)) <= 2
            for key, labels in groups.items()
            for label in labels
            if (one := by_name.get((label, name))) is not None
        ):
            told = at_each_number_of_ranks({key: describe(w, len(key)) for key, w in weights.items()})
            form = counted({key: odd_groups(w, len(key)) for key, w in weights.items()})
            return Pattern(name, ZERO_BUFFER if zeros else "unknown", told + ZEROS if zeros else told, form)
    return None


def _summed(name: str, terms: Sequence[Term], weights: Weights, zeros: bool) -> Array:
    total = sum(weights[term.key] * term.tensors[name] for term in terms)
    return np.asarray(total + sum(t.against_zeros.get(name, 0.0) for t in terms if zeros and weights[t.key] == 0))
