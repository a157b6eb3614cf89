"""What the ranks of a distributed loss brought back, judged as one process would see it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import Setting, describe
from siglip_ref.check.diagnosis.blocks.derive import derive, worked_out
from siglip_ref.check.diagnosis.blocks.faults import Fault, faults_of
from siglip_ref.check.diagnosis.blocks.parts import calls_of
from siglip_ref.check.diagnosis.blocks.tensors import Blocks
from siglip_ref.check.diagnosis.predict import Context, Predicted, suspects_of
from siglip_ref.check.engine.check import check
from siglip_ref.check.engine.expected.convention import Objective
from siglip_ref.check.engine.expected.expected import Convention, Truth, judge, tensors_of, truth
from siglip_ref.check.engine.explain import explain
from siglip_ref.check.engine.seen import Seen, is_wrong
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.check.loss.behaviour import seen_of, speaks_for
from siglip_ref.check.loss.messages import conventions_in_words, declared_as, not_asked
from siglip_ref.check.loss.tails import tail_finding
from siglip_ref.check.ranks.hops import table_of
from siglip_ref.check.ranks.observed import REDUCE, VALUE, Observed, Reduce, Value, Way, ways_of
from siglip_ref.check.ranks.world import Stop
from siglip_ref.mistakes import suspects
from siglip_ref.report.blocks import findings_of, in_words, meetings_of, repair_of, told
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding, Report
from siglip_ref.report.verdict import Judgement, did_not_finish, judgement

_ENOUGH = 3  # different points: at fewer of them several mistakes made together explain anything
_ARGUMENTS = {"scale": "log_scale", "loss": ""}
_DEFAULT: Way = ("mean", "local")
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
    explain: bool = False,
) -> Report:
    """The report under the convention that fits best; the declared way of reducing comes first.

    Parameters
    ----------
    observed : by kind of scale, the calls from which all ranks returned
    worlds : numbers of ranks
    stop : why these are not all calls
    explain : say what a right loss computes, too
    """
    others: Sequence[Reduce] = ("mean", "sum", "none") if name == "numpy" else ("mean", "sum")
    named = f"{describe(fn)} ({name}, {setting.words}, {' and '.join(map(str, sorted(worlds)))} ranks)"
    return check(RanksSubject(named, setting, observed, candidates, ways_of(reduce, value, others), stop, explain))


@dataclass
class ComparedRanks(Compared):
    """Under one convention, and one way of reducing and returning: the calls, and what is right at each."""

    convention: Convention
    way: Way
    calls: Sequence[Observed]
    truths: Sequence[Truth]

    @cached_property
    def seen(self) -> list[Seen]:
        """Every tensor of every call, as one process would see it."""
        pairs = zip(self.calls, self.truths, strict=True)
        return [one for call, right in pairs for one in seen_of(call.split.label, call.together(*self.way), right)]

    @cached_property
    def contexts(self) -> dict[str, Context]:
        """The calls by label."""
        final = self.way[0] == "none"
        return {c.split.label: Context(c.probe, self.convention, c.split.sizes, final, c.before) for c in self.calls}

    @cached_property
    def blocks(self) -> Blocks:
        """What the loss computes, as blocks of ranks: no further call is needed."""
        with np.errstate(all="ignore"):
            return worked_out(calls_of(self.seen, self.contexts))

    @property
    def objective(self) -> Objective:
        """What the loss was declared to compute; blocks of ranks and hops are known of SigLIP's."""
        return self.convention.objective

    @cached_property
    def faults(self) -> list[Fault]:
        """What is not SigLIP's of it, if all that came is reproduced."""
        return faults_of(self.blocks) if self.objective.plain and self.blocks.certain else []


