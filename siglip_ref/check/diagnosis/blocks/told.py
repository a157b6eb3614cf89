"""In what each tensor of a loss over ranks is not SigLIP's: a factor, what was met, what lies elsewhere."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from siglip_ref.check.diagnosis.blocks.derive import Blocks, Met, Tensor, Times
from siglip_ref.check.diagnosis.blocks.parts import Part
from siglip_ref.check.diagnosis.blocks.weigh import Lies
from siglip_ref.check.diagnosis.predict import EMBEDS
from siglip_ref.check.diagnosis.terms import (
    Odd,
    Weights,
    at_each_number_of_ranks,
    counted,
    describe,
    listed,
    odd_groups,
)
from siglip_ref.check.engine.findings import Factor, Pattern

Kind = Literal["factor", "missing", "repeated", "matches", "own again", "zeros", "due", "stays", "shifted", "elsewhere"]
ZEROS = ", scored against zeros instead: softplus(bias) a pair"
ZERO_BUFFER = "ring-received-buffer-zero"
DUE = "; its gradient went to the rank whose rows were due"
SHIFTED = {"text_embed": "text-grad-to-wrong-rank"}  # whose shift over ranks has a name

_LISTED = 3
_ODD = -7.0  # marks a block in a table of weights


@dataclass(frozen=True)
class Told:
    """What is seen of one tensor at one number of ranks. more : what is said of all numbers of ranks, if it is true of
    each; odd : the parts that were met otherwise than once."""

    text: str = ""
    more: str = ""
    kinds: tuple[Kind, ...] = ()
    odd: Odd | None = None
    id: str = "unknown"


def times_in_words(times: Times) -> str:
    """1/W, 2B, 0.37.

    >>> times_in_words(Times(1.0, -1)), times_in_words(Times(2.0, 1, 1)), times_in_words(Times(-1.0, 0, 0, 1))
    ('1/W', '2B', '-t')
    """
    powers = {"W": times.ranks, "b": times.pairs, "t": times.scale}
    both = times.ranks if times.ranks == times.pairs else 0
    if both:
        powers = {"B": both, "t": times.scale}
    above, below = (
        "".join(name if abs(p) == 1 else f"{name}^{abs(p)}" for name, p in powers.items() if p * sign > 0)
        for sign in (1, -1)
    )
    number = f"{times.number:.6g}"
    if above or below:
        number = {"1": "" if above else "1", "-1": "-" if above else "-1"}.get(number, number)
    return f"{number}{above}" + (f"/{below}" if below else "")


def tellings(blocks: Blocks) -> dict[str, dict[int, Told]]:
    """By tensor and number of ranks, besides factors."""
    found: dict[str, dict[int, Told]] = {}
    for name, tensor in blocks.tensors.items():
        if name in EMBEDS:
            found[name] = {world: _of_rows(lies, name, world) for world, lies in (tensor.lies or {}).items()}
        else:
            zeros = name in ("loss", "bias")
            met = blocks.met if tensor.as_met else {}
            found[name] = {world: _of_met(met[world], world, zeros) if met else Told() for world in blocks.met}
    return found


def patterns_of(blocks: Blocks) -> Iterator[Pattern]:
    """One for each tensor that is known at every call, and is not SigLIP's."""
    lost = {name for name, _ in blocks.failed}
    for name, by_world in tellings(blocks).items():
        tensor = blocks.tensors[name]
        if name not in lost and (any(told.text for told in by_world.values()) or tensor.times != Times()):
            yield _pattern(name, tensor, by_world)


def _pattern(name: str, tensor: Tensor, by_world: Mapping[int, Told]) -> Pattern:
    factor = times_in_words(tensor.times)
    ids = {told.id for told in by_world.values()}
    id = ids.pop() if len(ids) == 1 else "unknown"
    if not any(told.text for told in by_world.values()):
        return Pattern(name, id, f"{factor} times the right one", Factor(factor))
    text = in_words(by_world)
    odd = {(1,) * world: told.odd for world, told in by_world.items() if told.odd is not None}
    form: Hashable = counted(odd) if len(odd) == len(by_world) else text
    if tensor.times != Times():
        return Pattern(name, id, f"{factor} times this: {text}", (factor, form))
    return Pattern(name, id, text, form)


