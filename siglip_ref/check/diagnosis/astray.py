"""Gradients that lie with another rank than the one that owns the rows: whose share of them was carried where.

What the images of one rank and the texts of another give to an embedding's gradient is a block of rows, and belongs to
one rank. The rows that each rank holds are taken apart into all these blocks by least squares: so it is seen which of
them lie with it, at home or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from siglip_ref.check.diagnosis.predict import EMBEDS, Context
from siglip_ref.check.diagnosis.terms import (
    Odd,
    Weights,
    at_each_number_of_ranks,
    counted,
    describe,
    listed,
    loss_terms,
    odd_groups,
    simple,
)
from siglip_ref.check.engine.findings import Pattern
from siglip_ref.check.engine.seen import Seen, distance
from siglip_ref.ops.elementary import Array

DUE = "; its gradient went to the rank whose rows were due"
SHIFTED = {"text_embed": "text-grad-to-wrong-rank"}  # whose shift over ranks has a name

_VISIBLE = 50.0  # a block that is not so many times what is allowed cannot be weighed
_APART = 1e-4  # of the largest singular value: blocks that are more alike cannot be told apart
_LISTED = 3

Block = tuple[int, int]  # rank of the images, rank of the texts
Placed = Mapping[tuple[int, Block], float]  # by the rank that holds it and the block, how many times it lies there


@dataclass(frozen=True)
class Rows:
    """The gradient of one embedding in one call. blocks: each one's share, by its owner's rows; kept: what the rank
    that holds a share makes of it (the backward of normalising its own rows); got, allowed: of each rank."""

    blocks: dict[Block, Array]
    kept: list[Callable[[Array], Array]]
    got: list[Array]
    allowed: list[Array]

    def columns(self, rank: int) -> list[Array]:
        """Each block's share, as it would be in this rank's rows."""
        return [self.kept[rank](share) for share in self.blocks.values()]


def astray(seen: Sequence[Seen], contexts: Mapping[str, Context]) -> Iterator[Pattern]:
    """For each embedding whose rows are wholly explained so, where some lie with a rank that does not own them."""
    for name in EMBEDS:
        mine = [one for one in seen if one.name == name and one.probe in contexts]
        sizes = {contexts[one.probe].sizes for one in mine}
        if not sizes or any(len(of) < 2 or len(set(of)) > 1 for of in sizes):
            continue
        said: dict[tuple[int, ...], Told] = {}
        for of in sorted(sizes, reverse=True):
            calls = [one for one in mine if contexts[one.probe].sizes == of]
            placed = _placed(calls, [contexts[one.probe] for one in calls], name)
            if placed is None:
                break
            said[of] = _in_words(placed, name, len(of))
        if len(said) == len(sizes) and any(told.text for told in said.values()):
            ids = {told.id for told in said.values()}
            text = at_each_number_of_ranks({of: told.text for of, told in said.items()})
            odd = {of: told.odd for of, told in said.items() if told.odd}
            form = counted(odd) if len(odd) == len(said) else text
            yield Pattern(name, ids.pop() if len(ids) == 1 else "unknown", text, form)


# --- what lies where


def _placed(calls: Sequence[Seen], contexts: Sequence[Context], name: str) -> Placed | None:
    """Found in the call that shows the weakest block best, of those that tell all blocks apart, and true of every call;
    None where it is not."""
    rows = [_rows(one, context, name) for one, context in zip(calls, contexts, strict=True)]
    if not all(np.isfinite(part).all() for of_call in rows for part in of_call.got):
        return None
    shown = sorted((of_call for of_call in rows if _visible(of_call) >= _VISIBLE), key=_visible, reverse=True)
    placed = next(filter(None, map(_solved, shown)), None)
    fits = placed and all(distance(one, _summed(placed, of)) <= 2 for one, of in zip(calls, rows, strict=True))
    return placed if fits else None


def _solved(rows: Rows) -> Placed | None:
    """By least squares; None where blocks are too much alike, as where all pairs are sure and wrong."""
    placed: dict[tuple[int, Block], float] = {}
    for rank, (got, allowed) in enumerate(zip(rows.got, rows.allowed, strict=True)):
        matrix = np.stack([(column / allowed).ravel() for column in rows.columns(rank)], -1)
        solution, _, known, _ = np.linalg.lstsq(matrix, (got / allowed).ravel(), rcond=_APART)
        if known < len(rows.blocks):
            return None
        placed |= {(rank, block): simple(float(w)) for block, w in zip(rows.blocks, solution, strict=True)}
    return placed


def _rows(one: Seen, context: Context, name: str) -> Rows:
    """Shares are carried between ranks as gradients of unit rows: normalising is undone where they end."""
    probe, convention, ends = context.probe, context.convention, np.cumsum(context.sizes)[:-1]
    kept = [convention.unit(rows).back for rows in np.split(getattr(probe, name), ends)]
    x, y = convention.unit(probe.image_embed).rows, convention.unit(probe.text_embed).rows
    probe, convention = replace(probe, image_embed=x, text_embed=y), replace(convention, embeddings="unit")
    blocks: dict[Block, Array] = {}
    for term in loss_terms(probe, convention, context.sizes):
        block = term.key[:2]
        share = np.split(term.tensors[name], ends)[block[EMBEDS.index(name)]]
        blocks[block] = blocks.get(block, 0) + share
    allowed = np.broadcast_to(one.allowed, np.shape(one.exact))
    return Rows(blocks, kept, np.split(np.asarray(one.got, np.float64), ends), np.split(allowed, ends))


def _visible(rows: Rows) -> float:
    return float(min(np.abs(c / allowed).max() for r, allowed in enumerate(rows.allowed) for c in rows.columns(r)))


def _summed(placed: Placed, rows: Rows) -> Array:
    columns = [dict(zip(rows.blocks, rows.columns(rank), strict=True)) for rank in range(len(rows.got))]
    return np.concatenate([sum(placed[rank, b] * c for b, c in of.items()) for rank, of in enumerate(columns)])


# --- in words


class Told(NamedTuple):
    """What is seen, and by which id; odd : the terms that were met otherwise than once, where the gradient followed."""

    text: str = ""
    id: str = "unknown"
    odd: Odd = ()


def _in_words(placed: Placed, name: str, world: int) -> Told:
    """Nothing, where every share is at home, or lost."""
    side = EMBEDS.index(name)
    away = {key: weight for key, weight in placed.items() if weight and key[0] != key[1][side]}
    if not away:
        return Told()
    if met := _due(placed, away, side, world):
        return Told(describe(met, world) + DUE, odd=odd_groups(met, world))
    by_hop = _by_hop(placed, side, world)
    if by_hop is not None:
        return _carried(by_hop, name, world)
    first = [
        f"rank {rank} holds {weight:g} times what the block of rank {block[0]}'s images and rank {block[1]}'s texts "
        f"gives to rank {block[side]}"
        for (rank, block), weight in list(away.items())[:_LISTED]
    ]
    more = len(away) - len(first)
    return Told("; ".join(first) + (f"; and {more} more" if more else ""))


def _due(placed: Placed, away: Placed, side: int, world: int) -> Weights | None:
    """How often each block was met, where ranks met other rows than they should have, and gave the gradient to the rank
    whose rows were due."""
    for rank, block in away:
        due = (block[0], rank) if side else (rank, block[1])
        if placed[due[side], due] != 0:
            return None
    return {(*block, False): sum(placed[rank, block] for rank in range(world)) for _, block in placed}


Steps = tuple[tuple[int, float], ...]  # so many ranks beside the owner, so many times


def _by_hop(placed: Placed, side: int, world: int) -> dict[int, Steps] | None:
    """Where the shares of each hop lie, if that is the same on all ranks."""
    found: dict[int, Steps] = {}
    for hop in range(world):
        blocks = [(rank, (rank + hop) % world) for rank in range(world)]
        weights = [[placed[(block[side] + step) % world, block] for step in range(world)] for block in blocks]
        if any(of_block != weights[0] for of_block in weights):
            return None
        found[hop] = tuple((step, weight) for step, weight in enumerate(weights[0]) if weight)
    return found


def _carried(by_hop: Mapping[int, Steps], name: str, world: int) -> Told:
    """Hops whose shares lie at the same place, together."""
    together: dict[Steps, list[int]] = {}
    for hop, steps in by_hop.items():
        if steps != ((0, 1.0),):
            together.setdefault(steps, []).append(hop)
    said = []
    for steps, hops in together.items():
        away = odd_groups({(0, hop, False): float(hop not in hops) for hop in by_hop}, world)
        said.append(f"{listed(away[0][1])}: what belongs to rank r {_lies(steps, world)}")
    # all that travels, at one other rank, is the mistake that has a name
    named = any(together == {((step, 1.0),): list(range(1, world))} for step in range(1, world))
    return Told("; ".join(said), SHIFTED.get(name, "unknown") if named else "unknown")


def _lies(steps: Steps, world: int) -> str:
    places = []
    for step, weight in steps:
        short = step if step <= world // 2 else step - world
        place = f"rank r {'+' if short > 0 else '-'} {abs(short)}" if short else "rank r"
        places.append(place + (f" {weight:g} times" if weight != 1 else ""))
    return f"lies with {' and '.join(places)}, modulo W" if places else "is missing"
