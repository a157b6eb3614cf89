"""What explains wrong tensors, in the words of a finding: mistakes, patterns, or what little is known."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from siglip_ref.check.engine.seen import Seen, distance
from siglip_ref.mistakes import CATALOGUE, Mistake
from siglip_ref.report.data import Finding, FindingKind

FINDING = 0.99  # of the deviation explained: named as the mistake
DETACHED = "no-gradient-arrives"
_LOOK = "look at the first tensor that deviates, at its smallest probe"


@dataclass(frozen=True)
class Explanation:
    """Mistakes made together, and the share of the deviation they explain (1: everything, to within rounding)."""

    mistakes: tuple[Mistake, ...]
    share: float


@dataclass(frozen=True)
class Pattern:
    """One tensor, explained at every probe. id: of the catalogue, or "unknown"; text: what is seen; form: the same as
    data, equal for tensors of which the same is seen."""

    tensor: str
    id: str
    text: str
    form: Hashable = None


class Factor(NamedTuple):
    """The form of a tensor that is the right one times a number; name: of the number, which may depend on the batch."""

    name: str


def findings_of(entry: Explanation, tensors: Sequence[str], patterns: Sequence[Pattern] = ()) -> Iterator[Finding]:
    """One for each mistake of an explanation; with what patterns say in more detail of the same."""
    certain = entry.share >= FINDING
    names = ", ".join(tensors)
    forms = {pattern.form if isinstance(pattern.form, Factor) else None for pattern in patterns}
    alike = len(forms) == 1 and None not in forms and len(patterns) == len(tensors) > 1
    shared = f"; each is {patterns[0].text}" if alike else ""
    for mistake in entry.mistakes:
        others = " and ".join(other.id for other in entry.mistakes if other is not mistake)
        word = "explains" if certain else "a suspicion: explains"
        evidence = f"{word} {entry.share:.0%} of the deviation of {names}{shared}"
        if others and mistake is entry.mistakes[0]:
            evidence = f"together with {others} it {evidence}"
        elif others:
            evidence = f"together with {others}"
        same = [pattern for pattern in patterns if pattern.id == mistake.id]
        told = () if shared else _in_words(same)
        text = "; ".join((mistake.text, evidence, *told))
        kind: FindingKind = "mistake" if certain else "suspicion"
        yield Finding(mistake.id, names, "", text, mistake.repair, kind, tuple(tensors), {"share": entry.share})


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


def of_patterns(found: Sequence[Pattern]) -> Finding:
    """Every wrong tensor has a pattern, which may be a general form of one mistake of the catalogue."""
    id = found[0].id if len({pattern.id for pattern in found}) == 1 else "unknown"
    names = tuple(pattern.tensor for pattern in found)
    evidence = "; ".join(_in_words(found)) + "; explains 100% of the deviation"
    if id == "unknown":
        return Finding(id, names[0], "", f"a pattern of no single name: {evidence}", _LOOK, tensors=names)
    mistake = CATALOGUE[id]
    return Finding(id, ", ".join(names), "", f"{mistake.text}; {evidence}", mistake.repair, tensors=names)


def _in_words(found: Sequence[Pattern]) -> list[str]:
    """Tensors of which the same is said, together."""
    texts: dict[str, list[str]] = {}
    for pattern in found:
        texts.setdefault(pattern.text, []).append(pattern.tensor)
    return [f"{', '.join(tensors)}: {text}" for text, tensors in texts.items()]


def unknown(tensor: str, probe: str, found: Sequence[Pattern]) -> Finding:
    """No mistake of the catalogue: say where it begins, and what is seen of some tensors."""
    facts = [f"begins at {tensor}, at {probe}", *_in_words(found)]
    return Finding("unknown", tensor, "", "no mistake of the catalogue explains it; " + "; ".join(facts), _LOOK)
