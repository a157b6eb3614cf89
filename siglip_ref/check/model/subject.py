"""A model as a subject of the engine: every activation, the loss and every gradient, at several scales."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.call.answers import answered
from siglip_ref.check.engine.coverage import in_the_catalogue
from siglip_ref.check.engine.findings import FINDING
from siglip_ref.check.engine.single_edits.shipped import PAIRS, key_of_model, shipped
from siglip_ref.check.engine.subject import Answer, Compared, Subject, Worst
from siglip_ref.check.model.adapters import Adapter, Dtype, Run
from siglip_ref.check.model.diagnosis.derive import Derived, derive, repaired
from siglip_ref.check.model.diagnosis.diagnosis import (
    Other,
    blind,
    declare,
    explain,
    hints,
    not_finite,
    other_conventions,
    unsteady,
    unusual,
)
from siglip_ref.check.model.diagnosis.findings import ROUNDED, and_more
from siglip_ref.check.model.diagnosis.gradients import of_gradients
from siglip_ref.check.model.diagnosis.naflex import of_naflex
from siglip_ref.check.model.diagnosis.stages.proof import UNTRIED
from siglip_ref.check.model.diagnosis.stages.rows import of_rows
from siglip_ref.check.model.diagnosis.stems import of_stems
from siglip_ref.check.model.judge import make_judge
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.check.model.reference import UNIT_ROUNDOFF, reference
from siglip_ref.check.model.scales import Judged, Scale, judged_at, one_each, run_at, scales_of
from siglip_ref.check.model.sight import model_sight
from siglip_ref.check.model.unread import explain_unread, not_read
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.process.isolated import random_states
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Edits, Finding, Report, Sight
from siglip_ref.report.edits import DERIVED, line_of, same_here
from siglip_ref.report.verdict import Judgement, Verdict, judgement


@dataclass
class ComparedModel(Compared):
    """The runs at every scale, held against the reference; others : every other convention that gives other values;
    broken, unread : findings of weights that are no numbers, and of parameters that were not read."""

    found_at: Judged
    probe: Probe
    others: list[Other]
    broken: list[Finding]
    unread: list[Finding]
    explanation: tuple[Verdict, list[Finding]] | None = None
    derived: Derived | str = ""

    @property
    def run(self) -> Run:
        """At the model's own scale."""
        return self.found_at.runs[0]


