"""Rows of zeros, where a loss that is given unit rows asks for unit rows, or makes them so once more.

Such a loss is right: a row of zeros has no direction, and is nothing that it was written for. It is known by what it
does with rows of twice the length: it refuses them, or its value stays. One that takes rows as they are has no excuse.
"""

from dataclasses import replace

import numpy as np

from siglip_ref.check.call.frameworks import Outcome
from siglip_ref.check.expected.expected import Convention, Truth
from siglip_ref.check.expected.probes import Probe
from siglip_ref.check.expected.tolerance import SAFETY
from siglip_ref.check.loss.calls import Run
from siglip_ref.report.compare import Row

REFUSES = "fn refuses rows that are not unit: at rows of zeros nothing was judged"
NORMALISES = (
    "fn gives the same value for rows of twice the length, so it does not take rows as they are; one of zeros has no "
    "direction: nothing was judged there"
)


def excused(run: Run, convention: Convention, details: list[Row], left_out: list[str]) -> list[Row]:
    """The rows of the plain calls, without those at probes with rows of zeros that this loss need not be right at; the
    reason stands in `left_out`, and the calls are forgotten."""
    if convention.embeddings != "unit":
        return details
    refused = {one.label: one.probe for one in run.refused}
    wrong = {row.probe for row in details if row.verdict == "FAIL"}
    suspect = refused | {label: probe for label, (probe, _, _) in run.outcomes.items() if label in wrong}
    labels = [label for label, probe in suspect.items() if _has_zero_rows(probe)]
    reason = _reason(run, convention) if labels else ""
    if not reason:
        return details
    for label in labels:
        run.outcomes.pop(label, None)
        left_out.append(f"{label}: {reason}")
    run.refused[:] = [one for one in run.refused if one.label not in labels]
    return [row for row in details if row.probe not in labels]


def _has_zero_rows(probe: Probe) -> bool:
    return any(bool((rows == 0).all(-1).any()) for rows in (probe.image_embed, probe.text_embed))


def _reason(run: Run, convention: Convention) -> str:
    """Why a row of zeros is beyond this loss; empty if it is not. Each side is tried alone."""
    ordinary = next((entry for entry in run.outcomes.values() if not _has_zero_rows(entry[0])), None)
    if ordinary is None:
        return ""
    probe, outcome, right = ordinary
    remembered = len(run.refused)
    for side in ("image_embed", "text_embed"):
        longer = replace(probe, **{side: 2 * getattr(probe, side)})
        found = run.call(longer, convention, "plain", f"{probe.name}, {side} of twice the length")
        if not isinstance(found, Outcome):
            del run.refused[remembered:]
            return "" if found.memory else REFUSES
        if _same_value(found, outcome, right):
            return NORMALISES
    return ""


def _same_value(one: Outcome, other: Outcome, right: Truth) -> bool:
    """Whether two losses differ by no more than rounding."""
    return bool(np.abs(one.loss - other.loss) <= SAFETY * right.noise["loss"])
