"""A loss over ranks as a sum of parts: of each block the positives, the negatives, and what mistakes make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.check.diagnosis.blocks.ways import (
    EXACT,
    OFFSETS,
    Way,
    concerns,
    counts_of,
    is_undivided,
    line_of,
    matches_of,
    pairs_of,
    rows_of,
)
from siglip_ref.check.diagnosis.predict import EMBEDS, Context
from siglip_ref.check.engine.expected.convention import Convention, Unit
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen
from siglip_ref.ops.elementary import Array, sigmoid, softplus

Kind = Literal["positives", "negatives", "diagonal", "zeros"]


class Part(NamedTuple):
    """Of the block of one rank's images and another's texts. kind: its diagonal as positives, all other pairs as
    negatives, its diagonal as negatives, or all pairs as they are where the texts are zeros. rows: the rank whose rows
    its slopes are multiplied by, where those are not the block's own."""

    images: int
    texts: int
    kind: Kind
    rows: int = -1

    def owner(self, side: int) -> int:
        """Whose rows its gradient belongs to."""
        return self.texts if side else self.images

    @property
    def block(self) -> tuple[int, int]:
        """Whose images and whose texts."""
        return self.images, self.texts

    @property
    def usual(self) -> bool:
        """Whether SigLIP's loss has it, once."""
        return self.kind == "negatives" or self.kind == ("positives" if self.images == self.texts else "diagonal")


def parts_of(world: int) -> list[Part]:
    """All, each with its block's own rows."""
    kinds: tuple[Kind, ...] = ("positives", "negatives", "diagonal", "zeros")
    return [Part(i, j, kind) for i, j, kind in product(range(world), range(world), kinds)]


class Amount(NamedTuple):
    """What a part gives: rows to the images and to the texts, by whose rank it is; numbers to the three scalars.
    slopes: of its pairs, by similarity."""

    rows: tuple[Array, Array]
    slopes: Array
    scalars: Mapping[str, float]


@dataclass(frozen=True)
class Call:
    """One collective call: its inputs, what came of it, and in which way the parts are made that it may be made of.

    lost : what came in another shape, or is not finite
    """

    label: str
    context: Context
    seen: Mapping[str, Seen]
    lost: tuple[str, ...]
    way: Way = EXACT

    @property
    def probe(self) -> Probe:
        """Its inputs."""
        return self.context.probe

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pairs of each rank."""
        return self.context.sizes

    @property
    def scale(self) -> float:
        """As the function has it: of its logarithm, if that was given."""
        return float(self.probe.scale if self.context.convention.linear else np.exp(self.probe.log_scale))

    @property
    def world(self) -> int:
        """Ranks."""
        return len(self.sizes)

    @property
    def even(self) -> bool:
        """Whether all ranks have as many pairs."""
        return len(set(self.sizes)) == 1

    @cached_property
    def parts(self) -> Mapping[Part, Amount]:
        """What every part gives."""
        return Amounts(self.probe, self.context.convention, self.sizes, self.way, self.context.before)

    @cached_property
    def units(self) -> list[list[Unit]]:
        """Images and texts by rank, as the loss works on them, and what becomes of a gradient of unit rows there."""
        return units(self.probe, self.context.convention, self.sizes)

    def rows_of(self, side: int) -> tuple[list[Array], list[Array]]:
        """Of an embedding's gradient what came, and what is allowed, by rank."""
        one, ends = self.seen[EMBEDS[side]], np.cumsum(self.sizes)[:-1]
        allowed = np.broadcast_to(one.allowed, np.shape(one.exact))
        return np.split(np.asarray(one.got, np.float64), ends), np.split(allowed, ends)

    def share(self, side: int, holder: int, part: Part) -> Array:
        """What a part gives to one side, as it would be in the rows of a rank."""
        if part.rows < 0:
            rows = self.parts[part].rows[side]
        else:
            slopes = self.parts[part._replace(rows=-1)].slopes
            rows = (slopes.T if side else slopes) @ self.units[1 - side][part.rows].rows
        return rows if is_undivided(self.way, side, part.images != part.texts) else self.units[side][holder].back(rows)


