"""What explains wrong tensors, in the words of a finding: mistakes, or what little is known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor

from siglip_ref.check.engine.seen import Seen, distance
from siglip_ref.mistakes import CATALOGUE, Mistake
from siglip_ref.report.data import Finding, FindingKind

FINDING = 1.0  # of the deviation explained, no tensor is left: named as the mistake
DETACHED = "no-gradient-arrives"
_NOT_ALL = "; then check again, for this is not all"
_LOOK = "look at the first tensor that deviates, at its smallest probe"


@dataclass(frozen=True)
class Explanation:
    """Mistakes made together, and the share of the deviation they explain (1: everything, to within rounding)."""

    mistakes: tuple[Mistake, ...]
    share: float


def findings_of(entry: Explanation, tensors: Sequence[str]) -> Iterator[Finding]:
    """One for each mistake of an explanation."""
    certain, names = entry.share >= FINDING, ", ".join(tensors)
    kind: FindingKind = "mistake" if certain else "suspicion"
    for mistake in entry.mistakes:
        others = " and ".join(other.id for other in entry.mistakes if other is not mistake)
        word = "explains" if certain else "a suspicion: explains"
        evidence = f"{word} {percent(entry.share)} of the deviation of {names}"
        if others and mistake is entry.mistakes[0]:
            evidence = f"together with {others} it {evidence}"
        elif others:
            evidence = f"together with {others}"
        text, repair = f"{mistake.text}; {evidence}", mistake.repair + _NOT_ALL * (not certain)
        yield Finding(mistake.id, names, "", text, repair, kind, tuple(tensors), {"share": entry.share})


def percent(share: float) -> str:
    """Of everything alone it is 100%.

    >>> percent(1.0), percent(0.9996)
    ('100%', '99%')
    """
    return f"{floor(100 * share + 1e-9)}%"


def detached(absent: Sequence[str]) -> Finding:
    """Gradients that are zero, or missing, at every probe."""
    names = tuple(f"d {name}" for name in absent)
    repair = CATALOGUE[DETACHED].repair
    return Finding(DETACHED, names[0], "", f"{', '.join(names)}: no gradient arrives", repair, tensors=names)


def barely(wrong: Sequence[Seen]) -> Finding:
    """All that is wrong is hardly so: whatever changes next to nothing would explain it."""
    names = tuple(dict.fromkeys(one.name for one in wrong))
    most = max(wrong, key=lambda one: distance(one, one.exact))
    evidence = (
        f"{', '.join(names)}: {distance(most, most.exact):.2f} times what is allowed, at {most.probe}; "
        "too little to tell a mistake from rounding"
    )
    repair = 'dtype="float64" tells them apart: a mistake stays as large as it is, and rounding goes'
    return Finding("unknown", names[0], "", evidence, repair, tensors=names)


def unknown(tensor: str, probe: str) -> Finding:
    """No mistake of the catalogue: say where it begins."""
    evidence = f"no mistake of the catalogue explains it; begins at {tensor}, at {probe}"
    return Finding("unknown", tensor, "", evidence, _LOOK)
