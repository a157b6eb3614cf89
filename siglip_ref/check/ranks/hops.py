"""The losses that a ring tells hop by hop: whose texts each of them was scored against, read off the number itself.

In which order the texts come is the program's choice, and so is by what it divides; but every rank must meet the texts
of every rank once, and only its own with positives.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from siglip_ref.check.diagnosis.terms import loss_terms
from siglip_ref.check.engine.expected.expected import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.ops.elementary import Array, softplus
from siglip_ref.report.data import Hop

ALIKE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}  # relative; blocks differ by far more
NO_BLOCK = "the loss of no block"
Owners = tuple[int, ...]


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
    terms = {term.key: float(term.tensors["loss"]) * sum(sizes) for term in loss_terms(probe, convention, sizes)}
    blocks = {owner: sum(terms.get((rank, owner, sign), 0.0) for sign in (True, False)) for owner in ranks}
    for owner in ranks:
        yield f"texts of rank {owner}", (owner,), blocks[owner]
    for one, other in combinations(ranks, 2):  # a ring in both directions
        yield f"texts of ranks {one} and {other}", (one, other), blocks[one] + blocks[other]
    zeros = float(softplus(np.array(probe.bias)))
    for count in sorted({sizes[rank] * size for size in sizes}):
        yield f"zeros: {count} softplus(bias), from a buffer that was never filled", (), count * zeros
    own = softplus(_diagonal(probe, convention, sizes, rank, rank)).sum()
    yield "its own texts, without positives", (), terms[rank, rank, False] + float(own)
    for owner in ranks:
        if owner != rank and sizes[owner] == sizes[rank]:
            turned = float(_diagonal(probe, convention, sizes, rank, owner).sum())  # softplus(-l) = softplus(l) - l
            yield f"texts of rank {owner}, with positives on the diagonal", (), blocks[owner] - turned
    yield "nothing", (), 0.0


def _diagonal(probe: Probe, convention: Convention, sizes: Sequence[int], images: int, texts: int) -> Array:
    """Logits on a block's diagonal."""
    scale = probe.scale if convention.linear else np.exp(probe.log_scale)
    x, y = convention.unit(probe.image_embed).rows, convention.unit(probe.text_embed).rows
    ends = np.cumsum(sizes)
    x, y = np.split(x, ends)[images], np.split(y, ends)[texts]
    return scale * (x * y).sum(-1) + probe.bias
