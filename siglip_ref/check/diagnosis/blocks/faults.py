"""One thing after the other in which a loss over ranks is not SigLIP's, with its entry of the catalogue."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from siglip_ref.check.diagnosis.blocks.carried import Kind, Told
from siglip_ref.check.diagnosis.blocks.derive import Blocks, Times
from siglip_ref.check.diagnosis.blocks.told import (
    ZERO_BUFFER,
    in_words,
    patterns_of,
    tellings,
)
from siglip_ref.check.diagnosis.predict import EMBEDS
from siglip_ref.check.diagnosis.terms import Counted
from siglip_ref.check.engine.findings import DETACHED

_ALL = 5  # the loss and its gradients


@dataclass(frozen=True)
class Fault:
    """kind : what is wrong; told : in words, by tensor; id : of the catalogue, or ""; factor : of one, its form."""

    kind: Kind
    told: Mapping[str, str]
    id: str = ""
    factor: Times | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """All in which it shows."""
        return tuple(self.told)


def faults_of(blocks: Blocks) -> list[Fault]:
    """Factors first, then what was met, then what lies elsewhere."""
    found = _factors(blocks)
    told = tellings(blocks)
    wrong = {name: by_world for name, by_world in told.items() if any(one.text for one in by_world.values())}
    forms = {pattern.tensor: pattern.form for pattern in patterns_of(blocks)}
    groups: dict[Hashable, list[str]] = {}
    for name in (name for name in blocks.tensors if name in wrong):
        form = forms.get(name)
        groups.setdefault(form[1] if isinstance(form, tuple) and not isinstance(form, Counted) else form, []).append(
            name
        )
    for form, names in groups.items():
        said = {name: in_words(told[name]) for name in names}
        kinds = [kind for name in names for one in told[name].values() for kind in one.kinds]
        kind: Kind = next((k for k in _FIRST if k in kinds), "elsewhere")
        found.append(Fault(kind, said, _id(kind, form, [told[name] for name in names], names, len(told))))
    return found


_FIRST: tuple[Kind, ...] = (
    "zeros", "matches", "own again", "stays", "shifted", "elsewhere", "repeated", "missing", "due",
)  # fmt: skip


def _factors(blocks: Blocks) -> list[Fault]:
    """What all tensors are multiplied by, as the loss is, and what some are besides."""
    groups: dict[Times, list[str]] = {}
    every = {name: tensor.times for name, tensor in blocks.tensors.items()}
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
    texts = {one.text for by_world in told for one in by_world.values()}
    ids = {one.id for by_world in told for one in by_world.values()} - {"unknown"}
    if kind == "zeros":
        return ZERO_BUFFER if every else ""
    if kind == "shifted":
        return ids.pop() if len(ids) == 1 else ""
    if kind in ("matches", "own again"):
        plain = {
            "all remote blocks: the diagonal counts as matches": "remote-diagonal-as-positive",
            "the own block once more, without its matches": "ring-own-block-double-counted",
        }
        return plain.get(next(iter(texts)), "") if every and len(texts) == 1 else ""
    if not isinstance(form, Counted):
        return ""
    if texts == {"all remote blocks missing"}:
        lost = "gather-detached-cross-terms" if list(names) == [EMBEDS[1]] else ""
        return "no-cross-rank-negatives" if every else lost
    return of_hops(form) if every else ""


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
