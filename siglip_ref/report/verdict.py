"""The verdict, the same for every check: what is wrong fails, and what is not judged does not pass.

FAIL comes first: something that could be judged is wrong. NOT JUDGED: nothing is, but too little could be judged for a
PASS to mean anything. OTHER CONVENTION and PASS are for runs that were judged.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from siglip_ref.errors import few
from siglip_ref.report.compare import Row

Verdict = Literal["PASS", "OTHER CONVENTION", "NOT JUDGED", "FAIL"]
Why = Literal["out of range", "judged nowhere", "did not finish"]

OUTPUTS = ("loss", "logits", "embed", "image_embed", "text_embed")  # what a model is there for, and a loss
_NAMED = 3  # tensors in a line


@dataclass(frozen=True)
class Unjudged:
    """Why there is no verdict on a run. tensors: those that it is about, as the report names them; evidence and repair:
    in a line each, as in a finding."""

    why: Why
    tensors: tuple[str, ...]
    evidence: str
    repair: str


@dataclass(frozen=True)
class Judgement:
    """The verdict of a run's rows; unjudged: why it is NOT JUDGED, None for every other verdict."""

    verdict: Verdict
    unjudged: Unjudged | None = None


def judgement(
    rows: Iterable[Row],
    *,
    asked: Callable[[Row], bool] = lambda row: True,
    needed: Callable[[Row], bool] = lambda row: row.kind == "gradient" or row.name.split("/")[-1] == "loss",
    at: str | None = None,
    unfinished: Unjudged | None = None,
) -> Judgement:
    """What the rows of one run come to.

    Parameters
    ----------
    rows : every tensor at every probe
    asked : whether a tensor was asked for; one that nobody asked for may stay unjudged
    needed : what must be judged at some probe, if it was asked for: the loss and every gradient
    at : the probe at which outputs must be within the range; None: any
    unfinished : see `did_not_finish`: the run did not reach its end

    Notes
    -----
    With nothing wrong, a run is NOT JUDGED if it did not finish; if the loss, logits or an embedding is out of range
    at every probe; if the loss or a gradient that was asked for was judged at no probe; or if nothing was judged at
    all.
    """
    rows = [row for row in rows if asked(row)]
    if any(row.verdict == "FAIL" for row in rows):
        return Judgement("FAIL")
    why = unfinished or _beyond(rows, at) or _judged_nowhere(rows, needed)
    return Judgement("NOT JUDGED" if why else "PASS", why)


def verdict_of(rows: Iterable[Row]) -> Verdict:
    """The verdict alone, where everything was asked for.

    >>> from siglip_ref.report.compare import out_of_range
    >>> verdict_of([out_of_range("loss", "value", "overflows even with correct rounding")])
    'NOT JUDGED'
    """
    return judgement(rows).verdict


def did_not_finish(evidence: str, repair: str, tensors: Iterable[str] = ()) -> Unjudged:
    """A run that was cut short through no fault that it showed: it waited too long, or for something that was busy."""
    return Unjudged("did not finish", tuple(tensors), evidence, repair)


def _beyond(rows: list[Row], at: str | None) -> Unjudged | None:
    """Loss, logits or an embedding for which even correct rounding leaves the range, at every probe that counts."""
    outputs = [row for row in rows if row.kind != "gradient" and row.name.split("/")[-1] in OUTPUTS]
    counted = [row for row in outputs if at is None or row.probe == at]
    fits = {row.name for row in counted if row.verdict != "out of range"}
    beyond = tuple(dict.fromkeys(row.name for row in counted if row.name not in fits))
    if not beyond:
        return None
    note = next(row.note for row in counted if row.name == beyond[0])
    probes = {row.probe for row in counted}
    where = " at every probe" if len(probes) > 1 else f" at {probes.pop()}" if probes != {""} else ""
    evidence = f"{few(beyond, _NAMED)}: out of range{where}, so nothing says whether it is right ({note})"
    return Unjudged("out of range", beyond, evidence, 'a wider dtype= ("float64" has the widest), or smaller weights')


def _judged_nowhere(rows: list[Row], needed: Callable[[Row], bool]) -> Unjudged | None:
    """What is needed, and no probe could judge; or everything."""
    judged = {(row.name, row.kind) for row in rows if row.right}
    missing = [row for row in rows if (needed(row) or not judged) and (row.name, row.kind) not in judged]
    if not missing and judged:
        return None
    names = tuple(dict.fromkeys(f"d {row.name}" if row.kind == "gradient" else row.name for row in missing))
    note = f" ({missing[0].note})" if missing and missing[0].note else ""
    evidence = f"{few(names, _NAMED)}: judged at no probe{note}" if names else "nothing was compared"
    return Unjudged(
        "judged nowhere", names, evidence, 'a wider dtype=, or inputs that stay within its range; see "not checked"'
    )
