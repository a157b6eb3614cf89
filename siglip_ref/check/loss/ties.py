"""Is a gradient wrong only where a logit is exactly 0, where the two branches of a softplus meet?"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from siglip_ref.check.diagnosis.predict import given_at
from siglip_ref.check.diagnosis.products import NEAR
from siglip_ref.check.diagnosis.roundings import numbers_of
from siglip_ref.check.engine.expected.convention import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.model.loss import weighted_loss
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding

TIE = "gradient-wrong-at-tie"


def tie_finding(seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention) -> Finding | None:
    """The finding, if one factor at all logits of 0 explains everything that is wrong.

    Parameters
    ----------
    seen : every tensor of the plain calls, right ones too; probes : by label
    """
    wrong = [one for one in seen if is_wrong(one)]
    parts = {label: _parts(probes[label], convention) for label in {one.probe for one in wrong}}
    if not wrong or any(one.name == "loss" for one in wrong) or not all(np.any(p["bias"][1]) for p in parts.values()):
        return None
    first = next((one for one in wrong if one.name == "bias"), None)
    if first is None:
        return None
    others, ties = parts[first.probe]["bias"]
    factor = float((first.got - others) / ties)
    made = {(label, name): o + factor * t for label, p in parts.items() for name, (o, t) in p.items()}
    if not all(distance(one, made[one.probe, one.name]) <= NEAR * max(1.0, abs(factor)) for one in wrong):
        return None
    names = ", ".join(dict.fromkeys(one.name for one in wrong))
    mistake = CATALOGUE[TIE]
    evidence = f"{mistake.text}: there it is {factor:.4g} times the right one; explains all that is wrong of {names}"
    return Finding(TIE, names, "", evidence, mistake.repair)


def _parts(probe: Probe, convention: Convention) -> dict[str, tuple[Array, Array]]:
    """Of each tensor what comes of pairs whose logit is not 0, and what of those whose logit is."""
    n = numbers_of(probe, convention)
    own, tied = np.eye(len(n.images), dtype=bool), n.scale * (n.images @ n.texts.T) + n.bias == 0
    others, ties = (
        given_at(partial(weighted_loss, positive=1.0 * (own & kind), negative=1.0 * (~own & kind)), probe, convention)
        for kind in (~tied, tied)
    )
    return {name: (others[name], ties[name]) for name in others}