def in_words(by_world: Mapping[int, Told]) -> str:
    """The same at every number of ranks, or what it is at each."""
    more = {told.more for told in by_world.values()}
    shared = more.pop() if len(more) == 1 else ""
    each = {(1,) * world: told.text + (told.more if not shared else "") for world, told in by_world.items()}
    return at_each_number_of_ranks(each) + shared


# --- what was met


def _of_met(met: Met, world: int, zeros: bool = True) -> Told:
    """zeros : whether blocks that were scored against zeros show in this tensor."""
    usual, said, kinds = _usual(met, world)
    odd = odd_groups(usual, world)
    weights = {weight for weight, _ in odd}
    if 0.0 in weights:
        kinds.append("missing")
    if weights - {0.0}:
        kinds.append("repeated")
    text = describe(usual, world)
    id, more = "unknown", ""
    filled = {part.block for part, weight in met.items() if part.kind == "zeros" and weight == 1}
    if filled and zeros and filled == {key[:2] for key, weight in usual.items() if weight == 0}:
        more, kinds, id = ZEROS, [*kinds, "zeros"], ZERO_BUFFER
    return Told("; ".join(filter(None, (text, *said))), more, tuple(kinds), None if said else odd, id)


def _usual(met: Met, world: int) -> tuple[Weights, list[str], list[Kind]]:
    """How often positives and negatives count, and what is said of diagonals that count as something else."""
    usual: dict[tuple[int, int, bool], float] = {}
    matches: dict[float, set[tuple[int, int]]] = {}
    again: dict[float, set[tuple[int, int]]] = {}
    others: dict[float, set[tuple[int, int]]] = {}
    for i in range(world):
        for j in range(world):
            as_one, rest, as_other = (met.get(Part(i, j, kind), 0.0) for kind in ("positives", "negatives", "diagonal"))
            if i == j:
                twice = as_other and rest == as_one + as_other
                usual |= {(i, j, True): as_one, (i, j, False): rest - as_other if twice else rest}
                if as_other:
                    (again if twice else others).setdefault(as_other, set()).add((i, j))
            else:
                usual[i, j, False] = rest
                if as_one:
                    matches.setdefault(as_one, set()).add((i, j))
                if as_one + as_other != rest:
                    others.setdefault(as_other, set()).add((i, j))
    said, kinds = list[str](), list[Kind]()
    tables: list[tuple[Kind, dict[float, set[tuple[int, int]]], Callable[[str, float], str]]] = [
        ("matches", matches, lambda where, w: f"{where}: the diagonal counts as matches" + _often(w)),
        ("own again", again, lambda where, w: f"{where} once more, without its matches" + _often(w)),
        ("repeated", others, lambda where, w: f"{where}: pairs of the diagonal count {w:g} times as no match"),
    ]
    for kind, table, words in tables:
        for weight, places in table.items():
            marked = {key: _ODD if key[:2] in places and not key[2] else 1.0 for key in usual}
            marked |= {key: _ODD for key in marked if key[2] and key[:2] in places}
            said.append(words(listed(odd_groups(marked, world)[0][1]), weight))
            kinds.append(kind)
    return usual, said, kinds


def _often(weight: float) -> str:
    return "" if weight == 1 else f", {weight:g} times"


# --- where the rows of a gradient lie


def _of_rows(lies: Lies, name: str, world: int) -> Told:
    side = EMBEDS.index(name)
    away = {key: weight for key, weight in lies.items() if key[0] != key[1].owner(side)}
    if not away:
        return _of_met({part: weight for (_, part), weight in lies.items()}, world)
    whole = _blocks(lies)
    if whole is None:
        return Told(_one_by_one(away, side), "", ("elsewhere",))
    met = _due(whole, side, world)
    if met is not None and (odd := odd_groups(met, world)):
        return Told(describe(met, world), DUE, ("due",), odd)
    by_hop = _by_hop(whole, side, world)
    return Told(_one_by_one(away, side), "", ("elsewhere",)) if by_hop is None else _carried(by_hop, name, world)


Block = tuple[int, int]
Placed = Mapping[tuple[int, Block], float]


