"""Rows of zeros, where a loss that is given unit rows asks for unit rows, or makes them so once more.

Such a loss is right: a row of zeros has no direction, and is nothing that it was written for. It is known by what it
does with rows of twice the length: it refuses them, or its value stays. One that takes rows as they are has no excuse.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.check.call.frameworks import Outcome
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.tolerance import SAFETY

if TYPE_CHECKING:
    from siglip_ref.check.loss.subject import ComparedLoss, LossSubject

REFUSES = "fn refuses rows that are not unit: at rows of zeros nothing was judged"
NORMALISES = (
    "fn gives the same value for rows of twice the length, so it does not take rows as they are; one of zeros has no "
    "direction: nothing was judged there"
)


def excuse(subject: "LossSubject", compared: "ComparedLoss") -> None:
    """Forget the calls at probes with rows of zeros that this loss need not be right at; the reason stands in
    `left_out`."""
    if compared.convention.embeddings != "unit":
        return
    wrong = {row.probe for row in compared.wrong}
    suspect = {one.label: one.probe for one in compared.refused}
    suspect |= {label: one.probe for label, one in compared.plain.items() if label in wrong}
    labels = [label for label, probe in suspect.items() if _has_zero_rows(probe)]
    reason = _reason(subject, compared) if labels else ""
    for label in labels if reason else ():
        compared.plain.pop(label, None)
        compared.left_out.append(f"{label}: {reason}")
    if reason:
        compared.refused = [one for one in compared.refused if one.label not in labels]
        compared.details = [row for row in compared.details if row.probe not in labels]


def _has_zero_rows(probe: Probe) -> bool:
    return any(bool((rows == 0).all(-1).any()) for rows in (probe.image_embed, probe.text_embed))


def _reason(subject: "LossSubject", compared: "ComparedLoss") -> str:
    """Why a row of zeros is beyond this loss; empty if it is not. Each side is tried alone."""
    one = next((one for one in compared.plain.values() if not _has_zero_rows(one.probe)), None)
    if one is None:
        return ""
    for side in ("image_embed", "text_embed"):
        longer = replace(one.probe, **{side: 2 * getattr(one.probe, side)})
        found = subject.call(longer, compared.convention, f"{one.probe.name}, {side} of twice the length")
        if not isinstance(found, Outcome):
            return "" if found.memory else REFUSES
        with np.errstate(invalid="ignore"):
            moved = np.abs(found.loss - one.outcome.loss)
        if moved <= SAFETY * one.right.noise["loss"]:  # no more than rounding
            return NORMALISES
    return ""
