"""Steps with one or two mistakes that no single edit shows: state after a restart, what is frozen, another schedule."""

from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.step.diagnosis.forms import program
from siglip_ref.mistakes import Edit, reference
from siglip_ref.model.optim import State, adamw_step, cosine

RULE = sr.AdamW(lr=1e-3, decay=0.1, max_norm=1.0)
ADAFACTOR = sr.BigVision(lr=1e-3, max_norm=1.0)
FROZEN = replace(RULE, frozen=lambda name: name.startswith("image/"))
UNCLIPPED = replace(FROZEN, max_norm=None)


def schedule(k):
    return float(cosine(k, 6, 1))


def from_the_start(k):
    return float(min(1, k) * (1 + np.cos(np.pi * k / 6)) / 2)


def stepping(rule, edits=(), times=None, state=lambda k, state: state, still=()):
    """An update by the specification with edits in it. state : what a step is handed of the last one's; still :
    parameters without a gradient."""
    optim = reference(tuple(Edit("model/optim.py", old, new) for old, new in edits)).optim

    def update(params, grads, held):
        k, inner = held or (0, State())
        factor = np.float64(times(k)) if times else 1.0
        given = {name: g for name, g in grads.items() if name not in still}
        step = optim.adamw_step if isinstance(rule, sr.AdamW) else optim.big_vision_step
        moved, inner = step(params, given, state(k, inner), rule, factor)
        return moved, (k + 1, inner)

    return update


CASES = [
    (RULE, stepping(RULE, state=lambda k, s: s._replace(steps=0) if k == 2 else s), {}, 
     "count begins anew, at step 3"),
    (RULE, stepping(RULE, times=from_the_start), {"schedule": schedule}, "0, 0.933, 0.75 as the schedule's factors"),
    (RULE, stepping(RULE, still=("log_scale", "bias")), {}, "log_scale, bias without gradients"),
    (FROZEN, stepping(FROZEN, [("norm(kept) + eps", "norm(grads) + eps"), ("for name, g in kept.items()}",
     "for name, g in [*kept.items(), *((n, 0 * h) for n, h in grads.items() if frozen(n))]}")]), {},
     "frozen parameters that still decay"),
    (UNCLIPPED, stepping(UNCLIPPED, [("        return kept\n",
     "        return kept | {n: 0 * h for n, h in grads.items() if frozen(n)}\n")]), {},
     "frozen parameters that still decay"),
    (ADAFACTOR, stepping(ADAFACTOR, [("_narrow(1 - momentum, p) * u", "u"), ("_power(_wide(steps, p)",
     "_power(_wide(steps + 1, p)")]), {}, "adds up whole updates"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "update", "given", "said"), CASES)
def test_what_differs_is_told(rule, update, given, said):
    report = sr.check_step(update, rule, dtype="float32", framework="numpy", **given)
    assert report.verdict == "FAIL"
    assert [one.id for one in report.findings] == ["derived"] and said in report.findings[0].evidence


def test_what_fits_among_others_is_not_said_beside_a_name():
    rule = replace(RULE, max_norm=None)
    coupled = stepping(rule)

    def update(params, grads, held):
        decayed = {n: g + rule.decay * params[n] if rule.decays(n) else g for n, g in grads.items()}
        moved, held = coupled(params, decayed, held)
        return {n: p + rule.lr * rule.decay * params[n] if rule.decays(n) else p for n, p in moved.items()}, held

    report = sr.check_step(update, rule, dtype="float32", framework="numpy")
    assert [one.id for one in report.findings] == ["weight-decay-coupled"] and not report.computes


def accumulating(rule, these):
    """An update whose gradients are not zeroed in these tensors."""
    inner, left = stepping(rule), {}

    def update(params, grads, held):
        grads = {n: g + left.get(n, 0 * g) if these(n) else g for n, g in grads.items()}
        left.update({n: np.array(g) for n, g in grads.items()})
        return inner(params, grads, held)

    return update


def swapped(k, state):
    """At the third step the last norm's two tensors have each other's moments."""
    if k != 2:
        return state
    named = {"image/norm/gamma": "image/norm/beta", "image/norm/beta": "image/norm/gamma"}
    kinds = ("first", "second")
    return State(state.steps, dict(state.slots) | {
        f"{kind}/{n}": state.slots[f"{kind}/{m}"] for kind in kinds for n, m in named.items()})  # fmt: skip


LOOSE = replace(RULE, max_norm=None)
NEW = {
    "some tensors at one step": (
        LOOSE, stepping(LOOSE, state=lambda k, s: s._replace(slots={
            n: 0 * v if k == 1 and n.startswith("second/text/") else v for n, v in s.slots.items()})),
        "second moments of earlier steps reset to zero in the text tower (16 of 45 tensors), at step 2 alone",
    ),
    "gradients that add up in a group": (
        LOOSE, accumulating(LOOSE, lambda n: n.endswith("/kernel")), "add up over the steps in all kernels",
    ),
    "moments kept behind their correction": (
        LOOSE, stepping(LOOSE, [("= first, second", "= first / (1 - _power(beta1, steps)), second")]),
        "first moments kept behind their bias correction",
    ),
    "moments of other tensors": (
        LOOSE, stepping(LOOSE, state=swapped), "image/norm/gamma has those of image/norm/beta",
    ),
    "two, each in tensors of its own": (
        LOOSE, stepping(LOOSE, [("rate = rule.rates(name) * schedule\n        beta1",
                                 "rate = rule.rates(name) * (2 if name[0] == 't' else 1) * schedule\n        beta1"),
                                ("rule.decay if rule.dec", "rule.decay if name[0] != 'i' and rule.dec")]),
        "2 times the learning rate in the text tower",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NEW)
def test_a_form_in_some_tensors_at_some_steps_is_told(case):
    rule, update, said = NEW[case]
    report = sr.check_step(update, rule, dtype="float32", framework="numpy")
    assert report.verdict == "FAIL"
    assert [one.id for one in report.findings] == ["derived"] and said in report.findings[0].evidence


@pytest.mark.parametrize("rule", ["adamw", "big_vision"])
def test_no_form_is_taken_unasked(rule):
    spec, forms, _ = program(rule)
    params, grads = {"w/kernel": np.arange(1.0, 3)}, {"w/kernel": np.ones(2)}
    assert len({one.what for one in forms}) == len(forms)
    right = adamw_step(params, grads, State(), RULE)[0]
    assert np.array_equal(spec.optim.adamw_step(params, grads, State(), RULE)[0]["w/kernel"], right["w/kernel"])
