"""Rows of a batch that depend on each other: one of them, among the same rows and among others."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.stages.stage_search import off
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.report.data import Finding

_SURE = 4.0  # times what is allowed: two runs round


def of_rows(
    found: Sequence[Finding], run: Run, judge: Judge, probe: Probe, again: Callable[[Probe], Run]
) -> list[Finding]:
    """What was found; of what has no name, the first value whose row 0 is another when the other rows are."""
    nameless = {one.tensor.split("/")[0] for one in found if one.id == "unknown"} & {"image", "text"}
    if not nameless or probe.grids is not None:
        return list(found)
    images, tokens = np.array(probe.images), np.array(probe.tokens)
    images[1:], tokens[1:] = -images[1:], tokens[1:, ::-1]
    beside = again(replace(probe, images=images, tokens=tokens)).activations
    told = {}
    for tower in nameless:
        for name, value in run.activations.items():
            other = beside.get(name, np.zeros(0))
            if name.startswith(f"{tower}/") and np.shape(value) == np.shape(other):
                by = off(other[:1], value[:1], judge.of_value[name])
                if by > _SURE:
                    size = by * judge.of_value[name]
                    told[tower] = (
                        f"rows of the batch depend on each other from {name} on: row 0, with other rows beside it, "
                        f"moves by {size:.2g} of its largest number"
                    )
                    break
    return [
        replace(one, evidence=f"{one.evidence}; {told[tower]}", repair=f"a row gives the same alone; {one.repair}")
        if one.id == "unknown" and (tower := one.tensor.split("/")[0]) in told
        else one
        for one in found
    ]
