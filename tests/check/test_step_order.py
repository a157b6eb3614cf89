"""Steps whose formulas are right and whose inputs are not: another step's gradients or schedule, other decays."""

from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.model.optim import State, adamw_step, cosine, kernels

RULE = sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0)


def schedule(k):
    return float(cosine(k, 40, 8))


def stepping(rule=RULE, at=lambda k: k, late=False, idle=False):
    """An update by the specification. at : which step's schedule it reads; late : with the gradients of the step
    before, of which the first has none: then it steps with zeros, or, idle, not at all."""

    def update(params, grads, state):
        k, inner, before = (0, State(), None) if state is None else state
        given = grads
        if late:
            given = before or {name: 0 * g for name, g in grads.items()}
            if idle and before is None:
                return params, (1, inner, grads)
        moved, inner = adamw_step(params, given, inner, rule, np.float64(schedule(at(k))))
        return moved, (k + 1, inner, grads)

    return update


def check(update, **how):
    return sr.check_step(update, RULE, schedule=schedule, dtype="float32", framework="numpy", **how)


def test_the_right_one_passes():
    assert check(stepping()).verdict == "PASS"


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (stepping(at=lambda k: k + 1), "the schedule is read one step ahead"),  # has an entry of the catalogue
        (stepping(at=lambda k: 4 * k + 3), ": schedule(4 k + 3)"),
        (stepping(at=lambda k: max(0, k - 1)), "the schedule of the step before"),
        (stepping(late=True), "with the gradients of the step before"),
        (stepping(late=True, idle=True), "with the gradients of the step before"),
    ],
)
def test_another_time_is_told(update, said):
    report = check(update)
    assert report.verdict == "FAIL" and len(report.findings) == 1
    assert said in report.findings[0].evidence


@pytest.mark.parametrize(
    ("decays", "said"),
    [
        (lambda name: kernels(name) or name in ("log_scale", "bias"), "what should not decay in log_scale and bias"),
        (lambda name: kernels(name) and not name.startswith("text/"), "no decay of what should in the text tower"),
    ],
)
def test_what_decays_is_told(decays, said):
    report = check(stepping(replace(RULE, decays=decays)))
    assert report.verdict == "FAIL" and len(report.findings) == 1
    assert said in report.findings[0].evidence and "is right with" in report.findings[0].evidence
