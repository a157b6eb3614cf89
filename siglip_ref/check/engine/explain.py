"""What explains the tensors that were seen: mistakes of the catalogue are made in the reference, and compared.

A mistake explains a wrong tensor as far as its own result is nearer to what was seen than the right one is; a right
tensor that it would have made wrong counts against it. What explains everything to within rounding is a finding: a
mistake; else two or three made together. What explains a good part is a suspicion, and says its share; below that the
answer is "unknown", with where it begins.

A gradient that is zero everywhere did not arrive. That is said first, and the rest explained without it, unless
mistakes that make it zero themselves explain everything.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from siglip_ref.check.engine.findings import (
    FINDING,
    Explanation,
    barely,
    detached,
    findings_of,
    unknown,
)
from siglip_ref.check.engine.seen import Seen, distance, distance_from, is_wrong
from siglip_ref.mistakes import Mistake
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding

NEARLY = 0.99  # of it, from which on it is worth a proof, where there is one
SUSPICION = 0.8  # named as a suspicion; less is "unknown"
WHOLLY = 0.3  # of the wrong tensors, which a suspicion explains to within rounding
TOGETHER = 3  # mistakes at once, at most
BARELY = 2.0  # times what is allowed: no more than the room in which an explanation may lie
KEPT = 4  # the best combinations of n mistakes from which those of n + 1 are built, and which are tried everywhere
LISTED = 3


Tensors = Mapping[tuple[str, str], Array]  # by (probe, tensor)
Predict = Callable[[Sequence[Mistake]], Tensors]  # what the reference gives with these mistakes made in it


def explain(
    seen: Sequence[Seen],
    mistakes: Sequence[Mistake],
    predict: Predict,
    is_gradient: Callable[[str], bool] = lambda name: name != "loss",
    at_once: int = TOGETHER,
    proven: Callable[[Sequence[Mistake]], bool] | None = None,
) -> list[Finding]:
    """Findings, best first; empty if nothing is wrong.

    Parameters
    ----------
    seen : every tensor of every probe, right ones too
    mistakes : candidates, the more frequent ones first
    predict : runs the reference with mistakes made in it, at the same probes; it, or a look at what it returns, raises
        ValueError where two of them change the same line
    is_gradient : whether a tensor is one, by its name
    at_once : mistakes made together, at most
    proven : whether mistakes that explain nearly everything are all that is wrong; None: if they explain everything
    """
    wrong = [tensor for tensor in seen if is_wrong(tensor)]
    if not wrong:
        return []
    absent = [name for name in _names(wrong) if is_gradient(name) and _is_zero(name, seen)]
    if not absent and all(distance(one, one.exact) <= BARELY for one in wrong):
        return [barely(wrong)]
    alone, whole = _wholly(seen, mistakes, predict, at_once, proven)
    whole = [entry for entry in whole if _made_zero(entry, absent, seen, predict) == absent]
    everything, first = seen, list[Finding]()
    if absent and not whole:
        seen = [one for one in seen if one.name not in absent]
        wrong = [one for one in wrong if one.name not in absent]
        alone, whole = _wholly(seen, mistakes, predict, at_once, proven)
        made = [_made_zero(entry, absent, everything, predict) for entry in whole]
        most = max(made, key=len, default=[])
        whole = [entry for entry, zero in zip(whole, made, strict=True) if zero == most]
        left = [name for name in absent if name not in most]
        first = [detached(left)] if left else []
    names = _names(wrong)
    if whole:
        return first + [one for entry in whole for one in _beside(whole, entry, findings_of(entry, names))]
    if not wrong:
        return first
    told = [entry for entry in alone if entry.share >= SUSPICION and _explains_some(entry, wrong, predict)][:LISTED]
    suspicions = [finding for entry in told for finding in findings_of(entry, names)]
    return first + (suspicions or [unknown(wrong[0].name, wrong[0].probe)])


def _beside(whole: Sequence[Explanation], entry: Explanation, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings of one explanation; where others explain as much, each says so: only one of them need be true."""
    others = [" and ".join(mistake.id for mistake in other.mistakes) for other in whole if other is not entry]
    for one in findings:
        more = f"; {' or '.join(others)} explains it as well: these inputs do not tell them apart" * bool(others)
        yield replace(one, evidence=one.evidence + more)


def _wholly(
    seen: Sequence[Seen],
    mistakes: Sequence[Mistake],
    predict: Predict,
    at_once: int,
    proven: Callable[[Sequence[Mistake]], bool] | None,
) -> tuple[list[Explanation], list[Explanation]]:
    """All mistakes by what they explain alone; and what explains everything, alone or together, each in one form."""
    wrong = [one for one in seen if is_wrong(one)]

    def looked_at(entry: Explanation) -> Explanation:
        if proven is None or entry.share < NEARLY:
            return entry
        return replace(entry, share=FINDING if proven(entry.mistakes) else NEARLY)

    enough = FINDING if proven is None else NEARLY
    alone = [looked_at(one) for one in _ranked(seen, ((m,) for m in mistakes), predict)] if wrong else []
    whole = [entry for entry in alone if entry.share >= FINDING]
    if wrong and not whole and at_once > 1:
        together = [looked_at(one) for one in _together(seen, wrong, mistakes, predict, enough)]
        whole = [entry for entry in together if entry.share >= FINDING]
    by_ids: dict[tuple[str, ...], Explanation] = {}
    for entry in whole:
        by_ids.setdefault(tuple(mistake.id for mistake in entry.mistakes), entry)
    return alone, list(by_ids.values())[:LISTED]


