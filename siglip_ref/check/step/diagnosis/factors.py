"""Tensors that move some number of times as far as they should, in all steps alike: not in the optimiser, or in a group
of their own. What is measured says it, without a list of mistakes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.check.step.judge import Plan
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.report.data import Finding

ABSENT, GROUP = "parameters-not-in-optimiser", "lr-of-a-group"
ALIKE = 0.005  # relative: factors so near are one
_NAMED = 4


def factors(seen: Sequence[Seen]) -> dict[float, list[str]]:
    """By factor, the wrong tensors that move so many times as far, at every step."""
    found: dict[float, list[str]] = {}
    for name in dict.fromkeys(one.name for one in seen if is_wrong(one)):
        factor = _factor([one for one in seen if one.name == name])
        if factor is not None:
            same = next((known for known in found if abs(known - factor) <= ALIKE * abs(known)), factor)
            found.setdefault(same, []).append(name)
    return found


def is_whole(found: dict[float, list[str]], seen: Sequence[Seen]) -> bool:
    """Whether factors alone explain the steps: all that is wrong has one; and one that everything could have is another
    learning rate for all."""
    explained = {name for names in found.values() for name in names}
    if not found or explained != {one.name for one in seen if is_wrong(one)}:
        return False
    shared = next(iter(found))
    return len(found) > 1 or shared == 0.0 or any(distance(one, shared * one.exact) > 2 for one in seen)


def with_rates(plan: Plan, found: Mapping[float, Sequence[str]]) -> Plan:
    """The plan with these factors, as one would declare them; what stands still does not decay either."""
    of, rule = {name: _declared(factor) for factor, names in found.items() for name in names}, plan.rule
    new = replace(
        rule,
        rates=lambda name: of.get(name, 1.0) * rule.rates(name),
        decays=lambda name: of.get(name, 1.0) != 0 and rule.decays(name),
    )
    return replace(plan, rule=new)


def findings(found: dict[float, list[str]], seen: Sequence[Seen]) -> list[Finding]:
    """A sentence for each factor."""
    told = []
    for factor, names in sorted(found.items(), key=lambda entry: -len(entry[1])):
        others = {one.name for one in seen if distance(one, factor * one.exact) > 2} - {*names}
        told.append(_finding(factor, names, parts(names, others)))
    return told


def beside_others(still: dict[float, list[str]], seen: Sequence[Seen]) -> list[Finding]:
    """What stands still where more is wrong: steps that come out too small are rounded away, and look the same."""
    reserved = "mend what else is wrong first, for steps that are too small are rounded away; and if these stay: "
    return [replace(one, kind="suspicion", repair=f"{reserved}{one.repair}") for one in findings(still, seen)]


def parts(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Where these lie: the largest parts of the model that hold none of the others.

    >>> parts(["text/block00/q/kernel", "text/block00/q/bias", "bias"], ["text/token"])
    ['text/block00/*', 'bias']
    """
    found, others = dict[str, None](), list(others)
    for name in names:
        paths = ["/".join(name.split("/")[:k]) + "/" for k in range(1, name.count("/") + 1)]
        whole = [path for path in paths if not any(other.startswith(path) for other in others)]
        shared = [path for path in whole if sum(name.startswith(path) for name in names) > 1]
        found[f"{shared[0]}*" if shared else name] = None
    return list(found)


def _factor(steps: Sequence[Seen]) -> float | None:
    """Least squares over all steps, exactly 0 for what stands still; None where a step does not follow it."""
    got, exact = (np.concatenate([np.ravel(getattr(one, part)) for one in steps]) for part in ("got", "exact"))
    if not exact.any() or not np.isfinite(got).all():
        return None
    factor = float(got @ exact / (exact @ exact)) if got.any() else 0.0
    fits = all(distance(one, factor * one.exact) <= 2 * max(1.0, abs(factor)) for one in steps)
    return factor if fits else None


def _declared(factor: float) -> float:
    return float(f"{factor:.3g}")


def _finding(factor: float, names: Sequence[str], places: Sequence[str]) -> Finding:
    listed = ", ".join(places[:_NAMED]) + (f" and {len(places) - _NAMED} more" if len(places) > _NAMED else "")
    many = len(names) > 1
    beginnings = ", ".join(repr(place.rstrip("*")) for place in places)
    declared = (
        f"if it is meant, declare rates=lambda name: {_declared(factor):g} if name.startswith(({beginnings},)) else 1.0"
    )
    if factor == 0:
        evidence = f"{listed} never move{'' if many else 's'}: not given to the optimiser, or without a gradient?"
        return Finding(ABSENT, names[0], "", evidence, CATALOGUE[ABSENT].repair)
    which = f"these {len(names)} tensors move" if many else "this tensor moves"
    evidence = f"{which} {factor:.3g} times as far: another learning rate in their group? {listed}"
    return Finding(GROUP, names[0], "", evidence, f"{CATALOGUE[GROUP].repair}; {declared}")
