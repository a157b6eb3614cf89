"""Tensors that move some number of times as far as they should, in all steps alike: not in the optimiser, or in a group
of their own. What is measured says it, without a list of mistakes."""

from collections.abc import Sequence

import numpy as np

from siglip_ref.check.engine.seen import Seen, distance, is_wrong
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


def findings(found: dict[float, list[str]]) -> list[Finding]:
    """A sentence for each factor."""
    return [_finding(factor, names) for factor, names in sorted(found.items(), key=lambda entry: -len(entry[1]))]


def _factor(steps: Sequence[Seen]) -> float | None:
    """Least squares over all steps, exactly 0 for what stands still; None where a step does not follow it."""
    got, exact = (np.concatenate([np.ravel(getattr(one, part)) for one in steps]) for part in ("got", "exact"))
    if not exact.any() or not np.isfinite(got).all():
        return None
    factor = float(got @ exact / (exact @ exact)) if got.any() else 0.0
    fits = all(distance(one, factor * one.exact) <= 2 * max(1.0, abs(factor)) for one in steps)
    return factor if fits else None


def _finding(factor: float, names: Sequence[str]) -> Finding:
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    many = len(names) > 1
    if factor == 0:
        evidence = f"{listed} never move{'' if many else 's'}: not given to the optimiser, or without a gradient?"
        return Finding(ABSENT, names[0], "", evidence, CATALOGUE[ABSENT].repair)
    which = f"these {len(names)} tensors move" if many else "this tensor moves"
    evidence = f"{which} {factor:.3g} times as far: another learning rate in their group? {listed}"
    return Finding(GROUP, names[0], "", evidence, CATALOGUE[GROUP].repair)