def _names(tensors: Sequence[Seen]) -> list[str]:
    return list(dict.fromkeys(tensor.name for tensor in tensors))


def _is_zero(name: str, seen: Sequence[Seen]) -> bool:
    """Whether a tensor is zero at every probe."""
    return not any(np.any(one.got) for one in seen if one.name == name)


def _made_zero(entry: Explanation, absent: Sequence[str], seen: Sequence[Seen], predict: Predict) -> list[str]:
    """Which of these gradients the mistakes themselves take away; to make one small is not enough."""
    with np.errstate(all="ignore"):
        predicted = predict(entry.mistakes)
        off = {one.name for one in seen if not distance(one, predicted[one.probe, one.name]) <= 2}
    return [name for name in absent if name not in off]


def _explains_some(entry: Explanation, wrong: Sequence[Seen], predict: Predict) -> bool:
    """A suspicion explains a part wholly; to be nearer everywhere and right nowhere is chance."""
    with np.errstate(all="ignore"):
        predicted = predict(entry.mistakes)
        wholly = sum(distance(one, predicted[one.probe, one.name]) <= 2 for one in wrong)
    return wholly >= len(wrong) * WHOLLY


def _together(
    seen: Sequence[Seen], wrong: Sequence[Seen], mistakes: Sequence[Mistake], predict: Predict, enough: float
) -> list[Explanation]:
    """The best of two or three mistakes made together that explain everything. Of a good part there is no talk: a
    second mistake that does nothing is always found. All combinations are tried at one probe, the first at which most
    tensors are wrong, and only of mistakes that change no tensor there that is right."""
    counts = {label: sum(one.probe == label for one in wrong) for label in dict.fromkeys(one.probe for one in wrong)}
    first = max(counts, key=lambda label: counts[label])
    here = [one for one in seen if one.probe == first]
    ranked = [entry for entry in _ranked(here, ((m,) for m in mistakes), predict) if _within(here, entry, predict)]
    useful = [mistake for mistake in mistakes if any(entry.mistakes[0] is mistake for entry in ranked)]
    for count in range(1, TOGETHER + 1):
        if count > 1:
            ranked += _ranked(here, _extended(ranked, useful, count), predict)
        best = [entry for entry in _sorted(ranked) if len(entry.mistakes) == count][:KEPT]
        whole = _whole(seen, (entry.mistakes for entry in best if count > 1), predict, enough)
        if not whole and count < TOGETHER:
            # what explains this probe wholly, and one more that shows at others alone, such as where logits are far
            here_whole = [entry for entry in best if entry.share >= enough]
            whole = _whole(seen, _with_one_more(here_whole, mistakes), predict, enough)
        if whole:
            return whole[:LISTED]
    return []


def _whole(
    seen: Sequence[Seen], candidates: Iterator[tuple[Mistake, ...]], predict: Predict, enough: float
) -> list[Explanation]:
    """Those that explain every probe."""
    return [entry for entry in _ranked(seen, candidates, predict) if entry.share >= enough]


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
    else:
        yield from _with_one_more([e for e in _sorted(ranked) if len(e.mistakes) == count - 1][:KEPT], mistakes)


def _with_one_more(entries: Sequence[Explanation], mistakes: Sequence[Mistake]) -> Iterator[tuple[Mistake, ...]]:
    """Each of these with each mistake; a combination once. Forms of one mistake do not go together."""
    tried = set()
    for entry in entries:
        for mistake in mistakes:
            ids = {m.id for m in entry.mistakes}
            key = frozenset((m.id, m.text) for m in (*entry.mistakes, mistake))
            if mistake.id not in ids and key not in tried:
                tried.add(key)
                yield (*entry.mistakes, mistake)


def share_explained(seen: Sequence[Seen], predicted: Tensors) -> float:
    """From 0 (nothing) to 1 (everything, to within rounding); each tensor that is wrong, or should be, counts once."""
    explained, counted = 0.0, 0
    for tensor in seen:
        before = distance(tensor, tensor.exact)
        after = distance_from(tensor, predicted[tensor.probe, tensor.name])
        if before <= 1:
            counted += not after <= 1  # it would have been wrong, and is right
            continue
        counted += 1
        if after <= 1:
            explained += 1
        elif np.isfinite(after) and np.isfinite(before):
            explained += max(0.0, 1 - after / before)
    return explained / counted if counted else 0.0
