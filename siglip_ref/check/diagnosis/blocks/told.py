"""In what each tensor of a loss over ranks is not SigLIP's: a factor, what was met, what lies elsewhere."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from itertools import product

from siglip_ref.check.diagnosis.blocks.carried import Kind, Told, carried, crossed
from siglip_ref.check.diagnosis.blocks.groups import (
    Group,
    Key,
    Weights,
    at_each_number_of_ranks,
    counted,
    describe,
    listed,
    odd_groups,
)
from siglip_ref.check.diagnosis.blocks.parts import Part, parts_of
from siglip_ref.check.diagnosis.blocks.tensors import Blocks, Met, Tensor
from siglip_ref.check.diagnosis.blocks.times import Times
from siglip_ref.check.diagnosis.blocks.weigh import Lies
from siglip_ref.check.diagnosis.predict import EMBEDS

ZEROS = ", scored against zeros instead: softplus(bias) a pair"
ZERO_BUFFER = "ring-received-buffer-zero"

_ODD = -7.0  # marks a block in a table of weights


def tellings(blocks: Blocks) -> dict[str, dict[int, Told]]:
    """By tensor and number of ranks, besides factors."""
    found: dict[str, dict[int, Told]] = {}
    for name, tensor in blocks.tensors.items():
        if name in EMBEDS:
            found[name] = {world: _of_rows(lies, name, world) for world, lies in (tensor.lies or {}).items()}
            for world, lies in (tensor.lies or {}).items():
                found[name][world] = _and(found[name][world], "crossed", crossed(lies, name, world))
        else:
            zeros = name in ("loss", "bias")
            found[name] = {world: _of_met(basis, world, zeros) for world, basis in (tensor.basis or {}).items()}
            if tensor.of:
                found[name] = {world: _instead(tensor, told) for world, told in found[name].items()}
        for world, forms in tensor.forms.items():
            there = forms if tensor.basis is None else {p: f for p, f in forms.items() if tensor.basis[world].get(p)}
            found[name][world] = _and(found[name][world], "scaled", _times_each(there, world))
    return found


def _and(told: Told, kind: Kind, text: str) -> Told:
    """What is seen besides."""
    both = "; ".join(filter(None, (told.text, text)))
    return replace(told, text=both, kinds=(*told.kinds, kind), odd=None) if text else told


def _times_each(forms: Mapping[Part, Times], world: int) -> str:
    """By what some parts are multiplied, those of one form together."""
    groups: dict[str, set[Key]] = {}
    for part, form in forms.items():
        groups.setdefault(str(form), set()).add((*part.block, part.kind == "positives"))
    keys = [(p.images, p.texts, p.kind == "positives") for p in parts_of(world) if p.usual]
    every = {form: odd_groups({key: _ODD if key in of else 1.0 for key in keys}, world) for form, of in groups.items()}
    return "; ".join(f"{listed(odd[0][1])}: {form} times" for form, odd in every.items() if odd)


def _instead(tensor: Tensor, told: Told) -> Told:
    times = "" if tensor.times == Times() else f"{tensor.times} times "
    beside = f", of blocks of which {told.text}" if told.text else ""
    return Told(f"{times}{_SUMS.get(tensor.of, f'the gradient of {tensor.of}')}{beside}", "", ("instead",))


_SUMS = {
    "logit": "the sum of slope x logit over all pairs, the bias in the logit too",
    "similarity": "the sum of slope x similarity over all pairs",
    "loss": "the loss",
}


def form_of(by_world: Mapping[int, Told]) -> Hashable:
    """Equal of tensors of which the same is told."""
    odd = {(1,) * world: told.odd for world, told in by_world.items() if told.odd is not None}
    return counted(odd) if len(odd) == len(by_world) else in_words(by_world)


def in_words(by_world: Mapping[int, Told]) -> str:
    """The same at every number of ranks, or what it is at each."""
    more = {told.more for told in by_world.values()}
    shared = more.pop() if len(more) == 1 else ""
    each = {(1,) * world: told.text + (told.more if not shared else "") for world, told in by_world.items()}
    return at_each_number_of_ranks(each) + shared


# --- what was met


def _of_met(met: Met, world: int, zeros: bool = True) -> Told:
    """zeros : whether blocks that were scored against zeros show in this tensor."""
    usual, said, diagonals = _usual(met, world)
    kinds = [kind for kind, _, _ in diagonals]
    odd = odd_groups(usual, world)
    weights = {weight for weight, _ in odd}
    if 0.0 in weights:
        kinds.append("missing")
    if weights - {0.0}:
        kinds.append("repeated" if all(float(weight).is_integer() for weight in weights) else "weighed")
    text = describe(usual, world)
    id, more = "unknown", ""
    filled = {part.block for part, weight in met.items() if part.kind == "zeros" and weight == 1}
    if filled and zeros and filled == {key[:2] for key, weight in usual.items() if weight == 0}:
        more, kinds, id = ZEROS, [*kinds, "zeros"], ZERO_BUFFER
    return Told("; ".join(filter(None, (text, *said))), more, tuple(kinds), None if said else odd, diagonals, id)


Diagonal = tuple[Kind, tuple[Group, ...], float]  # as what it counts, of which blocks, how often
_DIAGONALS: Mapping[Kind, str] = {
    "matches": "{}: the diagonal counts as matches{}",
    "unmatched": "{}: its own pairs count as no match{}",
    "own again": "{} once more, without its matches{}",
    "left out": "{}: pairs of the diagonal {}",
}


def _usual(met: Met, world: int) -> tuple[Weights, list[str], tuple[Diagonal, ...]]:
    """How often positives and negatives count, and what is said of diagonals that count as something else."""
    usual: dict[tuple[int, int, bool], float] = {}
    found: dict[tuple[Kind, float], set[tuple[int, int]]] = {}
    for i, j in product(range(world), repeat=2):
        as_one, rest, as_other = (met.get(Part(i, j, kind), 0.0) for kind in ("positives", "negatives", "diagonal"))
        here: list[tuple[Kind, float]] = []
        if i == j:
            twice = as_other and rest == as_one + as_other
            never = twice and not as_one  # computed, but its own pairs are not the matches
            usual |= {(i, j, True): 1.0 if never else as_one, (i, j, False): rest - as_other * (twice and not never)}
            if as_other:
                here.append(("unmatched" if never else "own again" if twice else "left out", as_other))
        else:
            usual[i, j, False] = rest
            if as_one:
                here.append(("matches", as_one))
            if as_one + as_other != rest:
                here.append(("left out", as_other))
        for key in here:
            found.setdefault(key, set()).add((i, j))
    said, diagonals = list[str](), list[Diagonal]()
    order = list(_DIAGONALS)
    for (kind, weight), places in sorted(found.items(), key=lambda one: order.index(one[0][0])):
        groups = odd_groups({key: _ODD if key[:2] in places else 1.0 for key in usual}, world)[0][1]
        said.append(_DIAGONALS[kind].format(listed(groups), (_count if kind == "left out" else _often)(weight)))
        diagonals.append((kind, groups, weight))
    return usual, said, tuple(diagonals)


def _count(weight: float) -> str:
    return f"count {weight:g} times as no match" if weight else "are left out"


def _often(weight: float) -> str:
    return "" if weight == 1 else f", {weight:g} times"


def _of_rows(lies: Lies, name: str, world: int) -> Told:
    total: dict[tuple[int, Part], float] = {}
    for (holder, part), weight in lies.items():  # whatever rows its slopes are multiplied by
        key = holder, part._replace(rows=-1)
        total[key] = total.get(key, 0.0) + weight
    if all(holder == part.owner(EMBEDS.index(name)) for holder, part in total):
        return _of_met({part: weight for (_, part), weight in total.items()}, world)
    return carried(total, name, world)
