"""The contract of a differentiable loss: what hand-written backwards break while a plain backward is right."""

from dataclasses import dataclass
from typing import Any

from siglip_ref.check.call.frameworks import ALONE, Way
from siglip_ref.process.data import read_toml


@dataclass(frozen=True)
class Clause:
    """One way to call the loss. times: the gradients must be that many times the plain ones; layout: it changes where
    numbers lie in memory, and nothing else."""

    way: Way
    label: str
    id: str
    suspicion: str
    repair: str
    times: float = 1.0
    layout: bool = False


_ONLY = "where only some inputs require a gradient, backward returns gradients in a wrong place, or leaves one out"
_ONLY_REPAIR = "return one gradient per input of forward, in their order, whatever ctx.needs_input_grad says"

_WAYS: Any = read_toml(__file__, "clauses")
CLAUSES: dict[Way, Clause] = {
    **{way: Clause(way, **about) for way, about in _WAYS.items()},
    **{way: Clause(way, f"gradient of {way}", "partial-gradients", _ONLY, _ONLY_REPAIR) for way in ALONE},
}