@dataclass(frozen=True)
class RanksSubject(Subject[ComparedRanks]):
    """What ranks brought back. ways : of reducing and returning, the declared one first; stop : why these are not all
    calls: a rank that failed is a fault, and so are ranks that wait for each other; of ranks that took too long nothing
    is known, but what they did bring may be wrong. says_more : say what a right loss computes, too."""

    named: str
    setting: Setting
    observed: Mapping[str, list[Observed]]
    candidates: Sequence[Convention]
    ways: Sequence[Way]
    stop: Stop | None
    says_more: bool = False

    @cached_property
    def truths(self) -> dict[Convention, list[Truth]]:
        """What is right at each call, by the conventions that can be judged."""
        called = [c for c in self.candidates if self.observed.get(c.scale)]
        return {c: [truth(call.probe, c, self.setting) for call in self.observed[c.scale]] for c in called}

    def compare(self) -> ComparedRanks:
        """As declared, under the convention under which all is right, or for which a wrong loss speaks."""
        if not self.truths:  # nothing came back
            return ComparedRanks([], self.candidates[0], self.ways[0], [], [])
        tried = [self._under(convention, self.ways[0]) for convention in self.truths]
        right = next((one for one in tried if not one.wrong), None)
        if right or len(tried) == 1:
            return right or tried[0]
        likely = tried[list(self.truths).index(self._behaves())]
        if not any(way.kind == "logit" for way, _ in likely.blocks.varied):
            return likely
        # Logits that are another convention's are no mistake if under that convention the rest is told.
        told = [one for one in tried if derive(calls_of(one.seen, one.contexts)).certain]
        return min([likely, *told], key=lambda one: (not one.blocks.certain, len(one.faults)))

    def _under(self, convention: Convention, way: Way) -> ComparedRanks:
        calls, truths = self.observed[convention.scale], self.truths[convention]
        return ComparedRanks(_rows(calls, truths, way), convention, way, calls, truths)

    def _behaves(self) -> Convention:
        """As in check_loss, by the first call."""
        firsts = {kind: calls[0] for kind, calls in self.observed.items()}
        outcomes = {kind: call.together(*self.ways[0]) for kind, call in firsts.items()}
        rights = {convention: truths[0] for convention, truths in self.truths.items()}
        return speaks_for(outcomes, rights, next(iter(firsts.values())).probe)

    def judge(self, compared: ComparedRanks) -> Judgement:
        """Of the rows, unless ranks stopped before."""
        judged = judgement(compared.details)
        if self.stop is None or (self.stop.kind == "time" and judged.verdict == "FAIL"):
            return judged
        if self.stop.kind != "time":
            return Judgement("FAIL")
        return Judgement("NOT JUDGED", did_not_finish(self.stop.evidence, self.stop.repair))

    def others(self, compared: ComparedRanks) -> Iterator[Answer[ComparedRanks]]:
        """Another way of reducing and returning, and any convention."""
        if not compared.wrong:
            return
        for way in self.ways[1:]:
            for convention in self.truths:
                other = self._under(convention, way)
                if not other.wrong:
                    verdict = self.judge(other).verdict
                    found = [_convention(compared, way)] if judgement(other.details).verdict == "PASS" else []
                    verdict = "OTHER CONVENTION" if verdict == "PASS" else verdict
                    yield Answer([*self._stopped(), *found], verdict, other)

    def _stopped(self) -> list[Finding]:
        stop = self.stop
        if stop is None or stop.kind == "time":
            return []
        return [Finding(_STOPPED[stop.kind], "", f"rank {stop.rank}", stop.evidence, stop.repair)]

    def explain(self, compared: ComparedRanks) -> Answer[ComparedRanks]:
        """Mistakes between ranks first, then those of any loss."""
        enough = self.stop is None or len({call.probe.name for call in compared.calls}) >= _ENOUGH
        found = _diagnosis(compared, self.setting) if compared.wrong and enough else []
        return Answer([*self._stopped(), *found])

    def title(self, compared: ComparedRanks) -> str:
        """Names the function, its framework, its numbers, and how many ranks there were."""
        return self.named

    def count(self, compared: ComparedRanks) -> None:
        """Not counted: mistakes between ranks are made by ranks."""

    def tell(self, compared: ComparedRanks, report: Report) -> None:
        """How gradients were taken together, and the losses hop by hop."""
        if self.stop:
            report.not_checked.append(f"the calls that were left: {self.stop.evidence}")
        if not compared.calls:
            return
        reduce, value = compared.way
        report.conventions = conventions_in_words(compared.convention, self.candidates)
        report.conventions |= {f'reduce="{reduce}"': REDUCE[reduce], f'value="{value}"': VALUE[value]}
        report.not_checked += not_asked(self.setting, compared.objective)
        if compared.objective.plain:
            if compared.wrong or self.says_more:
                blocks = compared.blocks
                report.computes = in_words(blocks, compared.faults, compared.way)
                report.blocks = meetings_of(blocks)
            report.hops = table_of(compared.calls, compared.convention, self.setting.dtype)
        report.notes += dict.fromkeys(rank.note for call in compared.calls for rank in call.ranks if rank.note)
        calls = sum(map(len, self.observed.values()))
        report.notes.append(
            f"{len(compared.details)} comparisons in {calls} collective calls; every rank had other data"
        )

    def worst(self, compared: ComparedRanks, report: Report) -> Worst | None:
        """The call in which one tensor is furthest off, all ranks together."""
        row = max((row for row in report.rows if row.verdict == "FAIL"), key=lambda row: row.excess, default=None)
        pairs = zip(compared.calls, compared.truths, strict=True)
        found = next(((call, right) for call, right in pairs if row and call.split.label == row.probe), None)
        if row is None or found is None:
            return None
        (call, right), (reduce, value) = found, compared.way
        names = ("image_embed", "text_embed", "scale", "bias")
        arrays = {f"input/{name}": np.asarray(getattr(call.split.inputs, name)) for name in names}
        for name, (got, exact) in tensors_of(call.together(reduce, value), right).items():
            arrays |= {} if got is None else {f"got/{name}": got, f"expected/{name}": exact}
        arguments = f'{len(call.ranks)}, reduce="{reduce}", value="{value}"{declared_as(compared.objective)}'
        again = f"fn = ...  # the loss that was checked\nprint(sr.check_ranks(fn, {arguments}))"
        return Worst(row, arrays, again)


