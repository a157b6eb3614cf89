"""check_step measures: tensors that never move, or move some number of times as far, are told with the number."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from models import TINY, hugging_face

import siglip_ref as sr
from siglip_ref.model.optim import State, alike, big_vision_step

RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.0, max_norm=1.0)
ABSENT, GROUP = "parameters-not-in-optimiser", "lr-of-a-group"


def report_of(rates, prepare=lambda model: None, rule=RULE):
    """A step whose optimiser gives each parameter rates(name) times lr; None: does not know it."""
    model = hugging_face(TINY)
    prepare(model)
    named = [(rates(name), p) for name, p in model.named_parameters()]
    groups = [
        {"params": [p for own, p in named if own == rate], "lr": rate * RULE.lr}
        for rate in {rate for rate, _ in named if rate is not None}
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=rule.decay)

    def step(images, tokens):
        model.zero_grad()
        model(pixel_values=images, input_ids=tokens, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return sr.check_step(step, rule, model)


def test_what_the_optimiser_does_not_know_never_moves():
    report = report_of(lambda name: None if name.startswith("logit_") else 1.0)
    assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == [ABSENT], report
    assert "log_scale, bias never move: not given to the optimiser" in report.findings[0].evidence


def test_one_tensor_that_stands_still_is_enough():
    report = report_of(lambda name: None if name.endswith("head.probe") else 1.0)
    assert "image/pool/probe never moves: not given to the optimiser" in report.findings[0].evidence


def test_a_group_of_its_own_learning_rate_is_told_with_its_factor():
    early = ("layers.0.", "embeddings.")
    report = report_of(lambda name: 0.65 if any(part in name for part in early) else 1.0)
    assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == [GROUP], report
    evidence = report.findings[0].evidence
    assert "tensors move 0.65 times as far: another learning rate in their group" in evidence
    assert "image/block00/*" in evidence and "image/patch/*" in evidence and "text/token" in str(report.findings[0])
    assert evidence.count("image/block00") == 1
    assert "declare rates=lambda name: 0.65 if name.startswith(('image/" in report.findings[0].repair


@pytest.mark.parametrize("last", [3.0, None])
def test_several_groups_are_told_apart(last):
    report = report_of(lambda name: 0.5 if "text" in name else last if "logit_" in name else 1.0)
    assert [finding.id for finding in report.findings] == [GROUP, ABSENT if last is None else GROUP], report
    assert "move 0.5 times" in report.findings[0].evidence
    assert ("never move" if last is None else "3 times as far") in report.findings[1].evidence


def test_one_rate_for_everything_is_another_setting():
    report = report_of(lambda name: 0.5)
    assert report.verdict == "OTHER CONVENTION" and "lr=0.0005" in report.findings[0].evidence


def by_layer(name):
    """Of a model with two blocks a tower: each layer half as fast as the next."""
    return 0.25 if "embed" in name or "position" in name else 0.5 if "layers.0." in name or "block00" in name else 1.0


def ours(name):
    early = ("image/patch", "image/position", "text/token", "text/position")
    return 0.25 if name.startswith(early) else 0.5 if "/block00/" in name else 1.0


DECLARED = replace(RULE, decay=0.1, decays=lambda name: True, rates=ours)


def test_rates_by_layer_are_declared_by_the_rule():
    report = report_of(by_layer, rule=DECLARED)
    assert report.verdict == "PASS", report
    assert max(row.excess for row in report.rows) <= 0.5


def test_one_rate_for_all_where_layers_were_declared_is_told():
    report = report_of(lambda name: 1.0, rule=DECLARED)
    assert report.verdict == "OTHER CONVENTION" and "rates=alike" in report.findings[0].evidence, report


def test_a_layer_that_is_off_from_its_declared_rate_is_told():
    report = report_of(lambda name: 0.4 if "vision_model.encoder.layers.0." in name else by_layer(name), rule=DECLARED)
    assert [finding.id for finding in report.findings] == [GROUP], report
    assert "move 0.8 times as far" in report.findings[0].evidence and "image/block00/*" in report.findings[0].evidence


@pytest.mark.parametrize("moves", [False, True])
def test_rate_0_is_outside_the_optimiser_but_in_the_clip(moves):
    rule = replace(RULE, decay=0.0, rates=lambda name: 0.0 if name in ("log_scale", "bias") else 1.0)
    report = report_of(lambda name: None if name.startswith("logit_") and not moves else 1.0, rule=rule)
    assert report.verdict == ("OTHER CONVENTION" if moves else "PASS"), report


def test_rates_that_are_no_numbers_are_refused():
    with pytest.raises(sr.UsageError, match="rates: a factor on lr"):
        report_of(lambda name: 1.0, rule=replace(RULE, rates=lambda name: {"image/patch/kernel": 0.5}[name]))


def test_of_big_vision_a_rate_leaves_the_decay_as_it_is():
    """As its lr_mults do: optax.chain(scale(lr), masked(scale(mult)), add_decayed_weights, ...)."""
    half = partial(dict.get, {"image/patch/kernel": 0.5, "bias": 3.0})
    rule = sr.BigVision(decay=1e-2, rates=lambda name: half(name, 1.0))

    def step(params, grads, state, decays=None):
        plain, slower = replace(rule, rates=alike, decay=0.0), {}
        moved, state = big_vision_step(params, grads, state or State(), plain)
        for name, p in params.items():
            decay = (decays or half)(name, 1.0) if decays else 1.0
            slower[name] = p + half(name, 1.0) * (moved[name] - p) - rule.decay * rule.decays(name) * decay * p
        return slower, state

    assert sr.check_step(step, rule, framework="numpy").passed
    assert not sr.check_step(partial(step, decays=half), rule, framework="numpy").passed
