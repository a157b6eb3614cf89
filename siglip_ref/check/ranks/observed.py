"""One call of a distributed loss as one process would see it: what its ranks brought back, put together as declared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from siglip_ref.check.call.frameworks import ARGUMENTS, Outcome
from siglip_ref.check.diagnosis.predict import EMBEDS, odd_one
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.ranks.world import RankOutcome, Split
from siglip_ref.ops.elementary import Array

Reduce = Literal["mean", "sum", "none"]
Value = Literal["local", "global"]
Way = tuple[Reduce, Value]

REDUCE = {
    "mean": "gradients are averaged over ranks afterwards: an embedding shard's is W times its global one before that",
    "sum": "gradients are added over ranks afterwards: an embedding shard's is its global one",
    "none": "gradients are final: a shard's is its global one, scale and bias are the same on every rank",
}
VALUE = {"local": "a rank returns its part, as its gradients are", "global": "every rank returns the whole loss"}


def ways_of(reduce: Reduce, value: Value, others: Sequence[Reduce]) -> list[Way]:
    """The declared way of reducing and returning first, then what differs least from it."""
    values: tuple[Value, Value] = (value, "global" if value == "local" else "local")
    reduces = [reduce, *(way for way in others if way != reduce)]
    return [(way, told) for told in values for way in reduces]


@dataclass(frozen=True)
class Observed:
    """What the ranks of one call brought back, and the probe they were given. asked: inputs whose gradients are;
    before: the probe of the call before it with shards of the same sizes."""

    probe: Probe
    split: Split
    ranks: Sequence[RankOutcome]
    asked: Sequence[str] = ARGUMENTS
    before: Probe | None = None

    def together(self, reduce: Reduce, value: Value) -> Outcome:
        """The loss, each shard's gradient from its owner, scale and bias reduced as declared."""
        world = len(self.ranks)
        losses = np.array([float(rank.loss) for rank in self.ranks])
        # local values: W / B times the local sum where gradients are averaged, else 1 / B times
        loss = _scalar(losses, "none" if value == "global" else "mean" if reduce == "mean" else "sum")
        factor = 1 / world if reduce == "mean" else 1.0
        gradients: dict[str, Array | None] = {}
        for name in self.asked:
            parts = [part for part in (rank.gradients[name] for rank in self.ranks) if part is not None]
            if len(parts) < world:
                gradients[name] = None
            elif self.misshapen(name):  # even where all of them together have as many rows as there should be
                gradients[name] = np.full(self.probe.shape if name in EMBEDS else (), np.nan)
            elif name in EMBEDS:
                gradients[name] = factor * np.concatenate(parts)
            else:
                gradients[name] = _scalar(np.array([float(part.reshape(())) for part in parts]), reduce)
        return Outcome(np.array(loss), gradients)

    def misshapen(self, name: str) -> str:
        """Which rank's gradient has another shape than what it belongs to, in words; "" if none has."""
        for rank, outcome in enumerate(self.ranks):
            part = outcome.gradients.get(name)
            if part is None:
                continue
            rows = (self.split.sizes[rank], self.probe.shape[1])
            expected = rows if name in EMBEDS else ()
            if part.shape != expected and (name in EMBEDS or part.size != 1):
                return f"rank {rank}'s has shape {part.shape}, expected {expected}"
        return ""


def _scalar(parts: Array, reduce: Reduce) -> Array:
    if reduce == "none":
        return odd_one(parts)
    return np.array(parts.mean() if reduce == "mean" else parts.sum())
