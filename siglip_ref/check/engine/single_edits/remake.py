"""How figures are measured, renewed and verified: behind `siglip-ref coverage`."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib import import_module
from inspect import getsource
from pathlib import Path
from typing import Any

from siglip_ref.check.engine.single_edits.measure import Ground, Tried, measured
from siglip_ref.check.engine.single_edits.shipped import FILE, read, stamp_of, write
from siglip_ref.mistakes import Edit
from siglip_ref.mistakes.change import module_of

EVERY = 61  # of the edits this one is tried again before figures of another text are believed

Progress = Callable[[str], None]


def remake(
    grounds: Sequence[Ground],
    processes: int = 1,
    everything: bool = False,
    say: Progress = lambda line: None,
    file: Path = FILE,
) -> list[str]:
    """Measure what is missing or out of date; the keys that were measured.

    A figure of another text is believed where there are as many edits as before, and a sample of them, tried anew,
    survives where it is said to: then what was written changed, not what it computes. `everything` believes nothing.
    """
    marks, figures = read(file)
    known = {key: figures[key] for key in figures if not everything}
    done, kept = list[str](), dict[str, Any]()
    for ground in grounds:
        keys = [ground.key(dtype) for dtype in ground.dtypes]
        subject = keys[0].split(",")[0]
        current = marks.get(subject) == stamp_of(subject)
        if not all(key in known for key in keys) or not (current or not wrong(ground, known, say)):
            say(f"{keys[0]}: {len(ground.edits())} edits")
            known |= figures_of(ground, list(measured(ground, processes, say=say)))
            done += keys
        kept |= {key: known[key] for key in keys}
        write(marks | {subject: stamp_of(subject)}, figures | kept, file)
    write({key.split(",")[0]: stamp_of(key.split(",")[0]) for key in kept}, kept, file)
    return done


def verify(
    grounds: Sequence[Ground], say: Progress = lambda line: None, every: int = EVERY, file: Path = FILE
) -> list[str]:
    """What is wrong with the figures, in words: stamps, figures that are missing, a sample that is another now."""
    marks, known = read(file)
    found = []
    for ground in grounds:
        keys = [ground.key(dtype) for dtype in ground.dtypes]
        subject = keys[0].split(",")[0]
        found += [f"no figure: {key}" for key in keys if key not in known]
        found += [] if marks.get(subject) == stamp_of(subject) else [f"{keys[0]}: measured with another text"]
        found += wrong(ground, known, say, every) if all(key in known for key in keys) else []
    return found


def wrong(ground: Ground, known: dict[str, Any], say: Progress, every: int = EVERY) -> list[str]:
    """What a sample of the edits shows otherwise than it is known, in words."""
    say(f"{ground.key(ground.dtypes[0])}: a sample")
    found, sample = [], list(measured(ground, every=every))
    for dtype in ground.dtypes:
        key = ground.key(dtype)
        if known[key]["edits"] != len(ground.edits()):
            found.append(f"{key}: {len(ground.edits())} edits, not {known[key]['edits']}")
        survivors = {words(one.edit) for one in sample if one.changes and not one.seen[dtype]}
        told = set(known[key]["survivors"]) & {words(one.edit) for one in sample}
        found += [f"{key}: {edit}" for edit in sorted(survivors ^ told)]
    return found


def figures_of(ground: Ground, found: Sequence[Tried]) -> dict[str, Any]:
    """By key: how many edits there are, run, and change a number; and the survivors."""
    counts = {"edits": len(found), "running": sum(one.runs for one in found)}
    counts["changing"] = sum(one.changes for one in found)
    return {
        ground.key(dtype): counts
        | {"survivors": {words(one.edit): _short(one.shown[dtype]) for one in _unseen(found, dtype)}}
        for dtype in ground.dtypes
    }


def _unseen(found: Iterable[Tried], dtype: str) -> list[Tried]:
    return [one for one in found if one.changes and not one.seen[dtype]]


def _short(number: float) -> Any:
    return float(f"{number:.2g}") if number < float("inf") else "inf"


def words(edit: Edit) -> str:
    """The function, and the line as it is and as it becomes.

    >>> from siglip_ref.mistakes.grammar.places import single_edits
    >>> words(single_edits("ops/softmax.py", ("softmax_backward",))[0])
    'ops/softmax.py: out = [cache -> (np.clip(cache, -1, 1))]'
    """
    source = _source(edit.file)
    at = edit.at or 0
    begin, end = source.rfind("\n", 0, at) + 1, source.find("\n", at + len(edit.old))
    before, after = source[begin:at], source[at + len(edit.old) : end]
    place = source.count("\n" + source[begin:end] + "\n", 0, begin)  # the same line may come again
    again = f" ({place + 1})" if place else ""
    line = " ".join(f"{before}[{edit.old} -> {edit.new}]{after}".partition("  #")[0].split())
    return f"{edit.file}{again}: {line}"


@lru_cache(maxsize=64)
def _source(file: str) -> str:
    return getsource(import_module(module_of(file)))
