"""Gradients that lie with another rank than the one that owns the rows: whose share was carried where, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from siglip_ref.check.diagnosis.blocks.groups import Group, Odd, Weights, describe, listed, odd_groups
from siglip_ref.check.diagnosis.blocks.ways import WayKind
from siglip_ref.check.diagnosis.blocks.weigh import Lies
from siglip_ref.check.diagnosis.predict import EMBEDS

Kind = (
    WayKind
    | Literal[
        "instead", "factor", "missing", "repeated", "weighed", "crossed", "scaled", "matches", "unmatched", "own again",
        "left out", "zeros", "due", "stays", "onward", "shifted", "elsewhere",
    ]
)  # fmt: skip
DUE = "; its gradient went to the rank whose rows were due"
SHIFTED = {"text_embed": "text-grad-to-wrong-rank"}  # whose shift over ranks has a name

_LISTED = 3


@dataclass(frozen=True)
class Told:
    """What is seen of one tensor at one number of ranks. more : what is said of all numbers of ranks, if it is true of
    each; odd : the parts that were met otherwise than once; diagonals : those that count as something else, and how
    often."""

    text: str = ""
    more: str = ""
    kinds: tuple[Kind, ...] = ()
    odd: Odd | None = None
    diagonals: tuple[tuple[Kind, tuple[Group, ...], float], ...] = ()
    id: str = "unknown"


def carried(lies: Lies, name: str, world: int) -> Told:
    """Of rows of which some lie with a rank that does not own them."""
    side = EMBEDS.index(name)
    away = {key: weight for key, weight in lies.items() if key[0] != key[1].owner(side)}
    whole = _blocks(lies)
    if whole is None:
        return Told(_one_by_one(away, side), "", ("elsewhere",))
    met = _due(whole, side, world)
    if met is not None and (odd := odd_groups(met, world)):
        return Told(describe(met, world), DUE, ("due",), odd)
    by_hop = _by_hop(whole, side, world)
    return Told(_one_by_one(away, side), "", ("elsewhere",)) if by_hop is None else _by_place(by_hop, name, world)


def crossed(lies: Lies, name: str, world: int) -> str:
    """Of slopes that are multiplied by other rows than their block's: by which."""
    side = EMBEDS.index(name)
    rows, found = ("texts", "images")[side], dict[tuple[int, float, int], set[int]]()
    for (holder, part), weight in lies.items():
        if part.rows >= 0:
            of = (part.owner(1 - side) - holder) % world
            found.setdefault(((part.rows - holder) % world, weight, of), set()).add(holder)
    together: dict[str, list[str]] = {}
    for (taken, weight, of), ranks in found.items():
        who = "r" if len(ranks) == world else f"{min(ranks)}"
        times = "" if weight == 1 else f"{weight:g} times "
        together.setdefault(f"{times}the {rows} of rank {_sum(who, taken, world)}", []).append(_sum(who, of, world))
    said = [f"the slopes of the blocks with the {rows} of rank {', '.join(of)} by {by}" for by, of in together.items()]
    more = len(said) - 2 * _LISTED
    return "multiplied are " * bool(said) + "; ".join(said[: 2 * _LISTED]) + (f"; and {more} more" if more > 0 else "")


def _sum(rank: str, step: int, world: int) -> str:
    """r, r + 1, r - 1; of one rank its number."""
    if rank != "r":
        return f"{(int(rank) + step) % world} on rank {rank}"
    return f"r {_beside(step, world)}" if step else "r"


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


_ONWARD = (
    "a remote block's gradient moves on in place of back: it lies as many ranks beyond the one that computed it as the "
    "owner of the rows is before that"
)
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


def _by_place(by_hop: Mapping[int, Steps], name: str, world: int) -> Told:
    """Hops whose shares lie at the same place, together."""
    to_whom = 1 if name == EMBEDS[1] else -1  # from the owner to the rank that computed it
    if world > 2 and all(steps == ((-to_whom * hop % world, 1.0),) for hop, steps in by_hop.items()):
        return Told("every block's gradient stays on the rank that computed it", "", ("stays",))
    if all(steps == ((-2 * to_whom * hop % world, 1.0),) for hop, steps in by_hop.items()):
        return Told(_ONWARD, "", ("onward",))
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
    kind: Kind = "shifted" if named or all_of_it else "elsewhere"
    return Told("; ".join(said), "", (kind,), id=SHIFTED.get(name, "unknown") if named or all_of_it else "unknown")


def _place(steps: Steps, world: int) -> str:
    places = []
    for step, weight in steps:
        place = f"rank r {_beside(step, world)}" if step else "rank r"
        places.append(place + (f" {weight:g} times" if weight != 1 else ""))
    return f"lies with {' and '.join(places)}, modulo W" if places else "is missing"


def _beside(step: int, world: int) -> str:
    short = step if step <= world // 2 else step - world
    return f"{'+' if short > 0 else '-'} {abs(short)}"