@dataclass
class ModelSubject(Subject[ComparedModel]):
    """A model behind an Adapter. own : on its own weights; declared : its conventions were given."""

    adapter: Adapter
    dtype: Dtype
    own: bool
    conventions: Conventions
    declared: bool
    batch: int
    say: Callable[[str], None]

    @property
    def cfg(self) -> Config:
        """Sizes, and what the model claims to follow."""
        return self.adapter.config

    def compare(self) -> ComparedModel:
        """One run for each scale."""
        cfg, chosen, adapter = self.cfg, self.conventions, self.adapter
        probe = model_probe(cfg, self.batch, self.dtype, adapter.parameters(self.dtype) if self.own else None)
        self.say("the reference in float64")
        exact = reference(probe, cfg, chosen, np.float64)
        coarsest = coarsest_of(adapter, self.dtype)
        scales = scales_of(exact, probe, self.dtype, coarsest)
        self.say(f"the model in {self.dtype}, at {len(scales)} scales and biases")
        runs = self._runs(probe, scales)
        self.say("the noise of rounding")
        judge = make_judge(exact, probe, cfg, chosen, self.dtype, coarsest)
        found_at = judged_at(runs, scales, judge, cfg, chosen)
        self.say("other conventions")
        others = list(other_conventions(runs[0], judge, probe, cfg, chosen))
        broken, unread = not_finite(probe.params, runs[0]), not_read(runs[0])
        return ComparedModel(found_at.details, found_at, probe, others, broken, unread)

    def _runs(self, probe: Probe, scales: Sequence[Scale]) -> list[Run]:
        return answered(self._expected, lambda: run_at(self.adapter, probe, scales, self.dtype))

    @property
    def _expected(self) -> str:
        return f"a model that runs forward and backward in {self.dtype}"

    def judge(self, compared: ComparedModel) -> Judgement:
        """With its own weights a model is judged at its own scale; on probe weights any probe will do."""
        judged = judgement(compared.details, at="" if self.own else None)
        return Judgement("FAIL") if compared.broken or compared.unread else judged

    def others(self, compared: ComparedModel) -> Iterator[Answer[ComparedModel]]:
        """Another one under which all is right; or, of a right model, one that no released SigLIP has."""
        strange = unusual(self.conventions)
        if compared.wrong and not compared.broken:
            verdict, found = self._explained(compared)
            if verdict == "OTHER CONVENTION" and not compared.unread:
                yield Answer(found, verdict)
        elif self.judge(compared).verdict == "PASS" and not self.declared and strange:
            evidence = "the model's configuration says so, and it computes what it says"
            yield Answer([declare(self.conventions, strange, evidence)], "OTHER CONVENTION")

    def _explained(self, compared: ComparedModel) -> tuple[Verdict, list[Finding]]:
        if compared.explanation is None:
            self.say("what explains it")
            with other_random_numbers():
                found = unsteady(compared.run, self._runs(compared.probe, compared.found_at.scales[:1])[0])
            of_values = compared.found_at, compared.others, compared.probe, self.cfg, self.conventions
            explanation: tuple[Verdict, list[Finding]] = ("FAIL", found) if found else explain(*of_values)
            compared.explanation = explanation
            return explanation
        return compared.explanation

    def explain(self, compared: ComparedModel) -> Answer[ComparedModel]:
        """What its weights, its parameters and its values show."""
        broken, unread, found = compared.broken, compared.unread, list[Finding]()
        if compared.wrong and not broken:
            found = self._explained(compared)[1]
            judge = compared.found_at.judge
            found = of_naflex(found, compared.run, judge, compared.probe, self.cfg, self.conventions)
            found = of_stems(found, compared.run, judge, compared.probe, self.cfg, self.conventions)
            found = of_gradients(found, compared.run, judge, compared.probe)
            if unread:
                found, unread = explain_unread(found, compared.run, judge, compared.probe, self.cfg, self.conventions)
            no_formula = {one.id for one in found} & {*_RANDOM, ROUNDED}
            if compared.explanation != ("FAIL", []) and not no_formula:
                derived = compared.derived = self._derived(compared)
                unread = [] if isinstance(derived, Derived) and derived.certain else unread  # what is computed says why
                if not (isinstance(derived, Derived) and (derived.certain or derived.values)):
                    found = of_rows(found, compared.run, judge, compared.probe, self._again(compared))
        return Answer(broken + unread + found)

    def _derived(self, compared: ComparedModel) -> Derived | str:
        self.say("what it computes")
        found = compared.run, compared.found_at.judge, compared.probe, self.cfg, self.conventions
        return derive(*found, self._again(compared))

    def _again(self, compared: ComparedModel) -> Callable[[Probe], Run]:
        """The model on another probe, at its own scale."""
        again = getattr(self.adapter, "again", self.adapter.run)  # two runs on the same inputs were the same

        def run(probe: Probe) -> Run:
            same = _in_dtype(probe, compared.probe)
            return answered(self._expected, lambda: again(same.params, same.given, same.tokens, self.dtype))

        return run

    def title(self, compared: ComparedModel) -> str:
        """Names the model, its numbers and weights."""
        part = f"{self.cfg.words}; " if isinstance(self.cfg, OneTower) else ""
        return f"{self.adapter.name}; {part}{self.dtype}; {self._weights} weights; {self.batch} pairs"

    @property
    def _end(self) -> str:
        return f", up_to={self.cfg.up_to!r}" if isinstance(self.cfg, OneTower) else ""

    @property
    def _weights(self) -> str:
        return "own" if self.own else "probe"

    def rows(self, compared: ComparedModel) -> list[Row]:
        """At the model's own scale, or where only another judges a tensor, or finds it wrong."""
        return one_each(compared.details)

    def count(self, compared: ComparedModel) -> Sight:
        """Mistakes of towers and of the loss, made in the reference."""
        self.say("what this check would have seen")
        in_range = [row.name for row in self.rows(compared) if row.right or row.verdict == "FAIL"]
        coarsest = coarsest_of(self.adapter, self.dtype)
        found_at, probe = compared.found_at, compared.probe
        return model_sight(in_range, found_at, probe, self.cfg, self.conventions, coarsest, self.own)

    def edits(self, compared: ComparedModel) -> Edits | None:
        """As measured on probe weights for these sizes and conventions, where the model shows every activation."""
        plain = not self.own and self.batch == PAIRS and not compared.run.not_checked
        plain = plain and coarsest_of(self.adapter, self.dtype) == self.dtype
        return shipped(key_of_model(self.cfg, self.conventions, self.dtype)) if plain else None

    def tell(self, compared: ComparedModel, report: Report) -> None:
        """Conventions, what the model's settings give away, what could not be read or seen, and at which scales."""
        unseen = report.sight.blind if report.sight else ()
        report.findings = hints(self.adapter) + report.findings
        whole = bool(report.findings) and all(one.numbers.get("share", 0.0) >= FINDING for one in report.findings)
        certain = not isinstance(compared.derived, Derived) or compared.derived.certain or compared.derived.values
        report.computes = _computes(compared.derived) if certain or not whole else []  # mistakes of known names are all
        if isinstance(compared.derived, Derived) and compared.derived.certain:
            found = [repaired(one, compared.derived) for one in report.findings]
            said = [(one.id, one.repair if one.id == DERIVED else one.evidence) for one in found]
            report.findings = [one for k, one in enumerate(found) if said[k] not in said[:k]]
        report.conventions = _stated(self.conventions, self.adapter, self.dtype)
        report.not_checked = compared.run.not_checked + _rims(report.rows)
        report.blind = blind(compared.others, self.conventions) + _unseen(unseen)
        report.notes = _notes(compared.run, report.rows, compared.found_at.scales, self.own)
        if isinstance(self.cfg, OneTower):
            report.notes.insert(0, _judged(self.cfg))

    def worst(self, compared: ComparedModel, report: Report) -> Worst | None:
        """The inputs, and the tensor that is furthest off beside what it should be."""
        found = [row for row in report.rows if row.verdict in ("pass", "FAIL")]
        if not found:
            return None
        row, found_at = max(found, key=lambda row: row.excess), compared.found_at
        place = [scale.label for scale in found_at.scales].index(row.probe) if row.probe else 0
        run, exact = found_at.runs[place], found_at.judges[place].exact
        is_grad = row.kind == "gradient"
        got = run.grads if is_grad else run.activations | {"loss": run.loss}
        right = exact.grads if is_grad else exact.activations | {"loss": exact.loss}
        arrays = {"input/images": compared.probe.images, "input/tokens": compared.probe.tokens}
        if compared.probe.grids is not None:
            arrays["input/grids"] = compared.probe.grids
        arrays |= {f"got/{row.name}": got[row.name], f"expected/{row.name}": right[row.name]}
        arguments = f"dtype={self.dtype!r}, weights={self._weights!r}, batch={self.batch}{self._end}"
        again = (
            f"# the probe weights are the same on every machine\nmodel = ...\nprint(sr.check_model(model, {arguments}))"
        )
        return Worst(row, arrays, again)


