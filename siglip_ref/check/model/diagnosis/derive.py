"""What the stages that deviate compute: the changes of the specification that give the program's numbers.

Stage by stage, each tried on the program's own input to it. A change is named for certain only where a further run, on
other weights, other images and other captions, is that of the specification with all of them made: every activation,
the loss, and the derivative of the loss along random directions of every parameter, as the program's gradients give it.
Where the whole is not reproduced, a stage by itself may be: its values, from what the program gives it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import sides_of
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.edits import Edits, Fitted
from siglip_ref.check.engine.findings import FINDING
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.last_stage import LAST
from siglip_ref.check.model.diagnosis.stages.curves import Curve, of_curve, read_curves
from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole
from siglip_ref.check.model.diagnosis.stages.offers import wholes_of
from siglip_ref.check.model.diagnosis.stages.proof import SURE, UNTRIED, another, unproven
from siglip_ref.check.model.diagnosis.stages.stage_search import Ground, Stage, off
from siglip_ref.check.model.diagnosis.stages.way_back import of_gradients
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.noise import multiplications
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import doubled, readable, stage_of, stage_values
from siglip_ref.mistakes import reference
from siglip_ref.mistakes.grammar.scope import FREE
from siglip_ref.mistakes.grammar.switched import Single, named, singles
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import finding_of

_SIZE = 2e7  # multiplications of a forward pass, from which on nothing is derived
_TRIED = 12  # changes that are alike at the stage: whether they are so in a further run, and in a whole model
_SHARED = 2  # changes of other stages that are tried beside another one
_SEARCHES = 4  # stages of which every edit is tried


@dataclass(frozen=True)
class Part:
    """What explains a stage, and the others that it explains as well; shown : their values are those of a further run,
    too, from what the program gives each of them."""

    fitted: Fitted
    stages: tuple[str, ...]
    shown: bool = False

    @property
    def certain(self) -> bool:
        return self.fitted.certain and self.shown


@dataclass(frozen=True)
class Derived:
    """parts : what is explained, in order; unproven : what they do not give together in a further run, "" where they
    give everything; rest : wrong stages that none of them explains; blocks : each block was looked at as one stage, and
    what the program shows of its middle at no time."""

    parts: tuple[Part, ...]
    unproven: str
    rest: tuple[str, ...] = ()
    blocks: bool = False

    @property
    def certain(self) -> bool:
        return not self.unproven and all(part.fitted.certain for part in self.parts)

    @property
    def values(self) -> bool:
        """Every value is given, and only gradients are not: one that is of these stages."""
        kind, _, tensor = self.unproven.partition(" ")
        names = {name for part in self.parts for name in part.stages}
        its_own = "/" in tensor and (
            stage_of(tensor) in names or any(tensor.split("/")[:2] == name.split("/")[:2] for name in names)
        )
        return kind == "d" and its_own and not self.rest and all(part.certain for part in self.parts)


@dataclass(frozen=True)
class _Model:
    """What is known of it. again : a run on other numbers; curves : of its activations, in further runs"""

    judge: Judge
    ground: Ground
    cfg: Config
    conventions: Conventions
    again: Callable[[], tuple[Probe, Run]]
    curves: Callable[[], dict[str, Curve]]

    def held(self, without: frozenset[str]) -> tuple[Ground, Run]:
        """A further run; some of what it shows is not looked at."""
        probe, run = self.again()
        shown = readable(run.activations, self.judge.exact.activations, np.float64)
        left = {name: value for name, value in run.activations.items() if name not in without}
        return Ground(probe, shown).without(without), replace(run, activations=left)

    def activations(self, stage: str) -> list[Whole]:
        """What the curve of a stage's MLP, read off, may be."""
        curves = self.curves() if stage.endswith(("/+mlp", "image/pool")) and not self.cfg.naflex else {}
        return [*of_curve(curves[stage])] if stage in curves else []

    def stage(self, name: str, whole: bool) -> Stage:
        return Stage(name, self.ground, self.cfg, self.conventions, whole)


