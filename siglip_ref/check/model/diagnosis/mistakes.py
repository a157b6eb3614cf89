"""Which mistakes of the catalogue a model holds, and in which stages: values first, stage by stage, then gradients."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import OneTower, sides_of
from siglip_ref.architecture.sizes import Config
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
from siglip_ref.mistakes import Mistake, executable, in_the_loss, reference
from siglip_ref.report.compare import compare

_TRAIN = 3  # a forward and backward pass costs so many forward passes
_ROUNDINGS = 40  # what `find_roundings` costs, in passes through its stage
_OF_TOWERS = ("model/encoder.py", "model/image.py", "model/naflex.py", "model/text.py")
_OF_LOSS = ("ops/pair_block.py", "ops/sigmoid_loss.py")
_SCOPES = 4  # in how many places a mistake of the backward pass is tried, about


Table = dict[tuple[Mistake, ...], dict[str, float]]  # by mistakes made together: how far each stage is off


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
            sets = [(*made, *others) for made in sets for others in alike][: affordable(search, _TRAIN)]
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
    room = affordable(search, len(candidates) / len(stages_of(search.cfg, tower)))
    wanted = set(right) if room >= len(right) else set(wrong[: max(room, 1)])
    open_ = set(wrong) & wanted
    made: list[tuple[Placed, ...]] = [()]
    tables: Table = {(m,): _excesses(search, tower, (m,), wanted) for m in candidates} if open_ else {}
    hopeless = set[str]()
    while open_ - hopeless:
        explained = {m: {name for name in open_ if table.get(name, np.inf) <= 1} for m, table in tables.items()}
        most = max(map(len, explained.values()), default=0)
        if not most:
            stage = next(name for name in right if name in open_ - hopeless)
            pairs = _pairs(search, tower, tables, right, stage, wanted)
            tables |= pairs
            hopeless |= set() if pairs else {stage}
            continue
        best = [m for m in explained if len(explained[m]) == most]
        fewest = min(len(_broken(tables[m], right)) for m in best)
        best = [m for m in best if len(_broken(tables[m], right)) == fewest]
        everywhere = not fewest and wanted == set(right)
        made = [
            (
                *others,
                *(
                    Placed(
                        m,
                        frozenset(stages_of(search.cfg, tower) if everywhere else explained[ms]),
                        frozenset(explained[ms]),
                    )
                    for m in ms
                ),
            )
            for others in made
            for ms in best
        ]
        open_ -= explained[best[0]]
    return made, [name for name in wrong if name in open_ or name not in wanted]


def _pairs(
    search: Search, tower: str, tables: Table, right: Mapping[str, float], stage: str, wanted: Collection[str]
) -> Table:
    """Two mistakes that together explain a stage which no single one explains, and what they make of the others."""
    touching = [
        made[0] for made, table in tables.items() if len(made) == 1 and table.get(stage) not in (None, right[stage])
    ]
    pairs = list(combinations(touching, 2))
    if not pairs or affordable(search, len(pairs) / len(stages_of(search.cfg, tower))) < 1:
        return {}
    fitting = [pair for pair in pairs if _excesses(search, tower, pair, {stage}).get(stage, np.inf) <= 1]
    return {pair: _excesses(search, tower, pair, wanted) for pair in fitting}


def _excesses(
    search: Search, tower: str, mistakes: Sequence[Mistake], wanted: Collection[str] | None
) -> dict[str, float]:
    """How far each stage that the model shows is from what the reference makes of its input, in what is allowed."""
    try:
        spec = reference(tuple(edit for mistake in mistakes for edit in mistake.edits))
        values = stage_values(spec, tower, search.shown, search.probe, search.cfg, search.conventions, wanted)
    except (ValueError, FloatingPointError):  # they do not fit these shapes, or change the same line
        return {}
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

    def excess(mistake: Mistake | None) -> float:
        loss = reference(mistake.edits if mistake else ()).loss.sigmoid_loss(*embeds, *scalars).loss
        return compare(LOSS, search.run.loss, loss, search.judge.of_value[LOSS]).excess

    if excess(None) <= 1:
        return [()], []
    alike = [Placed(m, frozenset({LOSS})) for m in executable("one vector") if in_the_loss(m) and excess(m) <= 1]
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
