"""What the ranks of a distributed loss brought back, judged as one process would see it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import Setting, describe
from siglip_ref.check.diagnosis.diagnose import explain
from siglip_ref.check.diagnosis.patterns import patterns
from siglip_ref.check.diagnosis.predict import Context, Predicted, suspects
from siglip_ref.check.diagnosis.seen import seen_of
from siglip_ref.check.expected.expected import Convention, Truth, judge, truth
from siglip_ref.check.loss.messages import conventions_in_words
from siglip_ref.check.loss.run import exponentiates, misfit
from siglip_ref.check.loss.tails import tail_finding
from siglip_ref.check.ranks.hops import hops_of
from siglip_ref.check.ranks.observed import REDUCE, VALUE, Observed, Reduce, Value, Way, ways_of
from siglip_ref.check.ranks.world import Stop
from siglip_ref.mistakes import Mistake
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Case, Finding, Hop, Report, worst_rows
from siglip_ref.report.verdict import did_not_finish, judgement

_ENOUGH = 3  # different points: at fewer of them several mistakes made together explain anything
_STOPPED = {"failed": "rank-failed", "deadlock": "p2p-order-deadlock"}


def judge_ranks(
    fn: Callable[..., Any],
    name: str,
    setting: Setting,
    observed: dict[str, list[Observed]],
    candidates: Sequence[Convention],
    reduce: Reduce,
    value: Value,
    worlds: Sequence[int],
    stop: Stop | None = None,
) -> Report:
    """The report under the convention that fits best; the declared way of reducing comes first.

    Parameters
    ----------
    observed : by kind of scale, the calls from which all ranks returned
    worlds : numbers of ranks
    stop : why these are not all calls
    """
    title = f"{describe(fn)} ({name}, {setting.words}, {' and '.join(map(str, sorted(worlds)))} ranks)"
    others: Sequence[Reduce] = ("mean", "sum", "none") if name == "numpy" else ("mean", "sum")
    ways, called = ways_of(reduce, value, others), [c for c in candidates if observed.get(c.scale)]
    if not called:
        return stopped(Report(title, "NOT JUDGED", []), stop)
    truths = {c: [truth(call.probe, c, setting) for call in observed[c.scale]] for c in called}
    tried = ((_rows(observed[c.scale], truths[c], way), c, way) for way in ways for c in called)
    first = list(islice(tried, len(called)))
    # the declared way, unless only another one explains everything
    right = next((entry for entry in chain(first, tried) if _wrong(entry[0]) == 0), None)
    details, convention, used = right or first[called.index(_behaves(observed, truths, ways[0]))]
    calls, judged = observed[convention.scale], judgement(details)
    report = Report(
        title=title,
        verdict=judged.verdict,
        rows=worst_rows(details),
        conventions=conventions_in_words(convention, candidates)
        | {f'reduce="{used[0]}"': REDUCE[used[0]], f'value="{used[1]}"': VALUE[used[1]]},
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
    if report.verdict == "FAIL" and (stop is None or len({call.probe.name for call in calls}) >= _ENOUGH):
        report.findings += _diagnosis(calls, truths[convention], convention, setting, used)
    report.case = _case(report, calls, truths[convention], used)
    report.notes += dict.fromkeys(rank.note for call in calls for rank in call.ranks if rank.note)
    report.notes.append(
        f"{len(details)} comparisons in {sum(map(len, observed.values()))} collective calls; every rank had other data"
    )
    return stopped(report, stop)


def stopped(report: Report, stop: Stop | None) -> Report:
    """The report, if ranks did not bring everything back: a rank that failed is a fault, and so are ranks that wait for
    each other; of ranks that took too long nothing is known, but what they did bring may be wrong."""
    if stop is None:
        return report
    report.not_checked.append(f"the calls that were left: {stop.evidence}")
    if stop.kind != "time":
        report.verdict, report.unjudged = "FAIL", None
        report.findings.insert(0, Finding(_STOPPED[stop.kind], "", f"rank {stop.rank}", stop.evidence, stop.repair))
    elif report.verdict != "FAIL":
        report.verdict, report.unjudged = "NOT JUDGED", did_not_finish(stop.evidence, stop.repair)
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
        replace(row, rows=_with_ranks(row, call), note=call.misshapen(_argument(row)) or row.note)
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

    tail = tail_finding(seen, contexts)
    return [tail] if tail else explain(seen, suspects(ranks=True), predict, lambda wrong: patterns(wrong, contexts))


def _argument(row: Row) -> str:
    return {"scale": "log_scale", "loss": ""}.get(row.name, row.name)


def _with_ranks(row: Row, call: Observed) -> str:
    """Which ranks own the wrong rows, said beside the rows."""
    return f"{row.rows} (shards of {', '.join(map(str, call.split.sizes))} pairs)" if row.rows else ""


def _behaves(observed: dict[str, list[Observed]], truths: dict[Convention, list[Truth]], way: Way) -> Convention:
    """The convention that a wrong loss's behaviour in the first call speaks for, as in check_loss."""
    outcomes = {kind: calls[0].together(*way) for kind, calls in observed.items()}
    exponential = exponentiates(outcomes.get("log"), outcomes.get("linear"))

    def score(convention: Convention) -> tuple[bool, int, bool, bool, float]:
        against = exponential is not None and exponential != (convention.scale == "log")
        probe = observed[convention.scale][0].probe
        wrong, radial, gap = misfit(outcomes[convention.scale], truths[convention][0], convention, probe)
        return against, wrong, radial, convention.scale == "linear", gap

    return min(truths, key=score)


def _wrong(rows: Sequence[Row]) -> int:
    return sum(row.verdict == "FAIL" for row in rows)
