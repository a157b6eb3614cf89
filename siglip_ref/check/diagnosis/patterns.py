"""What a wrong gradient or loss is made of, where no mistake of the catalogue has that name: simple, general patterns.

A tensor may be the right one times a factor, or with its rows in other places; over ranks, a sum of other blocks
(`siglip_ref.check.diagnosis.blocks`). What one process computes otherwise is worked out: `diagnosis.derive`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.diagnosis.blocks.derive import derive
from siglip_ref.check.diagnosis.blocks.faults import of_hops
from siglip_ref.check.diagnosis.blocks.parts import calls_of
from siglip_ref.check.diagnosis.blocks.told import ZERO_BUFFER, patterns_of
from siglip_ref.check.diagnosis.functions.written import written
from siglip_ref.check.diagnosis.predict import EMBEDS, Context
from siglip_ref.check.diagnosis.terms import Counted
from siglip_ref.check.engine.findings import Factor, Pattern
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.ops.elementary import Array

_ALL = 5  # the loss and its gradients


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
    over_ranks = any(len(context.sizes) > 1 for context in contexts.values())
    for pattern in patterns_of(derive(calls_of(seen, contexts))) if over_ranks else ():
        if pattern.tensor in wrong:
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
    if isinstance(form, Factor) and form.name.isdecimal() and int(form.name) > 1:
        if every:
            return "accum-loss-not-divided"
        return "accum-cached-not-divided" if wrong in ({"log_scale", "bias"}, {"scale", "bias"}) else ""
    return of_hops(form) if isinstance(form, Counted) and every else ""


# --- a factor


def _factor(seen: Sequence[Seen], contexts: Contexts) -> Pattern | None:
    """One tensor that is, at every probe, the right one times a number that has a name, or is always the same."""
    known = [quantities(contexts[one.probe]) if one.probe in contexts else {} for one in seen]
    shared = set.intersection(*(set(q) for q in known))
    for word in _FACTORS:
        value = written(word.replace("2q", "2 q"), "q")
        for name in sorted(shared) if "q" in word else [""]:
            with np.errstate(all="ignore"):
                factors = [float(value(np.float64(q.get(name, 0.0)))) for q in known]
            if np.isfinite(factors).all() and _fits(seen, factors):
                return _times(seen[0].name, word.replace("q", name))
    ratio = _ratio(seen)
    if ratio is None or not _fits(seen, [ratio] * len(seen)):
        return None
    whole = abs(ratio - round(ratio)) < 1e-6 * abs(ratio) and round(ratio) != 1
    number = f"{ratio:.0f}" if whole else f"{ratio:.6g}"
    return _times(seen[0].name, f"{ratio:.9g}" if number == "1" else number)  # not "1 times the right one"


def _times(tensor: str, number: str) -> Pattern:
    return Pattern(tensor, "unknown", f"{number} times the right one", Factor(number))


# Of one of the numbers, q.
_FACTORS = ("0", "-1", "1/q", "q", "2q", "2/q", "-q", "1/q^2", "q^2", "1/sqrt(q)", "sqrt(q)", "log(2)", "1/log(2)")


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
    both = [one for one in mine if one.probe in other]
    if both and all(distance(one, np.asarray(other[one.probe].exact)) <= 2 for one in both):
        text = "the other embedding's gradient: the two are exchanged"
        return Pattern(name, "unknown", text, text)
    for text, order in _ORDERS.items():
        if all(distance(one, order(np.asarray(one.exact))) <= 2 for one in mine):
            return Pattern(name, "unknown", text, text)
    return None


_ORDERS: dict[str, Callable[[Array], Array]] = {
    "the right rows in reverse order": lambda rows: rows[::-1],
    "the right rows, up by one": lambda rows: np.roll(rows, -1, 0),
    "the right rows, down by one": lambda rows: np.roll(rows, 1, 0),
}
