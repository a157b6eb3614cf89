"""A training step as a subject of the engine: what each step added to each parameter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from siglip_ref.architecture.params import Params
from siglip_ref.check.call.frameworks import describe
from siglip_ref.check.engine.edits import Fitted
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.check.model.reference import UNIT_ROUNDOFF
from siglip_ref.check.step.arrived import LOST, Lost, finding_of, lost, rows_of
from siglip_ref.check.step.diagnosis.diagnosis import diagnose, step_sight
from siglip_ref.check.step.gradients import Slopes
from siglip_ref.check.step.judge import Judged, Plan, judge
from siglip_ref.check.step.run import Taken
from siglip_ref.report.compare import Row, compare
from siglip_ref.report.data import Finding, Report, Sight
from siglip_ref.report.edits import in_words
from siglip_ref.report.verdict import Judgement, Verdict, judgement


@dataclass(frozen=True)
class Done:
    """The steps as they were taken. dtype : of the parameters, formats : of each of them as it is stored; reloaded :
    what save and load changed; micro, slopes : see `Plan`."""

    dtype: str
    taken: list[Taken]
    formats: dict[str, str]
    reloaded: Params
    micro: Callable[[int, int], list[Params]] | None
    slopes: Callable[[int, Params, Slopes], Params] | None = None


@dataclass
class ComparedStep(Compared):
    """The steps as they were taken, and what they should have been; unarrived : tensors whose updates were rounded
    away; reloaded : rows of parameters that save and load changed."""

    done: Done
    plan: Plan
    judged: Judged
    unarrived: list[Lost]
    reloaded: list[Row]

    @cached_property
    def diagnosis(self) -> tuple[Verdict, list[Finding], Fitted | None]:
        """Another setting under which all is right, or what explains the steps, and what they compute."""
        return diagnose(self.done.taken, self.plan, self.judged)


@dataclass(frozen=True)
class StepSubject(Subject[ComparedStep]):
    """A training step. plan : what it is meant to do; take : takes the steps; restarted : the state was saved and
    loaded between them."""

    step_fn: Callable[..., Any]
    plan: Plan
    take: Callable[[], Done]
    restarted: bool
    say: Callable[[str], None]

    def compare(self) -> ComparedStep:
        """All steps beside the reference's, at the parameters that each of them had before."""
        done = self.take()
        plan = replace(self.plan, unit=UNIT_ROUNDOFF[done.dtype], micro=done.micro, slopes=done.slopes)
        self.say("the reference")
        judged, unarrived = judge(done.taken, plan), lost(done.taken, plan, done.formats)
        moves = done.reloaded.items()
        loaded = [compare(name, move, 0 * move, 0.0, kind="value", probe="save and load") for name, move in moves]
        changed = [row for row in loaded if not row.right]
        return ComparedStep(judged.rows + rows_of(unarrived) + changed, done, plan, judged, unarrived, changed)

    def judge(self, compared: ComparedStep) -> Judgement:
        """Every parameter must be judged."""
        return judgement(compared.details, needed=lambda row: True)

    def others(self, compared: ComparedStep) -> Iterator[Answer[ComparedStep]]:
        """Another setting under which all is right: not where something was lost besides."""
        if compared.wrong:
            self.say("what explains it")
        if compared.wrong and not compared.unarrived and not compared.reloaded:
            verdict, found, _ = compared.diagnosis
            if verdict == "OTHER CONVENTION":
                yield Answer(found, verdict)

    def explain(self, compared: ComparedStep) -> Answer[ComparedStep]:
        """What was rounded away, what save and load changed, or mistakes of the catalogue."""
        findings = [finding_of(compared.unarrived, self.plan.rule)] if compared.unarrived else []
        if compared.reloaded:
            first, repair = compared.reloaded[0], "save all parameters, in the format they are trained in"
            evidence = f"save and load changes the parameters themselves: {len(compared.reloaded)} of them"
            findings.append(Finding("unknown", first.name, first.rows, evidence, repair))
        wrong = {row.name for row in compared.judged.rows if row.verdict == "FAIL"}
        if wrong <= {one.name for one in compared.unarrived}:
            return Answer(findings)
        besides = ("convention", LOST) if findings else ()
        return Answer(findings + [one for one in compared.diagnosis[1] if one.id not in besides])

    def title(self, compared: ComparedStep) -> str:
        """Names the function, the rule and the numbers."""
        done = compared.done
        return f"{len(done.taken)} steps of {describe(self.step_fn)}; {type(self.plan.rule).__name__}; {done.dtype}"

    def count(self, compared: ComparedStep) -> Sight:
        """Mistakes of training, made in the reference's steps."""
        done = compared.done
        return step_sight(done.taken, compared.plan, compared.judged, done.dtype, restarted=self.restarted)

    def tell(self, compared: ComparedStep, report: Report) -> None:
        """The rule's settings, and what the steps compute where that is something else."""
        fitted = compared.diagnosis[2] if "diagnosis" in vars(compared) else None
        named = any(finding.kind == "mistake" for finding in report.findings)
        if fitted and (fitted.certain or not named):  # several that fit say less than the one that has a name
            report.computes = in_words(fitted, "your step", _PROOF)
        rule = self.plan.rule
        report.conventions = {f.name: _word(getattr(rule, f.name)) for f in fields(rule)}
        report.conventions["accumulate"] = str(self.plan.parts)
        report.not_checked = [] if self.restarted else ["state after save and load: no restart= was given"]

    def worst(self, compared: ComparedStep, report: Report) -> Worst | None:
        """The parameter that is furthest off: its gradients, unclipped, in all steps, and what was added to it."""
        found = [row for row in compared.judged.rows if row.verdict in ("pass", "FAIL")]
        if not found:
            return None
        row, taken = max(found, key=lambda row: row.excess), compared.done.taken
        one = next(one for one in compared.judged.seen if (one.probe, one.name) == (row.probe, row.name))
        arrays = {f"input/gradient {k + 1}": step.grads[row.name] for k, step in enumerate(taken)}
        arrays |= {"input/parameter": taken[0].before[row.name], "got/moved": one.got, "expected/moved": one.exact}
        again = f"step_fn, rule = ...  # {self.plan.rule}\nprint(sr.check_step(step_fn, rule))"
        return Worst(row, arrays, again)


_PROOF = "found on a few parameters at the first two steps, and reproduced on all others and at the last step"


def _word(value: object) -> str:
    return getattr(value, "__name__", "") or (f"{value:g}" if isinstance(value, float) else str(value))
