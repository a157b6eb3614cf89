"""The loss and the scalars' gradients over ranks: of which parts each is the sum, and of what in them."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, product

import numpy as np

from siglip_ref.check.diagnosis.blocks.parts import Call, Part, parts_of
from siglip_ref.check.diagnosis.blocks.tensors import Basis, Met, Tensor, gives, summed
from siglip_ref.check.diagnosis.blocks.times import Times, factor, length
from siglip_ref.check.diagnosis.predict import EMBEDS


def right_of(world: int) -> dict[Part, float]:
    """What SigLIP's loss meets."""
    return {part: float(part.usual) for part in parts_of(world)}


def scalar_of(used: Sequence[Call], name: str, bases: Sequence[Basis]) -> Tensor | None:
    """What is due summed over what was met, against zeros too, or over every pair; or something else, or over less."""
    used = [call for call in used if name in call.seen]
    worlds = sorted({call.world for call in used}, reverse=True)
    every, *less = _some()
    others = (*(other for other in _numbers(used) if other != name), "logit", "similarity")
    for of, some in (*product((name, *others), (every,)), *product((name,), less)):
        fits: list[Tensor] = []
        for basis, zeros in product(bases, (False, True) if some is every else (False,)):
            summed = {world: _basis(basis.met[world], world, some, zeros) for world in worlds}
            if all(summed != one.basis for one in fits) and (one := sum_of(used, name, of, Basis(summed, basis.forms))):
                fits.append(one)
        if fits:
            return min(fits, key=lambda one: length(one.times))
    return None


def _numbers(used: Sequence[Call]) -> list[str]:
    return [name for name in dict.fromkeys(name for call in used for name in call.seen) if name not in EMBEDS]


def _some() -> list[Callable[[Part, int], bool]]:
    """Of which blocks a scalar's gradient may be the sum: all; those of some hops (own, first, last, others), as one
    that is kept from block to block; those of some ranks' images (of rank 0, the last, others)."""
    hops = [set(hops) for size in (4, 3, 2, 1) for hops in combinations(range(4), size)]
    ranks = [set(ranks) for size in (3, 2, 1) for ranks in combinations(range(3), size)]
    return [partial(_among, of_hops, of_ranks) for of_ranks, of_hops in product(ranks, hops)]


def _among(hops: set[int], ranks: set[int], part: Part, world: int) -> bool:
    hop = (part.texts - part.images) % world
    of_hop = 0 if hop == 0 else 2 if hop == world - 1 else 1 if hop == 1 else 3
    return of_hop in hops and (0 if part.images == 0 else 1 if part.images == world - 1 else 2) in ranks


def sum_of(used: Sequence[Call], name: str, of: str, basis: Basis) -> Tensor | None:
    """A number times a sum, if that is what came."""
    used = [call for call in used if name in call.seen]
    found = []
    for call in used:
        total = summed(call, of, basis)
        found.append((call, float(np.asarray(call.seen[name].got)) / total if total else 0.0))
    silent = all(not summed(call, of, basis) and not np.any(call.seen[name].got) for call in used)
    if (times := Times() if silent and found else factor(found)) is None:
        return None
    one = Tensor(times, basis=basis.met, of="" if of == name else of, forms=basis.forms)
    return one if all(gives(one, call, name) for call in used) else None


def _basis(met: Met, world: int, some: Callable[[Part, int], bool], zeros: bool) -> Met:
    """Of what a scalar is the sum. zeros : with blocks that nobody met as against zeros, of which texts learn
    nothing."""
    met = {part: weight * some(part, world) for part, weight in met.items()}
    if not zeros:
        return met
    seen = {part.block for part, weight in met.items() if weight}
    return {p: 1.0 if p.kind == "zeros" and p.block not in seen else weight for p, weight in met.items()}
