"""What the stated loss is at a probe's stated numbers, rounded once to float64: every digit the judge relies on.

The specification runs in double-double, on the rows as they are: nothing is assumed of their lengths. `proven` runs it
in balls instead, and stops at the same float64 numbers: tests hold the two to equal bits at every standard probe.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from siglip_ref.arithmetic.double_double import double_double
from siglip_ref.check.engine.expected.convention import Convention, as_given
from siglip_ref.check.engine.expected.labelled import labelled_loss
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.repeated import Repeated, repeated_loss, repeated_softmax
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.ops.elementary import Array

# Products of a probe, up to which its truth is always right to the last bit of float64: all of the standard ones.
PROVEN_UP_TO = 2**18


@lru_cache(maxsize=512)  # of a probe, which is made once, under each convention
def exact_loss(probe: Probe, convention: Convention, coarse: bool = False) -> LossAndGrads:
    """Loss and gradients by the numbers the function is given; by the scale itself, if that is what it is given.

    Parameters
    ----------
    coarse : nothing finer than float32 is held to it: float64 will do at shapes that a kernel's dims ask for
    """
    coarse = coarse and not isinstance(probe, Repeated) and probe.shape[0] ** 2 * probe.shape[1] > PROVEN_UP_TO
    arithmetic = np.asarray if coarse else double_double
    with np.errstate(all="ignore"):
        found = LossAndGrads(*(np.asarray(value, np.float64) for value in _loss_in(arithmetic, probe, convention)))
    for value in found:
        value.flags.writeable = False
    return found


def proven(probe: Probe, convention: Convention) -> LossAndGrads:
    """The same by balls: no other float64 number is nearer to the exact value. Needs python-flint.

    Raises
    ------
    UndecidedError : a value that is zero by structure, or lies in the middle between two float64 numbers

    Examples
    --------
    >>> from siglip_ref.check.engine.expected.probes import POINTS, loss_probes
    >>> probe = loss_probes(POINTS[:1], None, "float64", "float64")[0][0]
    >>> plain = Convention("log", "unit")
    >>> bool(proven(probe, plain).loss == exact_loss(probe, plain).loss)
    True
    """
    from siglip_ref.arithmetic.ball import balls, certify

    found = certify(lambda: _loss_in(balls, probe, convention)._asdict())
    return LossAndGrads(*(found[name].value for name in LossAndGrads._fields))


def _loss_in(arithmetic: Callable[[Any], Array], probe: Probe, convention: Convention) -> LossAndGrads:
    """arithmetic: makes its numbers of float64 ones."""
    asked = probe.scale if convention.linear else probe.log_scale
    scale, bias = (arithmetic(np.asarray(number)) for number in (asked, probe.bias))
    bias = bias if convention.objective.bias else 0 * bias
    if not isinstance(probe, Repeated):
        computed = partial(convention.objective.computed, captions=probe.text_embed)
        given = as_given(computed, convention.normalises, convention.linear)
        return given(arithmetic(probe.image_embed), arithmetic(probe.text_embed), scale, bias)
    if convention.objective.labelled:
        loss = labelled_loss(probe, convention.objective, arithmetic)
        given = as_given(loss, convention.normalises, convention.linear)
        found = given(arithmetic(probe.image_embed), arithmetic(probe.text_embed), scale, bias)
        return convention.objective.reduced(found, len(probe.order))
    whole = repeated_loss if convention.objective.kind == "sigmoid" else repeated_softmax
    given = as_given(partial(whole, order=probe.order), convention.normalises, convention.linear)
    images, texts = (arithmetic(rows) for rows in probe.rows)
    sums = given(images, texts, scale, bias)
    found = convention.objective.reduced(LossAndGrads(*(value / len(probe.order) for value in sums)), len(probe.order))
    rows = found.d_image_embed[probe.order], found.d_text_embed[probe.order]
    return found._replace(d_image_embed=rows[0], d_text_embed=rows[1])
