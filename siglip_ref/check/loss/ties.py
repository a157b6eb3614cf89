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
_LABELS = ("positives", "negatives")
_ALIKE = 1e-3  # factors that are one


def tie_finding(seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention) -> Finding | None:
    """The finding, if one factor at logits of 0, or one of positives and one of negatives, explains all that is wrong.

    Parameters
    ----------
    seen : every tensor of the plain calls, right ones too; probes : by label
    """
    wrong = [one for one in seen if is_wrong(one)]
    parts = {label: _parts(probes[label], convention) for label in {one.probe for one in wrong}}
    if not wrong or any(one.name == "loss" for one in wrong) or not all(np.any(p["bias"][1:]) for p in parts.values()):
        return None
    deviation = np.concatenate([np.ravel(one.got - parts[one.probe][one.name][0]) for one in wrong])
    columns = [np.concatenate([np.ravel(parts[one.probe][one.name][k]) for one in wrong]) for k in (1, 2)]
    found = np.linalg.lstsq(np.stack(columns, -1), deviation, rcond=1e-9)[0]
    made = {
        (label, name): others + found[0] * own + found[1] * rest
        for label, p in parts.items()
        for name, (others, own, rest) in p.items()
    }
    near = NEAR * max(1.0, np.abs(found).max())
    if not all(distance(one, made[one.probe, one.name]) <= near for one in wrong):
        return None
    names = ", ".join(dict.fromkeys(one.name for one in wrong))
    factors = [(factor, label) for factor, of, label in zip(found, columns, _LABELS, strict=True) if of.any()]
    times = [f"{round(factor, 3) + 0.0:.4g} times the right one of {label}" for factor, label in factors]
    if np.ptp([factor for factor, _ in factors]) < _ALIKE:
        times = [f"{factors[0][0]:.4g} times the right one"]
    mistake = CATALOGUE[TIE]
    evidence = f"{mistake.text}: there it is {', '.join(times)}; explains all that is wrong of {names}"
    return Finding(TIE, names, "", evidence, mistake.repair)


def _parts(probe: Probe, convention: Convention) -> dict[str, tuple[Array, Array, Array]]:
    """Of each tensor what comes of pairs whose logit is not 0, and what of positives and negatives whose logit is."""
    n = numbers_of(probe, convention)
    own, tied = np.eye(len(n.images), dtype=bool), n.scale * (n.images @ n.texts.T) + n.bias == 0
    others, positives, negatives = (
        given_at(partial(weighted_loss, positive=1.0 * (own & kind), negative=1.0 * (~own & kind)), probe, convention)
        for kind in (~tied, tied & own, tied & ~own)
    )
    return {name: (others[name], positives[name], negatives[name]) for name in others}
