"""The losses that a ring tells hop by hop: whose texts each of them was scored against, read off the number itself.

In which order the texts come is the program's choice, and so is by what it divides; but every rank must meet the texts
of every rank once, and only its own with positives.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from siglip_ref.check.diagnosis.blocks.parts import Amounts, Kind, Part
from siglip_ref.check.engine.expected.expected import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.ranks.observed import Observed
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Hop

ALIKE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}  # relative; blocks differ by far more
NO_BLOCK = "the loss of no block"
Owners = tuple[int, ...]


def table_of(observed: Sequence[Observed], convention: Convention, dtype: str) -> list[Hop]:
    """Of the first call whose hops are wrong, else of the first; only where every term weighs."""
    tables = [
        hops_of(call.probe, convention, call.split.sizes, [rank.hops for rank in call.ranks], dtype)
        for call in observed
        if call.probe.name == "balanced"
    ]
    return next((table for table in tables if any(not hop.right for hop in table)), tables[0] if tables else [])


def hops_of(
    probe: Probe, convention: Convention, sizes: Sequence[int], told: Sequence[Array | None], dtype: str
) -> list[Hop]:
    """One row for each number that was told, and one for each rank whose texts a rank never met.

    Parameters
    ----------
    sizes : pairs of each rank
    told : by rank, its losses hop by hop; None: it told none
    """
    numbers = [np.ravel(losses) for losses in told if losses is not None]
    if len(numbers) < len(sizes):
        return []
    meanings = [list(_meanings(probe, convention, sizes, rank)) for rank in range(len(sizes))]
    divisors = (1.0, sum(sizes) / len(sizes), float(sum(sizes)), sum(sizes) ** 2 / len(sizes))

    def read(divisor: float) -> tuple[int, list[Hop]]:
        """How many numbers mean something, and all rows."""
        parts = [
            _of_rank(rank, losses * divisor, meanings[rank], ALIKE[dtype], divisor)
            for rank, losses in enumerate(numbers)
        ]
        return sum(known for known, _ in parts), [row for _, rows in parts for row in rows]

    # the divisor by which most numbers mean something
    return max(map(read, divisors), key=lambda found: found[0])[1]


def _of_rank(
    rank: int, losses: Array, meanings: Sequence[tuple[str, Owners, float]], alike: float, divisor: float
) -> tuple[int, list[Hop]]:
    """What the numbers of one rank mean: the first meaning that fits, the right ones being tried first; how many do."""
    met, rows, known = list[int](), list[Hop](), 0
    for hop, loss in enumerate(losses):
        fits = [m for m in meanings if abs(loss - m[2]) <= alike * abs(m[2])]
        known += bool(fits)
        text, owners, _ = fits[0] if fits else (NO_BLOCK, (), np.nan)
        again = [owner for owner in owners if owner in met]
        met += owners
        if again:
            text = f"{text}, met before"
        rows.append(Hop(rank, hop, float(loss / divisor), text, bool(owners) and not again))
    for owner in sorted({m[1][0] for m in meanings if m[1]} - set(met)):
        rows.append(Hop(rank, -1, float("nan"), f"texts of rank {owner}: never met", False))
    return known, rows


def _meanings(
    probe: Probe, convention: Convention, sizes: Sequence[int], rank: int
) -> Iterator[tuple[str, Owners, float]]:
    """In words, whose texts are met that way (none, where it is wrong), and the sum over the pairs of the block."""
    ranks = range(len(sizes))
    parts = Amounts(probe, convention, tuple(sizes))

    def block(owner: int, *kinds: Kind) -> float:
        return sum(sizes) * sum(parts[Part(rank, owner, kind)].scalars["loss"] for kind in kinds)

    blocks = {owner: block(owner, "negatives", "positives" if owner == rank else "diagonal") for owner in ranks}
    for owner in ranks:
        yield f"texts of rank {owner}", (owner,), blocks[owner]
    for one, other in combinations(ranks, 2):  # a ring in both directions
        yield f"texts of ranks {one} and {other}", (one, other), blocks[one] + blocks[other]
    for owner in sorted({size: owner for owner, size in enumerate(sizes)}.values(), key=lambda owner: sizes[owner]):
        count = sizes[rank] * sizes[owner]
        yield f"zeros: {count} softplus(bias), from a buffer that was never filled", (), block(owner, "zeros")
    yield "its own texts, without positives", (), block(rank, "negatives", "diagonal")
    for owner in ranks:
        if owner != rank and sizes[owner] == sizes[rank]:
            yield f"texts of rank {owner}, with positives on the diagonal", (), block(owner, "negatives", "positives")
    yield "nothing", (), 0.0
