"""The inputs at which a loss over ranks is judged: global batches, and how many pairs each rank has of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from siglip_ref.check.engine.expected.probes import POINTS, Probe, make_probe

# The points at which what ranks can do wrong shows: every term weighs, as fresh, as trained, and with sure logits.
HUNTED = ("balanced", "init", "trained", "saturated, wrong")
# and those at a number of pairs a rank that tiles divide, so that no tail is left; one has a scale of less than 1
WHOLE, WHOLE_HUNTED = 32, ("balanced", "small scale")
WIDTH = 14


@dataclass(frozen=True)
class Sharded:
    """A global batch. sizes: pairs of each rank; label: what reports call it."""

    probe: Probe
    sizes: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.probe.name} (W={len(self.sizes)}, pairs {'+'.join(map(str, self.sizes))})"


def sharded_probes(world: int, unequal: bool, dtype: str, scalar_dtype: str) -> Iterator[Sharded]:
    """Every point of one world size; pairs a rank and ranks are never equal. Numbers have the mantissas of the dtype,
    so that what travels in fewer bits shows.

    Parameters
    ----------
    unequal : ranks with different numbers of pairs, too; dtype, scalar_dtype : as for `make_probe`

    Examples
    --------
    >>> [(one.label, one.probe.shape) for one in sharded_probes(3, True, "float32", "float32")][4]
    ('balanced (W=3, pairs 3+6+5)', (14, 14))
    """
    each = 5 if world != 5 else 6
    shapes = [(each,) * world] + ([tuple(each - 2 + (3 * rank) % 4 for rank in range(world))] if unequal else [])
    for sizes, hunted in [*((sizes, HUNTED) for sizes in shapes), ((WHOLE,) * world, WHOLE_HUNTED)]:
        for point in (point for point in POINTS if point.name in hunted):
            yield Sharded(make_probe(point, (sum(sizes), WIDTH), dtype, scalar_dtype), sizes)