def _computes(derived: Derived | str) -> list[str]:
    if isinstance(derived, str):
        return [_NOT_DERIVED[derived]] if derived in _NOT_DERIVED else []
    told = [(part, f"{', '.join(part.stages[:3])}{and_more(len(part.stages) - 3)}") for part in derived.parts]
    if derived.certain:
        same = same_here(told[0][0].fitted) if len(told) == 1 else ""
        proof = _PROOF.format(but=_MIDDLE * derived.blocks) + same
        return [*(line_of(part.fitted, places) for part, places in told), proof]
    of_others = derived.unproven.startswith("d ") and not derived.values  # then it may be another mistake's trace
    lines = [line_of(part.fitted, places, part.certain and not of_others) for part, places in told]
    if derived.values:
        return [*lines, _VALUES.format(name=derived.unproven.removeprefix("d "))]
    if all(part.certain for part in derived.parts) and not of_others:
        open_ = f"{', '.join(derived.rest[:3])}{and_more(len(derived.rest) - 3)}"
        beside = f"; not explained by it: {open_}" if derived.rest else ""
        beside = beside or f"; with it, {derived.unproven} is not the model's" * (derived.unproven != UNTRIED)
        return [*lines, _STAGE + beside]
    if not all(part.fitted.certain for part in derived.parts):
        return [*lines, "not certain: none is named"]
    return [*lines, f"not certain: with it, {derived.unproven} of a further run is not the model's"]