def repaired(finding: Finding, derived: Derived) -> Finding:
    """What has no name, and in place of a part explanation a full one of several edits (one alone may be the very
    mistake): what is computed, and where it begins. What other scales show of the last stage is not of the towers."""
    several = len(derived.parts) > 1 or any(len(part.fitted.edits) > 1 for part in derived.parts)
    nameless = finding.id == "unknown" and finding.tensor not in LAST
    if derived.certain and (nameless or (finding.numbers.get("share", 1.0) < FINDING and several)):
        found = finding_of([part.fitted for part in derived.parts], finding.tensor)
        return replace(found, evidence=f"{found.evidence}; {finding.evidence}") if nameless else found
    return finding


def derive(
    run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions, again: Callable[[Probe], Run]
) -> Derived | str:
    """Of every wrong stage; a word where nothing was derived.

    Parameters
    ----------
    again : runs the model on another probe
    """
    if multiplications(cfg, len(probe.images)) > _SIZE:
        return "size"
    ground, held = doubled(probe), cache(lambda: (other := another(doubled(probe)), again(other)))
    shown = readable(run.activations, judge.exact.activations, np.float64)
    model = _Model(judge, Ground(ground, shown), cfg, conventions, held, cache(lambda: read_curves(ground, again)))
    if not _wrong(model):
        slopes = cache(lambda: read_curves(ground, again, slopes=True))
        found = of_gradients(run, judge, ground, cfg, conventions, held, slopes)
        return "stage" if found is None else Derived(tuple(Part(*one) for one in found[0]), found[1])
    of_stages = _of_values(model, frozenset())
    halves = frozenset(name for name in shown if name.endswith("/+attn"))
    if halves and not (of_stages and (of_stages.certain or of_stages.values)):  # blocks, each as one stage
        blocks = _of_values(replace(model, ground=model.ground.without(halves)), halves)
        if blocks and (blocks.certain or blocks.values):
            return replace(blocks, blocks=True)
    return of_stages or "stage"


def _wrong(model: _Model) -> list[str]:
    """Stages that are not what follows from what the program shows before them."""
    shown, settings = model.ground.shown, (model.ground.probe, model.cfg, model.conventions)
    return [
        name
        for tower in sides_of(model.cfg)
        for name, value in stage_values(reference(), tower, shown, *settings).items()
        if name in shown and not off(shown[name], value, model.judge.of_value[name]) <= 1
    ]


def _of_values(model: _Model, halves: frozenset[str]) -> Derived | None:
    """halves : what the program shows inside of blocks, where each block is looked at as one stage."""
    parts, rest, every, searches = list[Part](), list[str](), _wrong(model), 0
    wrong = list(every)
    while wrong:
        stage, allowed = model.stage(wrong[0], bool(halves)), model.judge.of_value[wrong[0]]
        fitted = stage.search(allowed, (), known, pairs=False) if (known := _alike(parts, stage)) else None
        if fitted is None and searches < _SEARCHES:
            searches += 1
            wholes = [*wholes_of(stage), *model.activations(wrong[0])]
            fitted = stage.search(allowed, wholes, pairs=searches == 1)
            for base in _found_before(parts, stage) if fitted is None else ():
                fitted = fitted or stage.search(allowed, wholes, pairs=False, base=base)
        if fitted is None:
            rest.append(wrong.pop(0))
            continue
        part = _in_a_further_run(fitted, model, _explained(fitted, stage, every, model), halves)
        if not part.shown and (other := stage.search(allowed, model.activations(wrong[0]), (), pairs=False)):
            part = _in_a_further_run(other, model, _explained(other, stage, every, model), halves)
        # what explains a stage by the chance of its sizes gives way to what explains it and others
        kept = [one for one in parts if not {*one.stages} <= {*part.stages}]
        others = {name for one in kept for name in one.stages}
        part = replace(part, stages=tuple(name for name in part.stages if name not in others))
        parts = sorted([*kept, part], key=lambda one: every.index(one.stages[0]))
        wrong = [name for name in wrong if name not in part.stages]
    return _proven(parts, tuple(rest), model, halves) if parts else None


