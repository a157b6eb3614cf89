"""What a PASS is worth: which mistakes of the catalogue this very run would have seen, and to which it was blind.

Every mistake is made in the reference, at the probes and within the tolerances of the run. One that would not have been
seen is held against what float64 could have seen: what stays below that changes nothing here, and counts nowhere.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.compare import Row
from siglip_ref.check.frameworks import Outcome, Setting
from siglip_ref.check.mistakes import CATALOGUE, Mistake, executable
from siglip_ref.check.noise import FLOAT64
from siglip_ref.check.predict import in_the_loss, predict_loss
from siglip_ref.check.probes import Probe
from siglip_ref.check.report import Sight
from siglip_ref.check.tolerance import SAFETY
from siglip_ref.check.truth import Convention, Truth
from siglip_ref.ops.elementary import Array

Effect = Callable[[Mistake, str], Iterable[tuple[Array, Array, Array]]]
BESIDE_A_LOSS = ("mistakes between processes", "optimiser steps", "towers")


def sight(mistakes: Iterable[Mistake], dtype: str, effect: Effect, not_checked: Sequence[str]) -> Sight:
    """Count what would have been seen.

    Parameters
    ----------
    mistakes : those that this kind of check is there to see
    dtype : in which the run was judged
    effect : (mistake, dtype) -> for each tensor: what the mistake makes of it, what is right, how far off is allowed
    not_checked : what this kind of check does not look at, in words
    """
    finer = FLOAT64 * FORMATS["float32"].unit / FORMATS[dtype].unit if dtype != "float64" else 1.0
    concerned, blind = 0, []
    for mistake in mistakes:
        if _shows(effect(mistake, dtype), 1.0):
            concerned += 1
        elif dtype != "float64" and _shows(effect(mistake, "float64"), finer):
            concerned += 1
            blind.append(mistake.id)
    return Sight(concerned - len(blind), concerned, tuple(blind), dtype, tuple(not_checked))


def loss_sight(
    outcomes: Mapping[str, tuple[Probe, Outcome, Truth]],
    details: Sequence[Row],
    convention: Convention,
    setting: Setting,
) -> Sight:
    """Of a loss in one process: outcomes by label, as judged in `details`."""
    judged = {(row.probe, row.name) for row in details if row.right or row.verdict == "FAIL"}

    def effect(mistake: Mistake, dtype: str) -> Iterable[tuple[Array, Array, Array]]:
        for label, (probe, _, right) in outcomes.items():
            if label != probe.label:  # a clause of the contract, at a probe that is here already
                continue
            for name, value in predict_loss([mistake], probe, convention, dtype).items():
                if (label, name) in judged:
                    yield value, right.exact[name], SAFETY * right.noise[name]

    return sight([m for m in executable("one vector") if in_the_loss(m)], setting.dtype, effect, BESIDE_A_LOSS)


def in_the_catalogue(seen: Sight) -> list[str]:
    """What it was blind to, with the catalogue's words."""
    return [f"{name}: {CATALOGUE[name].text}" for name in seen.blind]


def _shows(tensors: Iterable[tuple[Array, Array, Array]], share: float) -> bool:
    """Whether some tensor is further off than allowed; a mistake that cannot even run is seen."""
    with np.errstate(all="ignore"):
        try:
            return any(
                np.shape(value) != np.shape(right) or not np.all(np.abs(value - right) <= share * allowed)
                for value, right, allowed in tensors
            )
        except (ValueError, IndexError, FloatingPointError):
            return True
