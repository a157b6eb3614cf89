"""What the ranks of a distributed loss brought back, judged as one process would see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from siglip_ref.check.compare import Row
from siglip_ref.check.diagnose import explain
from siglip_ref.check.frameworks import ARGUMENTS, Outcome, Setting, describe
from siglip_ref.check.hops import hops_of
from siglip_ref.check.loss_words import conventions_in_words
from siglip_ref.check.mistakes import Mistake
from siglip_ref.check.patterns import patterns
from siglip_ref.check.predict import Context, Predicted, odd_one, suspects
from siglip_ref.check.probes import Probe
from siglip_ref.check.ranks import WAITING, RankFailure, RankOutcome, Split
from siglip_ref.check.report import Case, Finding, Hop, Report, worst_rows
from siglip_ref.check.seen import seen_of
from siglip_ref.check.truth import Convention, Truth, judge, truth
from siglip_ref.check.verdict import judgement
from siglip_ref.ops.elementary import Array

Reduce = Literal["mean", "sum", "none"]
Value = Literal["local", "global"]
Way = tuple[Reduce, Value]

_REDUCE = {
    "mean": "gradients are averaged over ranks afterwards: an embedding shard's is W times its global one before that",
    "sum": "gradients are added over ranks afterwards: an embedding shard's is its global one",
    "none": "gradients are final: a shard's is its global one, scale and bias are the same on every rank",
}
_VALUE = {"local": "a rank returns its part, as its gradients are", "global": "every rank returns the whole loss"}


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
        # local values: W / B times the local sum where gradients are averaged, else 1 / B times
        loss = _scalar(losses, "none" if value == "global" else "mean" if reduce == "mean" else "sum")
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
    ways = _ways(reduce, value, ("mean", "sum", "none") if name == "numpy" else ("mean", "sum"))
    truths = {c: [truth(call.probe, c, setting) for call in observed[c.scale]] for c in candidates}
    tried = ((_rows(observed[c.scale], truths[c], way), c, way) for way in ways for c in candidates)
    first = list(islice(tried, len(candidates)))
    # the declared way, unless only another one explains everything
    right = next((entry for entry in chain(first, tried) if _wrong(entry[0]) == 0), None)
    details, convention, used = right or min(first, key=lambda entry: (_wrong(entry[0]), _gap(entry[0])))
    calls, judged = observed[convention.scale], judgement(details)
    report = Report(
        title=f"{describe(fn)} ({name}, {setting.words}, {_worlds(observed)})",
        verdict=judged.verdict,
        rows=worst_rows(details),
        conventions=conventions_in_words(convention, candidates)
        | {f'reduce="{used[0]}"': _REDUCE[used[0]], f'value="{used[1]}"': _VALUE[used[1]]},
        details=details,
        hops=_hops(calls, convention, setting),
        unjudged=judged.unjudged,
    )
    if report.passed and used != ways[0]:
        report.verdict = "OTHER CONVENTION"
        said, fits = (f'reduce="{way[0]}", value="{way[1]}"' for way in (ways[0], used))
        evidence = f"declared was {said}, but everything is right under {fits}"
        repair = f"if that is meant, declare it: check_distributed_loss(fn, {fits})"
        report.findings.append(Finding("convention", "", "", evidence, repair))
    if not report.passed and report.unjudged is None:
        report.findings += _diagnosis(calls, truths[convention], convention, setting, used)
        report.case = _case(report, calls, truths[convention], used)
    report.notes.append(
        f"{len(details)} comparisons in {sum(map(len, observed.values()))} collective calls; every rank had other data"
    )
    return report


_PROGRAM = """# {title}: {worst} deviates most, at {probe}.
# case.npz holds the inputs of all ranks together, and what came of them beside what should have.
import siglip_ref