def _alike(parts: Sequence[Part], stage: Stage) -> list[Single]:
    """What was found of other stages, where this one has the same formulas: with factors of its own."""
    places = {
        (one.function, one.text, one.old, one.new)
        for part in parts
        for one in part.fitted.edits
        if isinstance(one, Single) and FREE in one.new
    }
    return [one for one in singles(stage.functions) if (one.function, one.text, one.old, one.new) in places]


def _found_before(parts: Sequence[Part], stage: Stage) -> list[Edits]:
    """What other stages have, and may be in this one, too, beside something else: an edit of a function of both."""
    options = dict.fromkeys(one for part in parts for one in (part.fitted.edits, *part.fitted.alike))
    shared = {*stage.functions} - {named(SPECIFICATION.block.forward)}
    return [one for one in options if all(isinstance(e, Single) and e.function in shared for e in one)][:_SHARED]


def _explained(fitted: Fitted, stage: Stage, wrong: Sequence[str], model: _Model) -> tuple[str, ...]:
    """All wrong stages that the edited functions are in, and that are right with the edits made."""
    changed, right = {one.function for one in fitted.edits} - {""}, list[str]()
    for name in wrong:
        other = model.stage(name, stage.whole)
        in_it = changed <= set(other.functions) if changed else name.split("/")[-1] == stage.name.split("/")[-1]
        if name == stage.name or (in_it and _gives(fitted.edits, other, model.ground, model.judge)):
            right.append(name)
    return tuple(right)


def _gives(changes: Sequence[Any], stage: Stage, ground: Ground, judge: Judge, room: float = 1.0) -> bool:
    try:
        with np.errstate(all="ignore"):
            value = stage.value(changes, ground)
    except Exception:  # whatever an edit raises: no program in this stage
        return False
    return off(ground.shown[stage.name], value, judge.of_value[stage.name]) <= room


def _in_a_further_run(fitted: Fitted, model: _Model, stages: tuple[str, ...], halves: frozenset[str]) -> Part:
    """Those of the changes that are alike which a further run shows, stage by stage."""
    ground, _ = model.held(halves)
    places = [model.stage(name, bool(halves)) for name in stages if name in ground.shown]
    left = [
        changes
        for changes in (fitted.edits, *fitted.alike)[:_TRIED]
        if all(_gives(changes, place, ground, model.judge, SURE) for place in places)
    ]
    if not left or not places:
        return Part(fitted, stages)
    return Part(Fitted(left[0], tuple(left[1:]), fitted.rivals), stages, shown=True)


def _proven(parts: Sequence[Part], rest: tuple[str, ...], model: _Model, halves: frozenset[str]) -> Derived:
    """Those of the changes that are alike which the further run shows as a whole, and what it does not show."""
    ground, run = model.held(halves)
    settings = ground.probe, run, model.judge, model.cfg, model.conventions
    if rest:
        return Derived(tuple(parts), rest[0], rest)
    best, missing = tuple(parts), ""
    for chosen in islice(product(*((part.fitted.edits, *part.fitted.alike) for part in parts)), _TRIED):
        named = tuple(_with(part, changes) for part, changes in zip(parts, chosen, strict=True))
        try:
            places = [model.stage(p.stages[0], bool(halves)).edited(p.fitted.edits, p.stages) for p in named]
            found = unproven(places, *settings)
        except Exception:  # whatever an edit raises: no program in a whole model
            found = UNTRIED
        if not found or not missing or (found.startswith("d ") and not missing.startswith("d ")):
            best, missing = named, found
        if not found:
            break
    return Derived(best, missing)


def _with(part: Part, changes: Edits) -> Part:
    """Named so; the others of those that are alike beside it."""
    others = tuple(one for one in (part.fitted.edits, *part.fitted.alike) if one != changes)
    return replace(part, fitted=Fitted(changes, others, part.fitted.rivals))
