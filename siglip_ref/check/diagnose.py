"""What explains the tensors that were seen: mistakes of the catalogue are made in the reference, and compared.

A mistake explains a wrong tensor as far as its own result is nearer to what was seen than the right one is; a right
tensor that it would have made wrong counts against it. What explains everything to within rounding is a finding: a
mistake; else two or three made together; else a pattern of every wrong tensor, see `siglip_ref.check.patterns`. What
explains a good part is a suspicion, and says its share; below that the answer is "unknown", with what is known: where
it begins, and the patterns of some tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from siglip_ref.check.frameworks import Outcome
from siglip_ref.check.mistakes import CATALOGUE, Mistake
from siglip_ref.check.report import Finding
from siglip_ref.check.tolerance import SAFETY
from siglip_ref.check.truth import Truth
from siglip_ref.ops.elementary import Array

FINDING = 0.99  # of the deviation explained: named as the mistake
ALL = 0.999  # of it, demanded of mistakes made together
SUSPICION = 0.8  # named as a suspicion; less is "unknown"
TOGETHER = 3  # mistakes at once, at most
KEPT = 4  # the best combinations of n mistakes from which those of n + 1 are built, and which are tried everywhere
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
class Pattern:
    """One tensor, explained at every probe. id: of the catalogue, or "unknown"; text: what is seen."""

    tensor: str
    id: str
    text: str


Patterns = Callable[[Sequence[Seen]], Sequence[Pattern]]


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


def explain(
    seen: Sequence[Seen], mistakes: Sequence[Mistake], predict: Predict, patterns: Patterns = lambda seen: ()
) -> list[Finding]:
    """Findings, best first; empty if nothing is wrong.

    Parameters
    ----------
    seen : every tensor of every probe, right ones too
    mistakes : candidates, the more frequent ones first
    predict : runs the reference with mistakes made in it, at the same probes; it, or a look at what it returns, raises
        ValueError where two of them change the same line
    patterns : what is seen in tensors without knowing of any mistake
    """
    wrong = [tensor for tensor in seen if is_wrong(tensor)]
    if not wrong:
        return []
    alone = _ranked(seen, ((mistake,) for mistake in mistakes), predict)
    found = list(patterns(seen))
    if not (alone and alone[0].share >= FINDING):
        together = _together(seen, wrong, mistakes, predict)
        if together:
            return [finding for entry in together for finding in _findings(entry, wrong, found)]
    told = [entry for entry in alone if entry.share >= SUSPICION][:LISTED]
    if told and told[0].share >= FINDING:
        told = [entry for entry in told if entry.share >= FINDING]
        return [finding for entry in told for finding in _findings(entry, wrong, found)]
    suspicions = [finding for entry in told for finding in _findings(entry, wrong)]
    if {pattern.tensor for pattern in found} >= {tensor.name for tensor in wrong}:
        return [_of_patterns(found), *(one for one in suspicions if one.id != found[0].id)]
    return suspicions or [_unknown(wrong, found)]


def _together(
    seen: Sequence[Seen], wrong: Sequence[Seen], mistakes: Sequence[Mistake], predict: Predict
) -> list[Explanation]:
    """The best of two or three mistakes made together that explain everything. Of a good part there is no talk: a
    second mistake that does nothing is always found. All combinations are tried at one probe, the first at which most
    tensors are wrong, and only of mistakes that change no tensor there that is right."""
    counts = {label: sum(one.probe == label for one in wrong) for label in dict.fromkeys(one.probe for one in wrong)}
    first = max(counts, key=lambda label: counts[label])
    here = [one for one in seen if one.probe == first]
    ranked = [entry for entry in _ranked(here, ((m,) for m in mistakes), predict) if _within(here, entry, predict)]
    useful = [mistake for mistake in mistakes if any(entry.mistakes[0] is mistake for entry in ranked)]
    for count in range(2, TOGETHER + 1):
        ranked += _ranked(here, _extended(ranked, useful, count), predict)
        best = [entry.mistakes for entry in _sorted(ranked) if len(entry.mistakes) == count][:KEPT]
        whole = [entry for entry in _ranked(seen, iter(best), predict) if entry.share >= ALL]
        if whole:
            return whole[:LISTED]
    return []


def _within(here: Sequence[Seen], entry: Explanation, predict: Predict) -> bool:
    """Whether a mistake changes some tensors, and none that is right."""
    with np.errstate(all="ignore"):
        predicted = predict(entry.mistakes)
        changed = [one for one in here if not distance(one, predicted[one.probe, one.name], one.exact) <= 2]
    return bool(changed) and all(is_wrong(one) for one in changed)


def _ranked(seen: Sequence[Seen], candidates: Iterator[tuple[Mistake, ...]], predict: Predict) -> list[Explanation]:
    found = []
    for mistakes in candidates:
        try:
            with np.errstate(all="ignore"):
                found.append(Explanation(mistakes, share_explained(seen, predict(mistakes))))
        except (ValueError, FloatingPointError):  # they change the same line, or do not fit these shapes
            continue
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
    for entry in [entry for entry in _sorted(ranked) if len(entry.mistakes) == count - 1][:KEPT]:
        for mistake in mistakes:
            key = frozenset(m.id for m in (*entry.mistakes, mistake))
            if len(key) == count and key not in tried:
                tried.add(key)
                yield (*entry.mistakes, mistake)


def share_explained(seen: Sequence[Seen], predicted: Tensors) -> float:
    """From 0 (nothing) to 1 (everything, to within rounding); each tensor that is wrong, or should be, counts once."""
    explained, counted = 0.0, 0
    for tensor in seen:
        before = distance(tensor, tensor.exact)
        after = distance(tensor, predicted[tensor.probe, tensor.name])
        if before <= 1:
            counted += not after <= 2  # it would have been wrong, and is right
            continue
        counted += 1
        if after <= 2:  # both sides round
            explained += 1
        elif np.isfinite(after) and np.isfinite(before):
            explained += max(0.0, 1 - after / before)
    return explained / counted if counted else 0.0


def is_wrong(tensor: Seen) -> bool:
    """NaN is wrong."""
    return not distance(tensor, tensor.exact) <= 1


def distance(tensor: Seen, to: Array, got: Array | None = None) -> float:
    """Largest deviation in units of what is allowed; NaN and infinity at the same places agree with each other.

    got : what is compared; None: what was seen
    """
    got, to = np.asarray(tensor.got if got is None else got, np.float64), np.asarray(to, np.float64)
    if got.shape != to.shape:
        return np.inf
    with np.errstate(all="ignore"):
        off = np.abs(got - to) / tensor.allowed
    off = np.where(~np.isfinite(got) & ~np.isfinite(to), 0.0, np.where(got == to, 0.0, off))
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))


def _findings(entry: Explanation, wrong: Sequence[Seen], patterns: Sequence[Pattern] = ()) -> Iterator[Finding]:
    """One for each mistake of an explanation; with what patterns say in more detail of the same."""
    certain = entry.share >= FINDING
    names = _names(wrong)
    together = f" together with {' and '.join(m.id for m in entry.mistakes)}" if len(entry.mistakes) > 1 else ""
    for mistake in entry.mistakes:
        word = "explains" if certain else "a suspicion: explains"
        evidence = f"{mistake.text}; {word} {entry.share:.0%} of the deviation of {names}{together}"
        same = [pattern for pattern in patterns if pattern.id == mistake.id]
        yield Finding(mistake.id, names, "", "; ".join((evidence, *_in_words(same))), mistake.repair)


def _of_patterns(found: Sequence[Pattern]) -> Finding:
    """Every wrong tensor has a pattern, which may be a general form of one mistake of the catalogue."""
    id = found[0].id if len({pattern.id for pattern in found}) == 1 else "unknown"
    names = ", ".join(pattern.tensor for pattern in found)
    evidence = "; ".join(_in_words(found)) + "; explains 100% of the deviation"
    if id == "unknown":
        return Finding(id, found[0].tensor, "", f"a pattern of no single name: {evidence}", _LOOK)
    return Finding(id, names, "", f"{CATALOGUE[id].text}; {evidence}", CATALOGUE[id].repair)


def _in_words(found: Sequence[Pattern]) -> list[str]:
    """Tensors of which the same is said, together."""
    texts: dict[str, list[str]] = {}
    for pattern in found:
        texts.setdefault(pattern.text, []).append(pattern.tensor)
    return [f"{', '.join(tensors)}: {text}" for text, tensors in texts.items()]


def _names(wrong: Sequence[Seen]) -> str:
    return ", ".join(dict.fromkeys(tensor.name for tensor in wrong))


_LOOK = "look at the first tensor that deviates, at its smallest probe"


def _unknown(wrong: Sequence[Seen], found: Sequence[Pattern]) -> Finding:
    """No mistake of the catalogue: say where it begins, and what is seen of some tensors."""
    first = wrong[0]
    facts = [f"begins at {first.name}, at {first.probe}", *_in_words(found)]
    return Finding("unknown", first.name, "", "no mistake of the catalogue explains it; " + "; ".join(facts), _LOOK)
