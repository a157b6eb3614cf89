"""What a loss over ranks computes, in words and as records: who met whom, what lies with whom, and what to change."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from siglip_ref.errors import few
from siglip_ref.report.data import Finding, Meeting
from siglip_ref.report.words import WORDS

if TYPE_CHECKING:
    from siglip_ref.check.diagnosis.blocks.faults import Fault
    from siglip_ref.check.diagnosis.blocks.tensors import Blocks, Met

_VALUE = "the value is the sum over all blocks of all ranks, each once: a rank returns what its own blocks give, or all"
_AFTER = ", if that is still so when the rest is mended"
Way = tuple[str, str]  # of reducing and returning
_LISTED = 3
_PRINTED = 1e-7  # less than what a seventh digit says of a number, more than what float32 leaves open
_SCALARS = {"log_scale", "scale", "bias"}
_AVERAGED = "gather-own-slot-one-over-w"  # its story is of gradients that are averaged
# factors whose entry says what to do under each way in which it is told; else the factor says it
_FOLLOWED = (_AVERAGED, "no-gradient-arrives")
_ONCE = "images of every rank meet the texts of every rank once"
_ALL = 5  # the loss and its gradients


def repair_of(fault: "Fault", faults: "Sequence[Fault]", way: Way) -> str:
    """One line, in terms of the user's code. A factor may come of what else is wrong, and go with it. way : of
    reducing and returning, by which it goes what is due."""
    names = set(fault.tensors)
    beside = any(names & set(other.tensors) for other in faults if other is not fault and not other.way.kind)
    return _repair_of(fault, names, way) + _AFTER * (fault.kind == "factor" and beside)


def _repair_of(fault: "Fault", names: set[str], way: Way) -> str:
    if fault.kind in ("missing", "weighed", "repeated") and names == {"loss"}:
        return _VALUE
    if fault.kind == "missing" and names <= {"image_embed", "text_embed"}:
        return WORDS["blocks"]["lost" if fault.remote else "left"]
    if fault.kind == "missing" and names <= _SCALARS:
        return WORDS["blocks"]["shares"]
    if fault.kind != "factor" or fault.factor is None:
        return WORDS["repair_ranks"][fault.kind]
    times, words = fault.factor, WORDS["blocks"]
    if not times.number:
        return f"look for detach(), .data, .item() or no_grad between {', '.join(fault.tensors)} and the loss"
    inverse = type(times)().over(times)
    divide = not _exact(inverse.number) and _exact(times.number)
    do, form = ("divide", times) if divide else ("multiply", inverse)
    rounded = not divide and not _exact(inverse.number)
    by = f"by {form}" + words["pairs"] * bool(times.pairs) + words["rounded"] * rounded
    if len(names) == _ALL:
        due = words[f"due {way[1]} {way[0]}" if way[1] == "local" else "due global"]
        return f"{due}: {do} the loss, and so all its gradients, {by}"
    of = ", ".join(name for name in fault.tensors if name != "loss")
    what = " and ".join(["the value"] * ("loss" in names) + [f"the gradients of {of}"] * bool(of))
    twice = words["twice"].format(way[0]) if str(times) == "W" and way[0] != "none" and names <= _SCALARS else ""
    return f"{twice}{do} {what} {by}" + ", and nothing else" * ("loss" in names)


def _exact(number: float) -> bool:
    """Whether what is printed of it, six digits or one over a whole number, is all of it."""
    return any(
        math.isclose(one, number, rel_tol=_PRINTED) for one in (float(f"{number:.6g}"), 1 / (round(1 / number) or 1))
    )


def told(fault: "Fault") -> str:
    """What is seen of a fault; tensors of which the same is said, together."""
    texts: dict[str, list[str]] = {}
    for tensor, text in fault.told.items():
        texts.setdefault(text, []).append(tensor)
    return "; ".join(f"{', '.join(tensors)}: {text}" for text, tensors in texts.items())


def findings_of(faults: "Sequence[Fault]", way: Way) -> list[Finding]:
    """One for each fault; an entry of the catalogue where it is one, with its story."""
    from siglip_ref.mistakes import CATALOGUE

    found = []
    for fault in faults:
        mistake = None if fault.id == _AVERAGED and way[0] != "mean" else CATALOGUE.get(fault.id)
        others = [other.id or "another" for other in faults if other is not fault]
        beside = f"together with {' and '.join(others)} it " if others else ""
        evidence = f"{told(fault)}; {beside}explains 100% of the deviation"
        if mistake and fault.factor:  # which is told for certain; how it came about is not seen of it
            evidence = f"{evidence}; one way to come by it: {mistake.text}"
        elif mistake:
            evidence = f"{mistake.text}; {evidence}"
        names, id = ", ".join(fault.tensors), mistake.id if mistake else "derived"
        known = mistake and fault.kind != "shifted" and (not fault.factor or fault.id in _FOLLOWED)
        repair = mistake.repair if mistake and known else repair_of(fault, faults, way)
        found.append(Finding(id, names, "", evidence, repair, tensors=fault.tensors, numbers={"share": 1.0}))
    return found


def in_words(blocks: "Blocks", faults: "Sequence[Fault]", way: Way) -> list[str]:
    """The lines of `Report.computes`."""
    if not blocks.met:
        return ["measured: what came of the ranks is no sum of blocks, each a number of times"]
    said = {world: met_in_words(met, world) for world, met in blocks.met.items()}
    if any(fault.way.kind and fault.kind == "matches" for fault in faults):  # which match is said behind it
        said = dict.fromkeys(said, _ONCE)
    same = len(set(said.values())) == 1
    words = next(iter(said.values())) if same else " / ".join(f"{text} (W={world})" for world, text in said.items())
    if not blocks.certain:
        places = few([f"{name} at {label}" for name, label in blocks.failed], _LISTED)
        lost = f"; it does not give {places}" if blocks.failed else "; nothing is left to prove it with"
        return [f"measured: {words}", f"not certain: this is read off the gradients at two calls{lost}"]
    of = [f"; {told(fault)}" for fault in faults if fault.way.kind]
    lines = ["".join((f"your loss over ranks: {words}", *of))]
    lines += [f"not SigLIP's: {told(fault)} ({repair_of(fault, faults, way)})" for fault in faults]
    if not faults:
        lines.append("that is SigLIP's own: every gradient lies with its owner, once")
    return [*lines, f"this reproduces your loss at held-out inputs ({blocks.compared} tensors)"]


def met_in_words(met: "Met", world: int) -> str:
    """Who met whom: by hops where all ranks do the same, else rank by rank."""
    kinds = ("positives", "negatives", "diagonal", "zeros")
    ranks = range(world)
    rows = [[[met.get((r, (r + h) % world, k, -1), 0.0) for k in kinds] for h in ranks] for r in ranks]  # type: ignore[call-overload]  # a part is a tuple
    remote = {_meets(kinds, False) for row in rows for kinds in row[1:]}
    if all(row == rows[0] for row in rows) and len(remote) == 1 and world > 2:
        own, others = _meets(rows[0][0], True), remote.pop()
        odd = [f"images of every rank {own} their own texts"] * bool(own)
        odd += [f"images of every rank {others} the texts of every other rank"] * bool(others)
    elif all(row == rows[0] for row in rows):
        odd = [f"images of rank r {text} {_texts(h)}" for h in ranks if (text := _meets(rows[0][h], h == 0))]
    else:
        odd = [
            f"images of rank {r} {text} the texts of rank {(r + h) % world}"
            for r in ranks
            for h in ranks
            if (text := _meets(rows[r][h], h == 0))
        ]
    more = f"; and {len(odd) - 2 * _LISTED} more" if len(odd) > 2 * _LISTED else ""
    return "; ".join(odd[: 2 * _LISTED]) + more if odd else _ONCE


def _texts(hop: int) -> str:
    return f"the texts of rank r + {hop}, modulo W" if hop else "their own texts"


def _meets(kinds: Sequence[float], own: bool) -> str:
    """How a block was met, if not as it should be."""
    matches, negatives, others, zeros = kinds
    if zeros:
        return "meet zeros in place of"
    if not any(kinds):
        return "never meet"
    if (matches, negatives, others) == ((1.0, 1.0, 0.0) if own else (0.0, 1.0, 1.0)):
        return ""
    if own and others and not matches and negatives == others:
        return f"meet {_often(others)}, and never as matches,"
    if own and others and negatives == matches + others:
        return f"meet {_often(matches)} with and {_often(others)} without matches"
    if not own and matches and negatives == matches + others:
        return f"meet {_often(matches)} as if they matched" + (f" and {_often(others)} not" if others else "")
    if (matches == negatives and own and not others) or (negatives == others and not own and not matches):
        return f"meet {_often(negatives)}"
    return f"meet with matches counted {matches:g}, other pairs {negatives:g}, matches as no match {others:g} times:"


def _often(times: float) -> str:
    return {1.0: "once", 2.0: "twice"}.get(times, f"{times:.4g} times")


# --- as a record


def meetings_of(blocks: "Blocks") -> list[Meeting]:
    """The matrices: of the value who met whom, of both embeddings' gradients what each rank holds of whose block."""
    found = []
    for world, met in blocks.met.items():
        found += [Meeting("met", "loss", world, p.images, p.images, p.texts, p.kind, w) for p, w in met.items() if w]
        for name in ("image_embed", "text_embed"):
            tensor = blocks.tensors.get(name)
            for (holder, part), weight in ((tensor.lies if tensor else None) or {}).get(world, {}).items():
                found.append(Meeting("held", name, world, holder, part.images, part.texts, part.kind, weight))
    return found
