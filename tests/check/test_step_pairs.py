"""Two mistakes beside each other, of which one may be small: neither alone is told as all that is wrong."""

from dataclasses import replace

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.model.optim import State, adamw_step, cosine, kernels

RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.1, max_norm=1.0)


def schedule(k):
    return float(cosine(k, 20, 4))


def early(k):
    return schedule(k + 1)


def taking(rule, times):
    """An update by another rule and another schedule than the declared ones."""

    def update(params, grads, held):
        k, inner = held or (0, State())
        moved, inner = adamw_step(params, grads, inner, rule, np.float64(times(k)))
        return moved, (k + 1, inner)

    return update


def by_hand(params, grads, held):
    """Without bias corrections, and with eps inside the root."""
    k, first, second = held or (0, {n: 0 * g for n, g in grads.items()}, {n: 0 * g for n, g in grads.items()})
    first = {n: RULE.beta1 * first[n] + (1 - RULE.beta1) * g for n, g in grads.items()}
    second = {n: RULE.beta2 * second[n] + (1 - RULE.beta2) * g * g for n, g in grads.items()}
    decay = {n: RULE.decay * kernels(n) * p for n, p in params.items()}
    moved = {n: p - RULE.lr * (first[n] / np.sqrt(second[n] + RULE.eps) + decay[n]) for n, p in params.items()}
    return moved, (k + 1, first, second)


def tables(name):
    return kernels(name) or name.endswith(("/token", "/probe", "/position"))


def in_images(rate):
    return lambda name: rate if name.startswith("image/") else 1.0


EARLY, DECAY, BETA2, CLIP, RATE = "schedule", "decay", "beta2", "clip", "image tower"
PAIRS = {
    "tables that decay": (replace(RULE, decays=tables), early, {EARLY, DECAY}),
    "tables that decay a little": (replace(RULE, decay=1e-3, decays=tables), early, {EARLY, DECAY}),
    "a decay that is hardly another": (replace(RULE, decay=0.101), early, {EARLY, DECAY}),
    "a clip that is hardly another": (replace(RULE, max_norm=0.998), early, {EARLY, CLIP}),
    "a rate that is hardly another": (replace(RULE, rates=in_images(1.001)), early, {EARLY, RATE}),
    "a tower that stands still and a clip": (replace(RULE, rates=in_images(0.0), max_norm=0.99), schedule, {CLIP}),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_neither_of_two_is_told_as_all(pair):
    """What is told for certain names both, or is told with a reserve."""
    rule, times, both = PAIRS[pair]
    declared = replace(RULE, decay=rule.decay if pair.endswith("a little") else RULE.decay)
    report = sr.check_step(taking(rule, times), declared, schedule=schedule, dtype="float32", framework="numpy")
    assert report.verdict == "FAIL"
    certain = [one.evidence for one in report.findings if one.kind == "mistake" and "measured" not in one.evidence]
    words = " ".join(certain)
    assert not certain or all(word in words for word in both), report.findings
    assert "100%" not in words


SLOW = replace(RULE, rates=in_images(0.1))
TOLD = {
    "a slow tower and another beta": (
        taking(replace(SLOW, beta2=0.999), schedule), RULE,
        ["0.1 times the learning rate in the image tower", "1 - beta2 is 0.02 times as large"],
    ),
    "a slow tower and a schedule that is late": (
        taking(SLOW, lambda k: schedule(k - 1) if k else 0.0), RULE,
        ["0.1 times the learning rate in the image tower", "schedule(k - 1)"],
    ),
    "nothing corrected and eps inside": (
        by_hand, replace(RULE, max_norm=None), ["no bias corrections", "eps within the root, before"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_both_are_told(case):
    update, declared, words = TOLD[case]
    times = schedule if update is not by_hand else None
    report = sr.check_step(update, declared, schedule=times, dtype="float32", framework="numpy")
    assert [one.kind for one in report.findings] == ["mistake"]
    assert all(word in report.findings[0].evidence for word in words), report.findings
