"""Which mistakes of the catalogue a model holds, and in which stages: values first, stage by stage, then gradients."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower, sides_of
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.edits import fitting
from siglip_ref.check.engine.explain import share_explained
from siglip_ref.check.engine.findings import FINDING
from siglip_ref.check.engine.seen import Seen
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.rounding import Rounding, find_roundings
from siglip_ref.check.model.diagnosis.search import Found, Search, affordable
from siglip_ref.check.model.judge import Judge, of_loss
from siglip_ref.check.model.placed import LOSS, Placed, stages_of, with_mistakes
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.reference import KEY_BIAS
from siglip_ref.check.model.stages import TOWERS, readable, stage_values
from siglip_ref.mistakes import Mistake, Reference, executable, in_the_loss, reference
from siglip_ref.report.compare import compare

_TRAIN = 3  # a forward and backward pass costs so many forward passes
_ROUNDINGS = 40  # what `find_roundings` costs, in passes through its stage
_OF_TOWERS = ("model/encoder.py", "model/image.py", "model/naflex.py", "model/text.py")
_OF_LOSS = ("ops/pair_block.py", "ops/sigmoid_loss.py")
_SCOPES = 4  # in how many places a mistake of the backward pass is tried, about


def find_mistakes(run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions) -> Found:
    """The mistakes that explain a run, each with the stages in which it was made."""
    precision = np.float64 if judge.dtype == "float64" else np.float32
    params = {name: np.asarray(value, precision) for name, value in probe.params.items()}
    probe = replace(probe, params=params, images=np.asarray(probe.images, precision))
    search = Search(run, judge, probe, cfg, conventions, readable(run.activations, judge.exact.activations, precision))
    sets: list[tuple[Placed, ...]] = [()]
    unexplained: list[str] = []
    rounded: dict[str, Sequence[Rounding]] = {}
    with np.errstate(all="ignore"):
        for part in (*sides_of(cfg), *(() if isinstance(cfg, OneTower) else (LOSS,))):
            alike, rest = _of_loss(search) if part == LOSS else _of_tower(search, part, rounded)
            unexplained += rest
            # mistakes that agree in every value are told apart by their gradients
            sets = [_each_once((*made, *others)) for made in sets for others in alike][: affordable(search, _TRAIN)]
        ranked = sorted(((_share(search, made), made) for made in sets), key=lambda entry: -entry[0])
        share, made = ranked[0]
        finite = all(np.isfinite(grad).all() for grad in run.grads.values())
        if made or unexplained or rounded or not finite:  # gradients: where the values they follow from are right
            return Found(made, share, tuple(unexplained), rounded=rounded)
        if affordable(search, _TRAIN) < len(executable("one vector")) * _SCOPES:
            return Found((), share, (), "mistakes of the backward pass were not tried: the model is large")
        for placed in _on_the_way_back(search):
            if (explained := _share(search, (placed,))) >= FINDING:
                return Found((placed,), explained, ())
    return Found((), share, ())


def _of_tower(
    search: Search, tower: str, rounded: dict[str, Sequence[Rounding]]
) -> tuple[list[tuple[Placed, ...]], list[str]]:
    """Sets of mistakes that explain the wrong stages of one tower equally well, and the stages that none explains;
    those that a product in fewer bits explains go to `rounded`."""
    right = _excesses(search, tower, (), None)
    wrong = [name for name, excess in right.items() if not excess <= 1]
    room = max(1, affordable(search, _ROUNDINGS / len(stages_of(search.cfg, tower))))
    for stage in wrong[:room]:
        dtype = search.judge.dtype
        if alike := find_roundings(stage, search.shown, search.probe, search.cfg, search.conventions, dtype):
            rounded[stage] = alike
    wrong = [name for name in wrong if name not in rounded]
    if not wrong:
        return [()], []
    candidates = [m for m in executable("one vector") if all(_in_a_tower(edit.file) for edit in m.edits)]
    tries = max(1, affordable(search, len(candidates) / len(right)))  # stages at which all are tried
    made: list[tuple[Placed, ...]] = [()]
    open_, unexplained = wrong, list[str]()
    while open_ and tries:
        stage, tries = open_[0], tries - 1
        fits = fitting(candidates, _written, partial(_off, search, tower, stage), partial=len(candidates))
        tables = {together: _excesses(search, tower, together, None) for together in fits}
        explained = {fit: {name for name in open_ if table.get(name, np.inf) <= 1} for fit, table in tables.items()}
        if not any(explained.values()):
            unexplained.append(stage)
            open_ = open_[1:]
            continue
        most = max(map(len, explained.values()))
        best = [fit for fit in fits if len(explained[fit]) == most]
        fewest = min(len(_broken(tables[fit], right)) for fit in best)
        best = [fit for fit in best if len(_broken(tables[fit], right)) == fewest]
        every = None if fewest else frozenset(stages_of(search.cfg, tower))
        made = [
            (*others, *(Placed(one, every or frozenset(explained[fit]), frozenset(explained[fit])) for one in fit))
            for others in made
            for fit in best
        ]
        open_ = [name for name in open_ if name not in explained[best[0]]]
    return made, [name for name in wrong if name in unexplained or name in open_]


def _each_once(made: Sequence[Placed]) -> tuple[Placed, ...]:
    """A mistake found at several stages, alone or beside another one, is one that is made in all of them."""
    by_id = dict[str, Placed]()
    for one in made:
        known = by_id.get(one.mistake.id, one)
        by_id[one.mistake.id] = replace(one, stages=known.stages | one.stages, spoils=known.spoils | one.spoils)
    return tuple(by_id.values())


def _written(made: Sequence[Mistake]) -> AbstractContextManager[Reference]:
    """The specification with mistakes in its text."""
    return nullcontext(reference(tuple(edit for mistake in made for edit in mistake.edits)))


def _off(search: Search, tower: str, stage: str, spec: Reference) -> list[float]:
    """How far a stage that the model shows is from what a reference makes of its input, in what is allowed."""
    return [_compared(search, tower, spec, {stage})[stage]]


def _excesses(
    search: Search, tower: str, mistakes: Sequence[Mistake], wanted: Collection[str] | None
) -> dict[str, float]:
    """How far each stage that the model shows is from what the reference makes of its input, in what is allowed."""
    try:
        with _written(mistakes) as spec:
            return _compared(search, tower, spec, wanted)
    except (ValueError, FloatingPointError):  # they do not fit these shapes, or change the same line
        return {}


def _compared(search: Search, tower: str, spec: Reference, wanted: Collection[str] | None) -> dict[str, float]:
    values = stage_values(spec, tower, search.shown, search.probe, search.cfg, search.conventions, wanted)
    got, allowed = search.run.activations, search.judge.of_value
    return {
        name: compare(name, got[name], value, allowed[name]).excess
        for name, value in values.items()
        if name in got and (wanted is None or name in wanted)
    }


def _broken(table: Mapping[str, float], right: Mapping[str, float]) -> list[str]:
    """Stages that are right, and would not be with this mistake."""
    return [name for name, excess in table.items() if right[name] <= 1 and not excess <= 1]


def _of_loss(search: Search) -> tuple[list[tuple[Placed, ...]], list[str]]:
    """The same for the stage from the embeddings to the loss."""
    embeds = [search.shown.get(f"{tower}/embed") for tower in TOWERS]
    scalars = (search.probe.params["log_scale"], search.probe.params["bias"])
    if embeds[0] is None or embeds[1] is None:
        return [()], []

    def off(spec: Reference) -> list[float]:
        loss = spec.loss.sigmoid_loss(*embeds, *scalars).loss
        return [compare(LOSS, search.run.loss, loss, search.judge.of_value[LOSS]).excess]

    if off(reference())[0] <= 1:
        return [()], []
    candidates = [m for m in executable("one vector") if in_the_loss(m)]
    alike = [Placed(m, frozenset({LOSS})) for (m,) in fitting(candidates, _written, off, pairs=False)]
    return ([(placed,) for placed in alike], []) if alike else ([()], [LOSS])


def _on_the_way_back(search: Search) -> Iterator[Placed]:
    """Candidates for what only gradients show: in the loss, everywhere, in a tower, in its blocks, where it begins."""
    begins = {tower: stages for tower in sides_of(search.cfg) if (stages := _first_wrong_gradient(search, tower))}
    every = {tower: frozenset(stages_of(search.cfg, tower)) for tower in begins}
    blocks = {tower: frozenset(name for name in every[tower] if "/block" in name) for tower in begins}
    together = [frozenset().union(*parts.values()) for parts in (every, blocks) if len(begins) > 1]
    scopes = [*together, *(stages for tower in begins for stages in (every[tower], blocks[tower], begins[tower]))]
    for mistake in executable("one vector"):
        if in_the_loss(mistake) and "log_scale" in search.probe.params:
            yield Placed(mistake, frozenset({LOSS}))
        if _leaves_values(search, mistake):
            yield from (Placed(mistake, scope) for scope in scopes)


def _leaves_values(search: Search, mistake: Mistake) -> bool:
    """Whether it is made in a tower, and only on the way back."""
    return all(_in_a_tower(edit.file) for edit in mistake.edits) and not any(
        _broken(_excesses(search, tower, (mistake,), None), _excesses(search, tower, (), None))
        for tower in sides_of(search.cfg)
    )


def _first_wrong_gradient(search: Search, tower: str) -> frozenset[str]:
    """The stages of the part of a tower to which its first wrong gradient on the way back belongs."""
    wrong = [
        one.name for one in _seen(search) if one.name.startswith(tower) and one.probe == "gradient" and _is_wrong(one)
    ]
    if not wrong:
        return frozenset()
    part = wrong[-1].split("/")[1]
    place = part if part.startswith("block") or part in ("norm", "pool", "head") else "stem"
    return frozenset(name for name in stages_of(search.cfg, tower) if name.split("/")[1] == place)


def _is_wrong(one: Seen) -> bool:
    return not np.all(np.abs(one.got - one.exact) <= one.allowed)


def _share(search: Search, made: Sequence[Placed]) -> float:
    """Of everything that deviates, how much these mistakes explain."""
    try:
        loss, activations, grads = with_mistakes(made, search.probe, search.cfg, search.conventions)
    except (ValueError, FloatingPointError):  # they change the same line, or do not fit these shapes
        return 0.0
    predicted = {("value", name): value for name, value in (activations | {LOSS: loss}).items()}
    predicted |= {("gradient", name): value for name, value in grads.items()}
    in_loss = any(LOSS in placed.stages for placed in made)  # whose logits nobody sees
    return share_explained([one for one in _seen(search) if not (in_loss and one.name == "logits")], predicted)


def _seen(search: Search) -> list[Seen]:
    run, judge, exact = search.run, search.judge, search.judge.exact
    values = {name: value for name, value in run.activations.items() if name in exact.activations}
    values[LOSS] = np.reshape(run.loss, ()) if np.size(run.loss) == 1 else run.loss
    seen = []
    for name, right in (exact.activations | of_loss(exact)).items():
        if name in values:
            allowed = judge.of_value[name] * np.max(np.abs(right))
            seen.append(Seen("value", name, values[name], right, allowed))
    for name, right in exact.grads.items():
        unit = exact.key_terms[name] if name.endswith(KEY_BIAS) else np.max(np.abs(right))
        seen.append(Seen("gradient", name, run.grads[name], right, judge.of_grad[name] * unit))
    return seen


def _in_a_tower(file: str) -> bool:
    return file in _OF_TOWERS or (file.startswith("ops/") and file not in _OF_LOSS)
