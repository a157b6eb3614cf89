"""Which convention a wrong loss speaks for: by its own behaviour, none being chosen for being less wrong.

Two mistakes may leave fewer tensors wrong, or a nearer loss, under another convention than the one that was meant.
"""

from collections.abc import Mapping

import numpy as np

from siglip_ref.check.call.frameworks import Outcome
from siglip_ref.check.engine.expected.expected import Convention, Truth, judge, tensors_of
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.tolerance import SAFETY
from siglip_ref.check.engine.seen import Seen

# Between the scales of about 2 and 10 that a loss is given where the convention is looked for, a loss that takes the
# scale itself changes a few times; one that exponentiates what it is given, thousands of times, up or down.
_EXPONENTIAL = 50.0


def speaks_for(outcomes: Mapping[str, Outcome], rights: Mapping[Convention, Truth], probe: Probe) -> Convention:
    """Of the conventions of `rights`, whose order decides between equals. outcomes : by kind of scale."""
    exponential = exponentiates(outcomes.get("log"), outcomes.get("linear"))

    def score(convention: Convention) -> tuple[bool, bool, int, bool, bool, float]:
        linear = convention.scale == "linear"
        against = exponential is not None and exponential == linear
        wrong, radial, gap = misfit(outcomes[convention.scale], rights[convention], convention, probe)
        return wrong > 0, against, wrong, radial, linear, gap

    return min(rights, key=score)


def exponentiates(log: Outcome | None, linear: Outcome | None) -> bool | None:
    """Whether the scale goes through an exponential, seen from what changes when fn is given a logarithm and then the
    scale itself; None where nothing does, or fn was not called with both."""
    if log is None or linear is None:
        return None
    pairs = [(log.loss, linear.loss)]
    for name, one in log.gradients.items():
        other = linear.gradients[name]
        if one is not None and other is not None and np.any(one):
            pairs.append((np.abs(one).max(), np.abs(other).max()))
    with np.errstate(all="ignore"):
        changes = np.array([np.abs(np.log(np.abs(other / one))) for one, other in pairs])
    if not changes.any():
        return None
    return not (changes <= np.log(_EXPONENTIAL)).all()  # NaN and infinity come of exponentials


def misfit(outcome: Outcome, right: Truth, convention: Convention, probe: Probe) -> tuple[int, bool, float]:
    """How badly a convention fits: wrong tensors; then, for a loss that is wrong under every convention, whether its
    gradients have the radial part that normalising takes away, and how far the loss is from what it should be."""
    off = {row.name: row.verdict == "FAIL" for row in judge(outcome, right, "")}
    wrong = sum(off.values())
    given = (("image_embed", probe.image_embed), ("text_embed", probe.text_embed))
    arrived = ((outcome.gradients.get(name), rows) for name, rows in given)
    gradient, rows = next(((d, rows) for d, rows in arrived if d is not None and np.any(d)), (None, None))
    with np.errstate(all="ignore"):
        gap = abs(np.log(outcome.loss / right.exact["loss"])) if off["loss"] else 0.0  # rounding chooses nothing
        if gradient is None or gradient.shape != probe.shape:
            return wrong, False, float(gap)
        radial = np.abs((gradient * rows).sum(-1)).max() / np.abs(gradient).max()
    return wrong, (radial < 0.05) != (convention.embeddings == "raw"), float(gap) if gap <= np.inf else np.inf


def seen_of(label: str, outcome: Outcome, right: Truth) -> list[Seen]:
    """The tensors of one call, but for those that overflow even with correct rounding."""
    return [
        Seen(label, name, np.zeros_like(exact) if got is None else got, exact, SAFETY * right.noise[name])
        for name, (got, exact) in tensors_of(outcome, right).items()
        if not right.overflows[name]
    ]