fn = ...  # the loss that was checked
siglip_ref.check_distributed_loss(fn, {world}, reduce="{reduce}", value="{value}").raise_if_failed()
"""


def _case(report: Report, observed: Sequence[Observed], truths: Sequence[Truth], way: Way) -> Case | None:
    """The call in which one tensor is furthest off, all ranks together."""
    worst = max((row for row in report.rows if row.verdict == "FAIL"), key=lambda row: row.excess, default=None)
    found = [
        (call, right) for call, right in zip(observed, truths, strict=True) if worst and call.split.label == worst.probe
    ]
    if worst is None or not found:
        return None
    (call, right), reduce, value = found[0], *way
    outcome, inputs = call.together(reduce, value), call.split.inputs
    arrays = {
        f"input/{name}": np.asarray(getattr(inputs, name)) for name in ("image_embed", "text_embed", "scale", "bias")
    }
    linear = "scale" in right.exact
    got = {"scale" if linear and name == "log_scale" else name: g for name, g in outcome.gradients.items()}
    for name, values in (got | {"loss": outcome.loss}).items():
        if values is not None:
            arrays |= {f"got/{name}": values, f"expected/{name}": right.exact[name]}
    program = _PROGRAM.format(
        title=report.title, worst=worst.name, probe=worst.probe, world=len(call.ranks), reduce=reduce, value=value
    )
    return Case(arrays, program)


def _ways(reduce: Reduce, value: Value, others: Sequence[Reduce]) -> list[Way]:
    """The declared way of reducing and returning first, then what differs least from it."""
    values: tuple[Value, Value] = (value, "global" if value == "local" else "local")
    reduces = [reduce, *(way for way in others if way != reduce)]
    return [(way, told) for told in values for way in reduces]


def _hops(observed: Sequence[Observed], convention: Convention, setting: Setting) -> list[Hop]:
    """Of the first call whose hops are wrong, else of the first; only where every term weighs."""
    tables = [
        hops_of(call.probe, convention, call.split.sizes, [rank.hops for rank in call.ranks], setting.dtype)
        for call in observed
        if call.probe.name == "balanced"
    ]
    return next((table for table in tables if any(not hop.right for hop in table)), tables[0] if tables else [])


def _rows(observed: Sequence[Observed], truths: Sequence[Truth], way: Way) -> list[Row]:
    return [
        replace(row, rows=_with_ranks(row, call))
        for call, right in zip(observed, truths, strict=True)
        for row in judge(call.together(*way), right, call.split.label)
    ]


def _diagnosis(
    observed: Sequence[Observed], truths: Sequence[Truth], convention: Convention, setting: Setting, way: Way
) -> list[Finding]:
    """Mistakes between ranks first, then those of any loss."""
    seen = [
        one
        for call, right in zip(observed, truths, strict=True)
        for one in seen_of(call.split.label, call.together(*way), right)
    ]
    final = way[0] == "none"
    contexts = {call.split.label: Context(call.probe, convention, call.split.sizes, final) for call in observed}

    def predict(mistakes: Sequence[Mistake]) -> Predicted:
        return Predicted(mistakes, contexts, setting.dtype)

    return explain(seen, suspects(ranks=True), predict, lambda wrong: patterns(wrong, contexts))


def _with_ranks(row: Row, call: Observed) -> str:
    """Which ranks own the wrong rows, said beside the rows."""
    return f"{row.rows} (shards of {', '.join(map(str, call.split.sizes))} pairs)" if row.rows else ""


def _gap(rows: Sequence[Row]) -> float:
    """How far the losses are from what they should be, as factors; of a loss that is wrong under every convention, the
    right one is nearest."""
    with np.errstate(all="ignore"):
        gap = float(np.sum([abs(np.log(row.ratio)) for row in rows if row.name == "loss"]))
    return gap if gap <= np.inf else np.inf


def _wrong(rows: Sequence[Row]) -> int:
    return sum(row.verdict == "FAIL" for row in rows)


def _scalar(parts: Array, reduce: Reduce) -> Array:
    if reduce == "none":
        return odd_one(parts)
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
