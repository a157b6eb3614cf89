"""What explains the tensors that were seen: mistakes of the catalogue are made in the reference, and compared.

A mistake explains a wrong tensor as far as its own result is nearer to what was seen than the right one is; a right
tensor that it would have made wrong counts against it. What explains everything to within rounding is a finding; what
explains a good part is a suspicion, and says its share; below that the answer is "unknown", with what is known: where
it begins, and constant factors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from siglip_ref.check.frameworks import Outcome
from siglip_ref.check.mistakes import Mistake
from siglip_ref.check.report import Finding
from siglip_ref.check.tolerance import SAFETY
from siglip_ref.check.truth import Truth
from siglip_ref.ops.elementary import Array

FINDING = 0.99  # of the deviation explained: named as the mistake
ALL = 0.999  # of it, demanded of mistakes made together
SUSPICION = 0.6  # named as a suspicion; less is "unknown"
TOGETHER = 3  # mistakes at once, at most
KEPT = 4  # the best combinations of n mistakes from which those of n + 1 are built
LISTED = 3


@dataclass(frozen=True)
class Seen:
    """One tensor of one probe: what came, what is right, how far a right one may lie off (absolute, broadcasts)."""

    probe: str
    name: str
    got: Array
    exact: Array
    allowed: Array


Tensors = Mapping[tuple[str, str], Array]  # by (probe, tensor)
Predict = Callable[[Sequence[Mistake]], Tensors]  # what the reference gives with these mistakes made in it


@dataclass(frozen=True)
class Explanation:
    """Mistakes made together, and the share of the deviation they explain (1: everything, to within rounding)."""

    mistakes: tuple[Mistake, ...]
    share: float


def seen_of(label: str, outcome: Outcome, right: Truth) -> list[Seen]:
    """The tensors of one call of a loss, but for those that overflow even with correct rounding."""
    seen = []
    for name, exact in right.exact.items():
        got = outcome.loss if name == "loss" else outcome.gradients["log_scale" if name == "scale" else name]
        if not right.overflows[name]:
            values = np.zeros_like(exact) if got is None else got
            seen.append(Seen(label, name, values, exact, SAFETY * right.noise[name]))
    return seen


def explain(seen: Sequence[Seen], mistakes: Sequence[Mistake], predict: Predict) -> list[Finding]:
    """Findings, best first; empty if nothing is wrong.

    Parameters
    ----------
    seen : every tensor of every probe, right ones too
    mistakes : candidates, the more frequent ones first
    predict : runs the reference with mistakes made in it, at the same probes; raises ValueError where two of them
        change the same line
    """
    wrong = [tensor for tensor in seen if not _distance(tensor, tensor.exact) <= 1]
    if not wrong:
        return []
    ranked = _ranked(seen, ((mistake,) for mistake in mistakes), predict)
    for count in range(2, TOGETHER + 1):
        if not ranked or ranked[0].share >= FINDING:
            break
        ranked = _sorted(ranked + _ranked(seen, _extended(ranked, mistakes, count), predict))
    # of mistakes made together a good part proves little: a second one that does nothing is always found
    told = [e for e in ranked if e.share >= (SUSPICION if len(e.mistakes) == 1 else ALL)][:LISTED]
    if told and told[0].share >= FINDING:
        told = [entry for entry in told if entry.share >= FINDING and len(entry.mistakes) == len(told[0].mistakes)]
    findings = [finding for entry in told for finding in _findings(entry, wrong)]
    return findings or [_unknown(wrong)]


def _ranked(seen: Sequence[Seen], candidates: Iterator[tuple[Mistake, ...]], predict: Predict) -> list[Explanation]:
    found = []
    for mistakes in candidates:
        try:
            with np.errstate(all="ignore"):
                predicted = predict(mistakes)
        except (ValueError, FloatingPointError):  # they change the same line, or do not fit these shapes
            continue
        found.append(Explanation(mistakes, share_explained(seen, predicted)))
    return _sorted(found)


def _sorted(found: Sequence[Explanation]) -> list[Explanation]:
    """Best first; of equals the one with fewer mistakes, then the more frequent."""
    return sorted(found, key=lambda entry: (-round(entry.share, 3), len(entry.mistakes)))


def _extended(ranked: Sequence[Explanation], mistakes: Sequence[Mistake], count: int) -> Iterator[tuple[Mistake, ...]]:
    """Every combination of `count` mistakes that holds one of the best combinations of one fewer; for pairs, all."""
    if count == 2:
        yield from combinations(mistakes, 2)
        return
    tried = set()
    for entry in [entry for entry in ranked if len(entry.mistakes) == count - 1][:KEPT]:
        for mistake in mistakes:
            key = frozenset(m.id for m in (*entry.mistakes, mistake))
            if len(key) == count and key not in tried:
                tried.add(key)
                yield (*entry.mistakes, mistake)


def share_explained(seen: Sequence[Seen], predicted: Tensors) -> float:
    """From 0 (nothing) to 1 (everything, to within rounding); each tensor that is wrong, or should be, counts once."""
    explained, counted = 0.0, 0
    for tensor in seen:
        before = _distance(tensor, tensor.exact)
        after = _distance(tensor, predicted[tensor.probe, tensor.name])
        if before <= 1:
            counted += not after <= 2  # it would have been wrong, and is right
            continue
        counted += 1
        if after <= 2:  # both sides round
            explained += 1
        elif np.isfinite(after) and np.isfinite(before):
            explained += max(0.0, 1 - after / before)
    return explained / counted if counted else 0.0


def _distance(tensor: Seen, to: Array) -> float:
    """Largest deviation in units of what is allowed; NaN and infinity at the same places agree with each other."""
    got, to = np.asarray(tensor.got, np.float64), np.asarray(to, np.float64)
    if got.shape != to.shape:
        return np.inf
    with np.errstate(all="ignore"):
        off = np.abs(got - to) / tensor.allowed
    off = np.where(~np.isfinite(got) & ~np.isfinite(to), 0.0, np.where(got == to, 0.0, off))
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))


def _findings(entry: Explanation, wrong: Sequence[Seen]) -> Iterator[Finding]:
    """One for each mistake of an explanation."""
    certain = entry.share >= FINDING
    names = ", ".join(dict.fromkeys(tensor.name for tensor in wrong))
    together = f" together with {' and '.join(m.id for m in entry.mistakes)}" if len(entry.mistakes) > 1 else ""
    for mistake in entry.mistakes:
        word = "explains" if certain else "a suspicion: explains"
        evidence = f"{mistake.text}; {word} {entry.share:.0%} of the deviation of {names}{together}"
        yield Finding(mistake.id, names, "", evidence, mistake.repair)


def _unknown(wrong: Sequence[Seen]) -> Finding:
    """No mistake of the catalogue: say where it begins, and any factor that is the same at every probe."""
    first = wrong[0]
    facts = [f"begins at {first.name}, at {first.probe}"]
    for name in dict.fromkeys(tensor.name for tensor in wrong):
        ratio = _constant_ratio([tensor for tensor in wrong if tensor.name == name])
        if ratio is not None:
            facts.append(f"{name} is {ratio:.6g} times the right one")
    evidence = "no mistake of the catalogue explains it; " + "; ".join(facts)
    return Finding("unknown", first.name, "", evidence, "look at the first tensor that deviates, at its smallest probe")


def _constant_ratio(tensors: Sequence[Seen]) -> float | None:
    """The factor between what was seen and what is right, if it is one factor at all probes."""
    ratios = []
    for tensor in tensors:
        got, exact = np.ravel(tensor.got), np.ravel(tensor.exact)
        with np.errstate(all="ignore"):
            ratio = float(got @ exact / (exact @ exact))
        if not np.isfinite(ratio) or not _distance(tensor, ratio * np.asarray(tensor.exact)) <= max(2.0, abs(ratio)):
            return None
        ratios.append(ratio)
    return ratios[0] if np.ptp(ratios) <= 1e-3 * abs(ratios[0]) else None
