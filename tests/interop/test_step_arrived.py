"""check_step on steps whose updates are rounded away: they fail by name, and whoever keeps what is lost passes."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from models import TINY, hugging_face

import siglip_ref as sr
from siglip_ref.model.optim import BigVision, State, adamw_step, big_vision_step

LOST = "update-lost-to-rounding"
RULE = sr.AdamW(lr=1e-5, beta2=0.95, decay=0.0, max_norm=1.0)


def nearest(x, kind):
    return torch.tensor(x, dtype=torch.float64).to(getattr(torch, kind)).double().numpy()


CHANCE = np.random.default_rng(0)


def by_chance(x, kind):
    """Stochastic rounding: to one of the two neighbours, so that the mean is right."""
    near = nearest(x, kind)
    bits = {"bfloat16": 8, "float16": 11}[kind]
    distance = np.ldexp(1.0, np.frexp(np.abs(near))[1] - bits)
    other = nearest(near + np.where(x > near, 1, -1) * distance, kind)
    chance = np.abs(x - near) / np.where(other == near, 1, np.abs(other - near))
    return np.where(CHANCE.random(np.shape(x)) < chance, other, near)


class Kept:
    """An optimiser in float64 whose parameters are rounded to `kind`; what is lost is dropped, or kept in some way."""

    def __init__(self, kind, rule=RULE, way="dropped", only=lambda name: True):
        self.kind, self.rule, self.way, self.only = kind, rule, way, only
        self.step = adamw_step if isinstance(rule, sr.AdamW) else big_vision_step

    def __call__(self, params, grads, state):
        moments, exact = state or (State(), {})
        params = {name: np.asarray(p, np.float64) for name, p in params.items()}
        before = {name: exact.get(name, p) for name, p in params.items()}
        after, moments = self.step(before, {n: np.asarray(g, np.float64) for n, g in grads.items()}, moments, self.rule)
        rounding = by_chance if self.way == "by chance" else nearest
        rounded = {name: rounding(p, self.kind) if self.only(name) else p for name, p in after.items()}
        # float32 copies in the optimiser, or a compensation beside each weight: the same numbers
        kept = dict(after) if self.way == "kept" else {}
        return rounded, (moments, kept)


def check(update, stored="float32"):
    """The parameters lie in arrays of this format."""
    form = ml_dtypes.bfloat16 if stored == "bfloat16" else stored

    def step(params, grads, state):
        moved, state = update(params, grads, state)
        return {name: np.asarray(p).astype(form) for name, p in moved.items()}, state

    return sr.check_step(step, update.rule, dtype=stored, framework="numpy")


def model_report(dtype, lr, change=lambda model: None):
    model = hugging_face(TINY).to(getattr(torch, dtype))
    change(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(images, tokens):
        optimizer.zero_grad()
        model(pixel_values=images, input_ids=tokens, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return sr.check_step(step, replace(RULE, lr=lr), model)


@pytest.mark.parametrize(("dtype", "lr"), [("bfloat16", 1e-5), ("bfloat16", 1e-6), ("float32", 1e-10)])
def test_a_model_whose_weights_stand_still_fails(dtype, lr):
    report = model_report(dtype, lr)
    assert report.verdict == "FAIL" and report.findings[0].id == LOST, report
    assert "of the numbers of" in report.findings[0].evidence and dtype in report.findings[0].evidence
    assert any("numbers stand still" in row.note for row in report.rows)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("bfloat16", RULE),
        ("float16", RULE),
        ("float16", replace(RULE, lr=1e-7)),
        ("bfloat16", BigVision(lr=1e-4, decay=0.0, smallest=3)),
    ],
    ids=["AdamW in bfloat16", "AdamW in float16", "AdamW in float16, slower", "BigVision"],
)
@pytest.mark.sampled(2)
def test_updates_that_are_rounded_away_fail_by_name(kind, rule):
    report = check(Kept(kind, rule))
    assert report.verdict == "FAIL" and report.findings[0].id == LOST, report
    assert kind in report.findings[0].evidence


def test_one_tensor_is_enough():
    report = check(Kept("bfloat16", only=lambda name: name == "image/patch/kernel"))
    assert report.verdict == "FAIL"
    assert (report.findings[0].id, report.findings[0].tensor) == (LOST, "image/patch/kernel"), report


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("lr", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("way", ["kept", "by chance"])
@pytest.mark.sampled(2, in_turn=True)
def test_who_keeps_what_is_lost_passes(kind, lr, way):
    """Also where the parameters lie in arrays of the narrow format itself; the same step that drops it fails."""
    rule = replace(RULE, lr=lr)
    report = check(Kept(kind, rule, way), kind)
    assert report.verdict == "PASS", report
    if lr < 1e-3:
        assert check(Kept(kind, rule), kind).findings[0].id == LOST


def test_frozen_tensors_that_are_declared_are_no_fault():
    frozen = replace(RULE, frozen=lambda name: name.startswith("image/"))

    def freeze(model):
        for p in model.vision_model.parameters():
            p.requires_grad_(False)

    model = hugging_face(TINY)
    freeze(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5, (0.9, 0.95), weight_decay=0)

    def step(images, tokens):
        optimizer.zero_grad()
        model(pixel_values=images, input_ids=tokens, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    assert sr.check_step(step, frozen, model).verdict == "PASS"