def calls_of(seen: Sequence[Seen], contexts: Mapping[str, Context]) -> list[Call]:
    """All calls over ranks from which an embedding's gradient came."""
    by_label: dict[str, dict[str, Seen]] = {}
    lost: dict[str, list[str]] = {}
    for one in seen:
        if np.shape(one.got) == np.shape(one.exact) and np.isfinite(one.got).all():
            by_label.setdefault(one.probe, {})[one.name] = one
        else:
            lost.setdefault(one.probe, []).append(one.name)
    return [
        Call(label, contexts[label], tensors, tuple(lost.get(label, ())))
        for label, tensors in by_label.items()
        if label in contexts and len(contexts[label].sizes) > 1 and set(EMBEDS) & set(tensors)
    ]


def units(probe: Probe, convention: Convention, sizes: Sequence[int]) -> list[list[Unit]]:
    """Images and texts of each rank, as the loss works on them."""
    ends = np.cumsum(sizes)[:-1]
    sides = (np.split(np.asarray(rows, np.float64), ends) for rows in (probe.image_embed, probe.text_embed))
    return [[convention.unit(rows) for rows in side] for side in sides]


class Amounts(dict[Part, Amount]):
    """What every part gives, in gradients of unit rows, divided by B; computed, block by block, where it is asked for.
    before: the probe of the call before."""

    def __init__(
        self,
        probe: Probe,
        convention: Convention,
        sizes: tuple[int, ...],
        way: Way = EXACT,
        before: Probe | None = None,
    ) -> None:
        super().__init__()
        self._how = probe, convention, sizes, way
        self._now = [[unit.rows for unit in side] for side in units(probe, convention, sizes)]
        earlier = before if before is not None and way.kind == "earlier" else probe
        self._before = [[unit.rows for unit in side] for side in units(earlier, convention, sizes)]

    def __missing__(self, part: Part) -> Amount:
        probe, convention, sizes, way = self._how
        (images, texts), earlier, (i, j) = self._now, self._before, part.block
        scale = float(probe.scale if convention.linear else probe.log_scale)
        x, y = rows_of(way, (images[i], texts[j]), (earlier[0][i], earlier[1][j]), remote=i != j)
        line = line_of(way, scale, float(probe.bias), convention.linear, len(sizes), remote=i != j)
        turns = way.kind == "transposed" and concerns(way, i != j)
        counts = counts_of(way, sizes, i, j)
        similarity = x @ y.T
        logits = line.slope * similarity + line.offset
        own = matches_of(way, sizes, i, j)
        counted = np.zeros(own.shape, bool)
        counted[tuple(slice(end) for end in counts.rows)] = True
        counted &= pairs_of(way, own.shape, i != j)
        blank = np.full_like(logits, line.offset)
        slopes: dict[Kind, tuple[Array, Array]] = {
            "positives": (np.where(own, softplus(-logits), 0), np.where(own, -sigmoid(-logits), 0)),
            "negatives": (np.where(own, 0, softplus(logits)), np.where(own, 0, sigmoid(logits))),
            "diagonal": (np.where(own, softplus(logits), 0), np.where(own, sigmoid(logits), 0)),
            "zeros": (softplus(blank), sigmoid(blank)),
        }
        if (
            way.kind == "matching" or way.of in OFFSETS
        ) and i != j:  # what is usual of another rank's block are its matches, as such
            slopes["positives"], slopes["diagonal"] = slopes["diagonal"], slopes["positives"]
        for kind, (losses, slope) in slopes.items():
            zeros, more = kind == "zeros", counts.times * counts.padding if kind == "negatives" else 0
            met = np.where(counted, slope, 0) * counts.times
            linear, constant = float((met * similarity).sum()) * (not zeros), float(met.sum())
            constant += more * float(sigmoid(np.array(line.offset)))
            numbers = {
                "loss": counts.times * float(np.where(counted, losses, 0).sum())
                + more * float(softplus(np.array(line.offset))),
                convention.scale_name: line.by_scale[0] * linear + line.by_scale[1] * constant,
                "bias": line.by_bias[0] * linear + line.by_bias[1] * constant,
                "similarity": linear,
                "logit": line.slope * linear + line.offset * constant,
            }
            pairs = sum(sizes)
            # nothing goes to images, or to the scale, from zeros
            slopes_of = line.slope * met / pairs
            turned = slopes_of.T if turns and x.shape == y.shape else slopes_of
            rows = ((not zeros) * (turned @ y), turned.T @ x)
            self[Part(i, j, kind)] = Amount(rows, slopes_of, {name: n / pairs for name, n in numbers.items()})
        return self[part]
