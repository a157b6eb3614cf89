"""One thing after the other in which a loss over ranks is not SigLIP's, with its entry of the catalogue."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.blocks.carried import Kind, Told
from siglip_ref.check.diagnosis.blocks.groups import Counted, Group, Odd
from siglip_ref.check.diagnosis.blocks.parts import Part
from siglip_ref.check.diagnosis.blocks.tensors import Blocks
from siglip_ref.check.diagnosis.blocks.times import Times
from siglip_ref.check.diagnosis.blocks.told import ZERO_BUFFER, form_of, in_words, tellings
from siglip_ref.check.diagnosis.blocks.ways import EXACT, NOT, Way, matching_of, sets
from siglip_ref.check.diagnosis.predict import EMBEDS
from siglip_ref.check.engine.findings import DETACHED
from siglip_ref.errors import few

_ALL = 5  # the loss and its gradients


@dataclass(frozen=True)
class Fault:
    """kind : what is wrong; told : in words, by tensor; id : of the catalogue, or ""; factor : of one, its form;
    remote : whether all remote blocks are what counts otherwise; way : another way in which parts are made."""

    kind: Kind
    told: Mapping[str, str]
    id: str = ""
    factor: Times | None = None
    remote: bool = False
    way: Way = EXACT

    @property
    def tensors(self) -> tuple[str, ...]:
        """All in which it shows."""
        return tuple(self.told)


def faults_of(blocks: Blocks) -> list[Fault]:
    """Factors first, then what was met, then what lies elsewhere."""
    found = _factors(blocks)
    found += [
        Fault(way.kind or "factor", dict.fromkeys(names, way_in_words(way)), way=way) for way, names in blocks.varied
    ]
    told = tellings(blocks)
    wrong = {name: by_world for name, by_world in told.items() if any(one.text for one in by_world.values())}
    groups: dict[Hashable, list[str]] = {}
    for name in (name for name in blocks.tensors if name in wrong):
        groups.setdefault(form_of(wrong[name]), []).append(name)
    for form, names in groups.items():
        kinds = [kind for name in names for one in told[name].values() for kind in one.kinds]
        kind: Kind = next((k for k in _FIRST if k in kinds), "elsewhere")
        of_names = [told[name] for name in names]
        remote = any(_of_all_remote(one.odd) for by_world in of_names for one in by_world.values())
        all_of_it = set(kinds) <= {"matches", "unmatched"} and len(names) == len(told)
        way = _matching(blocks) if all_of_it else EXACT
        said = {name: way_in_words(way) if way.kind else in_words(told[name]) for name in names}
        found.append(Fault(kind, said, _id(kind, form, of_names, names, len(told)), remote=remote, way=way))
    return found


def _matching(blocks: Blocks) -> Way:
    """Where every block counts once, and some blocks' diagonals as matches: one sentence for which, if there is one."""
    own = {
        world: np.array([[met[Part(i, j, "positives")] for j in range(world)] for i in range(world)])
        for world, met in blocks.met.items()
    }
    once = all(
        met[Part(i, j, "negatives")] == 1 == own[world][i, j] + met[Part(i, j, "diagonal")]
        for world, met in blocks.met.items()
        for i, j in product(range(world), repeat=2)
    )
    return matching_of(own) if once else EXACT


_WORDS = {
    "rounded": "{0.of} are rounded to {0.form} on their way to the product",
    "rounded back": (
        "its parts are rounded to {0.form} on their way back or as they are computed (reproduced up to such roundings)"
    ),
    "earlier": "{0.of} are those of the call before, of the same shape",
    "undivided": "{0.of} come to the product undivided by their length, or divided by one that is held constant",
    "logit": "in {0.of} a logit is {0.form}",
    "matching": "image i of rank r matches {0.of}, where p = {0.form}",
    "transposed": "in {0.of} the slopes come to it transposed",
}


def way_in_words(way: Way) -> str:
    """What is so in the tensors that it concerns."""
    if way.kind in _WORDS:
        return _WORDS[way.kind].format(way) + ", not r b + i" * (way.of == "global text p")
    if way.kind in ("pairs", "labels"):
        pairs, *same = (_pairs(form) for form in (way.form, *sets()[way.form]))
        alike = f", which of 5 and of 32 pairs is the same as {few(same, 2)}" if same else ""
        counts = "what counts" if way.kind == "pairs" else "what counts as matches"
        return f"in {way.of}, {counts} is: {pairs}{alike} (i, j, B: within the block)"
    divided = f"every block is divided by W times {way.form}, not by B" if way.form else ""
    return f"where shards are unequal, {' and '.join(filter(None, (way.of, divided)))}"


