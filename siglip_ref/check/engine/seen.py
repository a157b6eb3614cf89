"""The tensors that a diagnosis looks at: what came, what is right, how far a right one may lie off."""

from dataclasses import dataclass

import numpy as np

from siglip_ref.ops.elementary import Array


@dataclass(frozen=True)
class Seen:
    """One tensor of one probe: what came, what is right, how far a right one may lie off (absolute, broadcasts)."""

    probe: str
    name: str
    got: Array
    exact: Array
    allowed: Array


def is_wrong(tensor: Seen) -> bool:
    """NaN is wrong."""
    return not distance(tensor, tensor.exact) <= 1


def distance_from(tensor: Seen, made: Array) -> float:
    """As `distance`, from what a mistake makes of it: what is larger than it should be rounds by as much more."""
    exact, most = (float(np.max(np.abs(x), initial=0.0)) for x in (tensor.exact, made))
    relative = np.max(tensor.allowed, initial=0.0) < exact < np.inf  # else it is zero by structure
    grown = most / exact if relative else 1.0
    return distance(tensor, made) / (grown if 1 < grown < np.inf else 1.0)


def distance(tensor: Seen, to: Array, got: Array | None = None) -> float:
    """Largest deviation in units of what is allowed; NaN and infinity at the same places agree with each other.

    got : what is compared; None: what was seen
    """
    got, to = np.asarray(tensor.got if got is None else got, np.float64), np.asarray(to, np.float64)
    if got.shape != to.shape:
        return np.inf
    with np.errstate(all="ignore"):
        off = np.abs(got - to) / tensor.allowed
    off = np.where(~np.isfinite(got) & ~np.isfinite(to), 0.0, np.where(got == to, 0.0, off))
    return float(np.max(np.where(np.isnan(off), np.inf, off), initial=0.0))
