"""What the ranks of a distributed loss brought back, judged as one process would see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from siglip_ref.check.compare import Row
from siglip_ref.check.diagnose import explain, seen_of
from siglip_ref.check.frameworks import ARGUMENTS, Outcome, Setting, describe
from siglip_ref.check.loss_words import conventions_in_words
from siglip_ref.check.mistakes import Mistake, executable
from siglip_ref.check.predict import in_the_loss, predict_loss
from siglip_ref.check.probes import Probe
from siglip_ref.check.ranks import WAITING, RankFailure, RankOutcome, Split
from siglip_ref.check.report import Finding, Report, verdict_of, worst_rows
from siglip_ref.check.truth import Convention, judge, truth
from siglip_ref.ops.elementary import Array

Reduce = Literal["mean", "sum", "none"]
Value = Literal["local", "global"]

_REDUCE = {
    "mean": "gradients are averaged over ranks afterwards: an embedding shard's is W times its global one before that",
    "sum": "gradients are added over ranks afterwards: an embedding shard's is its global one",
    "none": "gradients are final: a shard's is its global one, scale and bias are the same on every rank",
}
_VALUE = {"local": "a rank returns its part; their mean is the loss", "global": "every rank returns the whole loss"}


@dataclass(frozen=True)
class Observed:
    """What the ranks of one call brought back, and the probe that they were given."""

    probe: Probe
    split: Split
    ranks: Sequence[RankOutcome]

    def together(self, reduce: Reduce, value: Value) -> Outcome:
        """One process's view: the loss, each shard's gradient from its owner, scale and bias reduced as declared."""
        world = len(self.ranks)
        losses = np.array([float(rank.loss) for rank in self.ranks])
        # local values: W / B times the local sum where gradients are averaged, 1 / B times where they are added
        loss = _scalar(losses, "none" if value == "global" else reduce)
        factor = 1 / world if reduce == "mean" else 1.0
        gradients: dict[str, Array | None] = {}
        for name in ARGUMENTS:
            parts = [part for part in (rank.gradients[name] for rank in self.ranks) if part is not None]
            if len(parts) < world:
                gradients[name] = None
            elif name in ("image_embed", "text_embed"):
                gradients[name] = factor * np.concatenate(parts)
            else:
                gradients[name] = _scalar(np.array([float(np.sum(part)) for part in parts]), reduce)
        return Outcome(np.array(loss), gradients)


def judge_ranks(
    fn: Callable[..., Any],
    name: str,
    setting: Setting,
    observed: dict[str, list[Observed]],
    candidates: Sequence[Convention],
    reduce: Reduce,
    value: Value,
) -> Report:
    """The report under the convention that fits best; the declared way of reducing comes first."""
    alternatives: tuple[Reduce, ...] = ("mean", "sum", "none") if name == "numpy" else ("mean", "sum")
    ways = [reduce, *(way for way in alternatives if way != reduce)]
    scored = [
        (
            _wrong(rows := _rows(observed[convention.scale], convention, setting, way, value)),
            ways.index(way),
            place,
            rows,
        )
        for way in ways
        for place, convention in enumerate(candidates)
    ]
    # the declared reduction, unless only another one explains everything
    right = [entry for entry in scored if entry[0] == 0]
    best = min(right, key=lambda e: e[1:3]) if right else min((e for e in scored if e[1] == 0), key=lambda e: e[:3])
    _, used, place, details = best
    convention = candidates[place]
    report = Report(
        title=f"{describe(fn)} ({name}, {setting.words}, {_worlds(observed)})",
        verdict=verdict_of(details),
        rows=worst_rows(details),
        conventions=conventions_in_words(convention, candidates)
        | {f'reduce="{ways[used]}"': _REDUCE[ways[used]], f'value="{value}"': _VALUE[value]},
        details=details,
    )
    if report.passed and used:
        report.verdict = "OTHER CONVENTION"
        evidence = f'declared was reduce="{reduce}", but everything is right under reduce="{ways[used]}"'
        repair = f'if that is meant, declare it: check_distributed_loss(fn, reduce="{ways[used]}")'
        report.findings.append(Finding("convention", "", "", evidence, repair))
    if not report.passed:
        report.findings += _diagnosis(observed[convention.scale], convention, setting, ways[used], value)
    calls = sum(len(calls) for calls in observed.values())
    report.notes.append(f"{len(details)} comparisons in {calls} collective calls; every rank had other data")
    return report


def _rows(
    observed: Sequence[Observed], convention: Convention, setting: Setting, reduce: Reduce, value: Value
) -> list[Row]:
    rows: list[Row] = []
    for call in observed:
        right = truth(call.probe, convention, setting)
        for row in judge(call.together(reduce, value), right, call.split.label):
            rows.append(replace(row, rows=_with_ranks(row, call)))
    return rows


def _diagnosis(
    observed: Sequence[Observed], convention: Convention, setting: Setting, reduce: Reduce, value: Value
) -> list[Finding]:
    """Mistakes between ranks first, then those of any loss."""

    seen = [
        one
        for call in observed
        for one in seen_of(call.split.label, call.together(reduce, value), truth(call.probe, convention, setting))
    ]

    def predict(mistakes: Sequence[Mistake]) -> dict[tuple[str, str], Array]:
        return {
            (call.split.label, name): values
            for call in observed
            for name, values in predict_loss(mistakes, call.probe, convention, setting.dtype, call.split.sizes).items()
        }

    return explain(seen, executable("across ranks") + [m for m in executable("one vector") if in_the_loss(m)], predict)


def _with_ranks(row: Row, call: Observed) -> str:
    """Which ranks own the wrong rows, said beside the rows."""
    return f"{row.rows} (shards of {', '.join(map(str, call.split.sizes))} pairs)" if row.rows else ""


def _wrong(rows: Sequence[Row]) -> int:
    return sum(row.verdict == "FAIL" for row in rows)


def _scalar(parts: Array, reduce: Reduce) -> Array:
    if reduce == "none":  # final on every rank: the one that differs most speaks
        return np.array(parts[np.abs(parts - np.median(parts)).argmax()])
    return np.array(parts.mean() if reduce == "mean" else parts.sum())


def _worlds(observed: dict[str, list[Observed]]) -> str:
    sizes = sorted({len(call.ranks) for calls in observed.values() for call in calls})
    return f"{' and '.join(map(str, sizes))} ranks"


def failed_ranks(title: str, failures: Sequence[RankFailure], limit: float) -> Report:
    """Ranks that raised, died, or waited for ever; the one that failed first tells the cause, the others noticed."""
    hanging = all(failure.cause == WAITING for failure in failures)
    first = min(failures, key=lambda failure: failure.when)
    if hanging:
        who = ", ".join(str(failure.rank) for failure in failures)
        evidence = f"ranks {who} did not end within {limit:g} s; the first of them was at {first.stage}"
        repair = "every rank sent before it received, or one makes a call more: use Sendrecv, or isend and irecv"
    else:
        evidence = f"rank {first.rank} failed at {first.stage}: {first.cause}"
        repair = "run that rank's shard alone; if unequal shards are not supported, leave unequal=False"
    finding = Finding("p2p-order-deadlock" if hanging else "rank-failed", "", f"rank {first.rank}", evidence, repair)
    return Report(title=title, verdict="FAIL", rows=[], findings=[finding], not_checked=["values and gradients"])
