"""A distributed loss on real ranks: what each is given, what it brings back, and what a function may return there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from siglip_ref.check.call.frameworks import ARGUMENTS, Inputs, Setting
from siglip_ref.ops.elementary import Array


@dataclass(frozen=True)
class Split:
    """The inputs of one collective call: those of the global batch, and how many pairs each rank has of it."""

    label: str
    inputs: Inputs
    sizes: tuple[int, ...]

    def shard(self, rank: int) -> Inputs:
        """The rows of one rank; scale and bias belong to all."""
        start = sum(self.sizes[:rank])
        rows = slice(start, start + self.sizes[rank])
        return Inputs(self.inputs.image_embed[rows], self.inputs.text_embed[rows], self.inputs.scale, self.inputs.bias)


@dataclass(frozen=True)
class RankOutcome:
    """What one rank got: its loss, gradients by argument name (None: none arrived), its losses hop by hop if told.
    note: what else is to be said of its result, if anything."""

    loss: Array
    gradients: dict[str, Array | None]
    hops: Array | None = None
    note: str = ""


@dataclass(frozen=True)
class Task:
    """What is sent to every rank: the function (and what to call before it), in what it computes, the calls to make.
    axis: the name of JAX's axis; limit: seconds for all calls together."""

    fn: Callable[..., Any]
    setup: Callable[..., Any] | None
    setting: Setting
    splits: Sequence[Split]
    world_size: int
    backend: str
    limit: float
    axis: str = "ranks"


Outcomes = list[list[RankOutcome]]  # by split, by rank


@dataclass(frozen=True)
class Stop:
    """Why ranks did not bring everything back. failed: one of them raised or died; deadlock: all that have not returned
    wait for each other; time: they had not ended by then, and nothing says whether they would have."""

    kind: Literal["failed", "deadlock", "time"]
    rank: int
    evidence: str
    repair: str


@dataclass(frozen=True)
class Ran:
    """The calls from which all ranks returned, and why there are no more of them."""

    outcomes: Outcomes
    stop: Stop | None = None


def write(path: Path, outcome: RankOutcome) -> None:
    """To the file that `read` reads; it appears under its name when it is whole."""
    arrays = {name: g for name, g in outcome.gradients.items() if g is not None}
    arrays |= {"loss": outcome.loss, "note": np.array(outcome.note)}
    part = path.with_suffix(".part.npz")
    np.savez(part, **(arrays if outcome.hops is None else arrays | {"hops": outcome.hops}))
    part.replace(path)


def read(path: Path) -> RankOutcome:
    with np.load(path, allow_pickle=False) as file:
        return outcome_of({name: file[name] for name in file.files})


def outcome_of(arrays: Mapping[str, Array]) -> RankOutcome:
    """From arrays by name."""
    gradients = {name: arrays.get(name) for name in ARGUMENTS}
    return RankOutcome(arrays["loss"], gradients, arrays.get("hops"), str(arrays.get("note", "")))


def parts_of(result: Any) -> tuple[Any, Any, str]:
    """The loss, the losses hop by hop, and what is to be said of the rest.

    A loss may come alone, as (loss, losses hop by hop), or as has_aux=True wants it: (loss, anything else).
    """
    if not (isinstance(result, tuple) and len(result) == 2):
        return result, None, ""
    loss, other = result
    if other is None or isinstance(other, list | tuple) or getattr(other, "ndim", None) == 1:
        return loss, other, ""
    keys = f" ({', '.join(map(str, list(other)[:3]))}{', ...' * (len(other) > 3)})" if isinstance(other, dict) else ""
    return loss, None, f"beside the loss the function returns a {type(other).__name__}{keys}: not looked at"


def numbers(hops: Any) -> Array | None:
    """Losses hop by hop; None where the second result is something else."""
    try:
        return None if hops is None else np.array([float(hop) for hop in hops])
    except (TypeError, ValueError, RuntimeError):  # the last is Torch's, for a tensor of several numbers
        return None