def _convention(compared: ComparedRanks, used: Way) -> Finding:
    """Right, but not as gradients and values were said to come; where it is a factor, by what it is wrong so."""
    said, fits = (f'reduce="{way[0]}", value="{way[1]}"' for way in (compared.way, used))
    judged = "judged was, by default," if compared.way == _DEFAULT else "declared was"
    faults = compared.faults if all(fault.kind == "factor" for fault in compared.faults) else []
    evidence = f"{judged} {said}, but everything is right under {fits}" + "".join(
        f"; as {'judged' if compared.way == _DEFAULT else 'declared'}, {told(fault)}" for fault in faults
    )
    otherwise = "; ".join(repair_of(fault, faults, compared.way) for fault in faults) or "fn is wrong"
    repair = f"declare it if your program does that: check_ranks(fn, {fits}); else, {otherwise}"
    return Finding("convention", "", "", evidence, repair)


def _rows(observed: Sequence[Observed], truths: Sequence[Truth], way: Way) -> list[Row]:
    return [
        replace(row, rows=_with_ranks(row, call), note=call.misshapen(_ARGUMENTS.get(row.name, row.name)) or row.note)
        for call, right in zip(observed, truths, strict=True)
        for row in judge(call.together(*way), right, call.split.label)
    ]


def _diagnosis(compared: ComparedRanks, setting: Setting) -> list[Finding]:
    """What was derived and proven; under its name where it is one mistake of the catalogue, or each thing is one."""
    seen, contexts = compared.seen, compared.contexts
    plain = compared.objective.plain
    candidates = suspects(ranks=True) if plain else suspects_of(compared.objective)
    tail = tail_finding(seen, contexts) if plain else None
    if tail:
        return [tail]

    predict = partial(Predicted, contexts=contexts, dtype=setting.dtype)
    faults = compared.faults
    if not faults:
        return explain(seen, candidates, predict)
    derived = findings_of(faults, compared.way)
    if all(fault.id for fault in faults):
        return derived
    first = [one for one in seen if one.probe == next(wrong.probe for wrong in seen if is_wrong(wrong))]
    likely = {finding.id for finding in explain(first, suspects(ranks=True), predict, at_once=1)}
    alone = explain(seen, [one for one in suspects(ranks=True) if one.id in likely], predict, at_once=1)
    return alone if alone and all(finding.kind == "mistake" for finding in alone) else derived


def _with_ranks(row: Row, call: Observed) -> str:
    """Which ranks own the wrong rows, said beside the rows."""
    return f"{row.rows} (shards of {', '.join(map(str, call.split.sizes))} pairs)" if row.rows else ""