def _pairs(form: str) -> str:
    return f"all pairs but those {form.removeprefix(NOT)}" if form.startswith(NOT) else f"pairs {form}"


_FIRST: tuple[Kind, ...] = (
    "instead", "crossed", "scaled", "zeros", "matches", "unmatched", "own again", "left out", "stays", "onward",
    "shifted", "elsewhere", "weighed", "repeated", "missing", "due",
)  # fmt: skip


def _factors(blocks: Blocks) -> list[Fault]:
    """What all tensors are multiplied by, as the loss is, and what some are besides."""
    groups: dict[Times, list[str]] = {}
    every = {name: tensor.times for name, tensor in blocks.tensors.items() if not tensor.of}
    shared = every.get("loss", Times())
    if shared != Times() and shared.number and all(times != Times() and times.number for times in every.values()):
        groups[shared] = list(every)
        every = {name: times.over(shared) for name, times in every.items()}
    for name, times in every.items():
        if times != Times():
            groups.setdefault(times, []).append(name)
    return [
        Fault(
            "factor",
            dict.fromkeys(names, f"{times} times the right one"),
            _of_factor(times, set(names), set(blocks.tensors)),
            times,
        )
        for times, names in groups.items()
    ]


def _of_factor(times: Times, names: set[str], every: set[str]) -> str:
    """The entry that is a factor of these tensors."""
    form = str(times)
    rows, scalars = set(EMBEDS), every - {"loss"} - set(EMBEDS)
    if form == "0":
        return DETACHED if "loss" not in names else ""
    if names == every:
        known = {
            "1/B": "sum-vs-mean-vs-b2",
            "B": "loss-not-divided",
            "2": "both-directions-summed",
            "1/b": "ring-local-b2",
        }
        return known.get(form, "accum-loss-not-divided" if form.isdecimal() else "")
    if names == rows:
        return {"1/W": "gather-own-slot-one-over-w", "W": "embed-grad-times-w"}.get(form, "")
    if names == rows | scalars:
        return {"W": "grad-times-w"}.get(form, "")
    if names == scalars:
        return {"1/W": "scalar-grads-one-over-w"}.get(form, "accum-cached-not-divided" if form.isdecimal() else "")
    return ""


def _id(kind: Kind, form: Hashable, told: Sequence[Mapping[int, Told]], names: Sequence[str], known: int) -> str:
    """The entry that parts are, which were met or lie otherwise than they should."""
    every = known == _ALL and len(names) == known
    ids = {one.id for by_world in told for one in by_world.values()} - {"unknown"}
    if kind == "zeros":
        return ZERO_BUFFER if every else ""
    if kind == "shifted":
        return ids.pop() if len(ids) == 1 else ""
    if kind in ("matches", "own again"):
        same = {(one.kinds, one.diagonals) for by_world in told for one in by_world.values()}
        return _of_diagonals(*same.pop()) if every and len(same) == 1 else ""
    if not isinstance(form, Counted):
        return ""
    if all(_of_all_remote(odd) and [(w, len(groups)) for w, groups in odd] == [(0.0, 1)] for _, odd in form.by_world):
        lost = "gather-detached-cross-terms" if list(names) == [EMBEDS[1]] else ""
        return "no-cross-rank-negatives" if every else lost
    return of_hops(form) if every else ""


def _of_all_remote(odd: Odd | None) -> bool:
    """Whether what counts otherwise is, first of all, every remote block."""
    return odd is not None and odd != () and odd[0][1][0].place == "remote"


_DIAGONALS = {
    ("matches", "remote"): "remote-diagonal-as-positive",
    ("own again", "own"): "ring-own-block-double-counted",
}


def _of_diagonals(kinds: Sequence[Kind], diagonals: Sequence[tuple[Kind, tuple[Group, ...], float]]) -> str:
    """The entry that it is to count these diagonals so, once, and to count everything else as SigLIP does."""
    if len(kinds) != 1 or len(diagonals) != 1:
        return ""
    kind, groups, weight = diagonals[0]
    return _DIAGONALS.get((kind, groups[0].place), "") if len(groups) == 1 and weight == 1 else ""


def of_hops(form: Counted) -> str:
    """A hop that is missing at every number of ranks, or in whose place another one counts twice."""
    # of two ranks all remote blocks are one hop; it has no other to be taken for
    counts = [
        {weight: [group.hop or world == 2 for group in groups] for weight, groups in odd}
        for world, odd in form.by_world
    ]
    one_hop = all(len(hops) == 1 and hops[0] for of in counts for hops in of.values())
    if one_hop and all(of.keys() == {0.0} for of in counts):
        return "ring-hop-missing"
    twice = [of.keys() == {0.0, 2.0} for of in counts if of]
    return "ring-hop-repeated" if one_hop and twice and all(twice) else ""
