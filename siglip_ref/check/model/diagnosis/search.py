"""A search for a model's mistakes: what it knows, what it finds, and how much of it can be afforded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.engine.findings import FINDING
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.rounding import Rounding
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.placed import Placed
from siglip_ref.check.model.probe import Probe
from siglip_ref.ops.elementary import Array

BUDGET = 2e10  # multiplications that a search may take: seconds


@dataclass(frozen=True)
class Search:
    """What a search knows: the model's run, the judge, and the reference's inputs in the precision of the search."""

    run: Run
    judge: Judge
    probe: Probe
    cfg: Config
    conventions: Conventions
    shown: Mapping[str, Array]


@dataclass(frozen=True)
class Found:
    """made : the mistakes and their stages; share : of everything that deviates, explained with them
    unexplained : stages that are wrong by themselves and stay so; left_out : what was too large to be tried
    rounded : stages in which one product was computed in fewer bits, each with the roundings that explain it alike"""

    made: tuple[Placed, ...]
    share: float
    unexplained: tuple[str, ...]
    left_out: str = ""
    rounded: Mapping[str, Sequence[Rounding]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Every value and every gradient is what these mistakes make of it."""
        return bool(self.made) and self.share >= FINDING


def affordable(search: Search, passes: float) -> int:
    """How often so many forward passes can be made."""
    cfg = search.cfg
    sizes = {"image": cfg.patches, "text": cfg.text_length}
    weights = {tower: sum(w.size for n, w in search.probe.params.items() if n.startswith(tower)) for tower in sizes}
    once = len(search.probe.images) * sum(tokens * weights[tower] for tower, tokens in sizes.items())
    return int(BUDGET / (passes * once))
