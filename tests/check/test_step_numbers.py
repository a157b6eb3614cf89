"""Steps of which no form is known, only numbers: of gradients, moments, counts, updates, parameters."""

from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.step.check import steps_of_update
from siglip_ref.check.step.diagnosis.numbers import read_off
from siglip_ref.check.step.judge import Plan, judge
from siglip_ref.mistakes import Edit, reference
from siglip_ref.model.optim import State, adamw_step, big_vision_step, clip, kernels

RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)
BIG = sr.BigVision(lr=1e-3)
ROUNDOFF = 2.0**-24


def stepping(
    rule, before=lambda k, grads, params: grads, after=lambda k, new, old: new, state=lambda k, s: s, step=None
):
    """An update by the specification, handed other gradients or another state, and changed behind it."""
    step = step or (adamw_step if isinstance(rule, sr.AdamW) else big_vision_step)

    def update(params, grads, held):
        k, inner = held or (0, State())
        moved, inner = step(params, before(k, grads, params), state(k, inner), rule)
        return after(k, moved, params), (k + 1, inner)

    return update


def told(update, rule):
    plan = Plan(rule, lambda k: 1.0, 1, ROUNDOFF, None)
    taken = steps_of_update(update, plan, None, "float32", "numpy", lambda line: None).taken
    judged = judge(taken, plan)
    assert not judged.right
    found = read_off(taken, plan, judged)
    return found.evidence if found else ""


def times(factor):
    return lambda k, grads, params: {n: np.float32(factor(k, n, params)) * g for n, g in grads.items()}


def slots(kind, factor):
    return lambda k, s: State(s.steps, {n: np.float32(factor if n.startswith(kind) and k == 1 else 1) * v
                                        for n, v in s.slots.items()})  # fmt: skip


def on_the_towers(k, grads, params):
    """A clip of the decayed tensors by their own length; the others as they are."""
    return grads | clip({n: g for n, g in grads.items() if kernels(n)}, 1.0, 1e-6)


LOOSE = replace(RULE, max_norm=None)
CASES = {
    "half the second gradient": (
        LOOSE, stepping(LOOSE, times(lambda k, n, p: 1 / (1 + (k == 1)))), "0.5 at step 2 alone"
    ),
    "an extra decay": (
        RULE, stepping(RULE, after=lambda k, new, old: {n: np.float32(0.999) * v for n, v in new.items()}),
        "behind the update every parameter is multiplied by 0.999 at each step, in all tensors alike",
    ),
    "a first moment that is halved": (
        RULE, stepping(RULE, state=slots("first/", 0.5)), "beside beta1, by 0.5 at step 2"
    ),
    "a second moment that is halved": (
        RULE, stepping(RULE, state=slots("second/", 0.5)), "beside beta2, by 0.5 at step 2"
    ),
    "a count that lags": (
        RULE, stepping(RULE, state=lambda k, s: s._replace(steps=max(k - 1, 0))), "both bias corrections is 1, 1, 2"
    ),
    "an update of a part in the second step": (
        RULE,
        stepping(RULE, after=lambda k, new, old: {
            n: v if not n.startswith("text/") or k != 1 else old[n] + np.float32(0.7) * (v - old[n])
            for n, v in new.items()}),
        "the learning rate is multiplied by 0.7 at step 2 alone, in the text tower",
    ),
    "a clip of some": (
        LOOSE, stepping(LOOSE, on_the_towers),
        "in all kernels (15 of 45 tensors): as by a clip at 1 that counts only these",
    ),
    "updates relative to their tensors": (
        BIG,
        stepping(BIG, step=reference([Edit("model/optim.py", "(1 - momentum, p) * update",
                 "(1 - momentum, p) * np.sqrt(np.mean(p * p)) * update")]).optim.big_vision_step),
        "the root mean square of its numbers, of each tensor, at each step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_read_off(case):
    rule, update, said = CASES[case]
    assert said in told(update, rule)


def test_a_step_that_no_number_explains_is_not_told():
    rng = np.random.default_rng(0)
    update = stepping(RULE, after=lambda k, new, old: {
        n: np.float32(v + 1e-4 * rng.standard_normal(v.shape)) for n, v in new.items()})  # fmt: skip
    assert told(update, RULE) == ""