_RANDOM = ("dropout-in-eval", "cached-rng-mismatch")
_NOT_DERIVED = {"size": "not derived: size"}
_VALUES = (
    "every value is reproduced in a further run on other weights, images and captions; its gradients are not the "
    "derivative of it ({name}): something in it is held constant, or has a backward of its own"
)
_STAGE = (
    "the values of these stages are reproduced in a further run on other weights, images and captions, from what the "
    "program itself gives them"
)
_PROOF = (
    "reproduced in a further run on other weights, images and captions: every activation{but}, the loss, and the "
    "gradient of every parameter along a random direction"
)
_MIDDLE = " (but those inside of blocks)"


def _in_dtype(probe: Probe, like: Probe) -> Probe:
    """As the model was given its weights before."""
    params = {name: np.asarray(value, like.params[name].dtype) for name, value in probe.params.items()}
    return replace(probe, params=params, images=np.asarray(probe.images, like.images.dtype))


@contextmanager
def other_random_numbers() -> Iterator[None]:
    """Python, NumPy and Torch, where it is loaded, draw other numbers than they would have; afterwards as before."""
    torch = sys.modules.get("torch")
    with random_states(), torch.random.fork_rng() if torch else nullcontext():
        random.seed(20)
        np.random.seed(20)
        if torch:
            torch.manual_seed(20)
        yield


def coarsest_of(adapter: Adapter, dtype: Dtype) -> Dtype:
    """What some step of a model is forced to, if that is coarser than its dtype."""
    forced: Dtype = getattr(adapter, "coarsest", "float64")
    return max(dtype, forced, key=UNIT_ROUNDOFF.__getitem__)


def _stated(chosen: Conventions, adapter: Adapter, dtype: Dtype) -> dict[str, str]:
    stated = {f.name: str(getattr(chosen, f.name)) for f in fields(chosen)}
    if coarsest_of(adapter, dtype) != dtype:
        forced = coarsest_of(adapter, dtype)
        stated["attention softmax"] = f"{forced}, in a model of {dtype}: behind it, errors of {forced} are allowed"
    return stated


def _unseen(ids: Sequence[str]) -> list[str]:
    """With the catalogue's words; those of a loss need rows of their own, which a model's embeddings are not."""
    files = ("ops/sigmoid_loss.py", "ops/pair_block.py")
    of_loss = [id for id in ids if all(edit.file in files for edit in CATALOGUE[id].edits)]
    lines = in_the_catalogue([id for id in ids if id not in of_loss])
    return lines + [f"{line}; check_loss on your loss sees this" for line in in_the_catalogue(of_loss)]


def _notes(run: Run, rows: list[Row], scales: Sequence[Scale], own: bool) -> list[str]:
    notes = list(run.notes)
    if own:
        notes.append(
            "the reference took its weights from this very model: a wrong conversion (queries and keys exchanged, a "
            "patch kernel transposed) is on both sides, and this check cannot see it"
        )
    if len(scales) > 1:
        others = "; ".join(scale.label for scale in scales[1:])
        notes.append(f"logits, loss and the gradients next to the embeddings were judged at these, too: {others}")
    if any(row.verdict == "zero by structure" for row in rows):
        notes.append(
            "gradients of key biases are zero by structure (softmax does not see a shift common to all keys): what any "
            "program prints there is rounding, judged against the sum of the absolute values of its terms"
        )
    return notes


def _judged(cfg: OneTower) -> str:
    """What was judged of a tower alone."""
    return (
        f"judged: {cfg.words} ({cfg.end}), every activation, and the gradient of every parameter under a sum of all "
        "numbers of its end, each times a fixed random number; the other tower, the loss and what follows are not"
    )


def _rims(rows: list[Row]) -> list[str]:
    beyond = [row for row in rows if row.verdict == "out of range"]
    return [f"{row.name}{f' at {row.probe}' if row.probe else ''}: {row.note}" for row in beyond]