def _blocks(lies: Lies) -> Placed | None:
    """Whole blocks; None where some are not whole."""
    found: dict[tuple[int, Block], dict[str, float]] = {}
    for (holder, part), weight in lies.items():
        if not part.usual:
            return None
        found.setdefault((holder, part.block), {})[part.kind] = weight
    if any(len(kinds) != 2 or len(set(kinds.values())) != 1 for kinds in found.values()):
        return None
    return {key: next(iter(kinds.values())) for key, kinds in found.items()}


def _one_by_one(away: Lies, side: int) -> str:
    blocks = {(holder, part.block): weight for (holder, part), weight in away.items()}
    first = [
        f"rank {holder} holds {weight:g} times what the block of rank {block[0]}'s images and rank {block[1]}'s texts "
        f"gives to rank {block[side]}"
        for (holder, block), weight in list(blocks.items())[:_LISTED]
    ]
    more = len(blocks) - len(first)
    return "; ".join(first) + (f"; and {more} more" if more else "")


def _due(placed: Placed, side: int, world: int) -> Weights | None:
    """How often each block was met, where ranks met other rows than they should have, and gave the gradient to the rank
    whose rows were due."""
    for rank, block in placed:
        due = (block[0], rank) if side else (rank, block[1])
        if rank != block[side] and placed.get((due[side], due), 0.0):
            return None
    every = [(i, j) for i in range(world) for j in range(world)]
    total = {block: sum(placed.get((rank, block), 0.0) for rank in range(world)) for block in every}
    return {
        (*block, sign): w for block, w in total.items() for sign in (True, False) if block[0] == block[1] or not sign
    }


Steps = tuple[tuple[int, float], ...]  # so many ranks beside the owner, so many times


def _by_hop(placed: Placed, side: int, world: int) -> dict[int, Steps] | None:
    """Where the shares of each hop lie, if that is the same on all ranks."""
    found: dict[int, Steps] = {}
    for hop in range(world):
        blocks = [(rank, (rank + hop) % world) for rank in range(world)]
        weights = [[placed.get(((b[side] + step) % world, b), 0.0) for step in range(world)] for b in blocks]
        if any(of_block != weights[0] for of_block in weights):
            return None
        found[hop] = tuple((step, weight) for step, weight in enumerate(weights[0]) if weight)
    return found


def _carried(by_hop: Mapping[int, Steps], name: str, world: int) -> Told:
    """Hops whose shares lie at the same place, together."""
    to_whom = 1 if name == EMBEDS[1] else -1  # from the owner to the rank that computed it
    if world > 2 and all(steps == ((-to_whom * hop % world, 1.0),) for hop, steps in by_hop.items()):
        return Told("every block's gradient stays on the rank that computed it", "", ("stays",))
    together: dict[Steps, list[int]] = {}
    for hop, steps in by_hop.items():
        if steps != ((0, 1.0),):
            together.setdefault(steps, []).append(hop)
    said = []
    for steps, hops in together.items():
        away = odd_groups({(0, hop, False): float(hop not in hops) for hop in by_hop}, world)
        said.append(f"{listed(away[0][1])}: what belongs to rank r {_place(steps, world)}")
    # all that travels, at one other rank, is the mistake that has a name
    named = any(together == {((step, 1.0),): list(range(1, world))} for step in range(1, world))
    all_of_it = any(together == {((step, 1.0),): list(range(world))} for step in range(1, world))
    if all_of_it:
        step = next(iter(together))[0][0]
        said = [f"the right rows, but rank r holds those of rank r {_beside(-step % world, world)}, modulo W"]
    return Told("; ".join(said), "", ("shifted",), id=SHIFTED.get(name, "unknown") if named or all_of_it else "unknown")


def _place(steps: Steps, world: int) -> str:
    places = []
    for step, weight in steps:
        place = f"rank r {_beside(step, world)}" if step else "rank r"
        places.append(place + (f" {weight:g} times" if weight != 1 else ""))
    return f"lies with {' and '.join(places)}, modulo W" if places else "is missing"


def _beside(step: int, world: int) -> str:
    short = step if step <= world // 2 else step - world
    return f"{'+' if short > 0 else '-'} {abs(short)}"
