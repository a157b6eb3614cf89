"""check_step measures: tensors that never move, or move some number of times as far, are told with the number."""

import pytest
import torch
from models import TINY, hugging_face

import siglip_ref as sr

RULE = sr.AdamW(lr=1e-3, beta2=0.95, decay=0.0, max_norm=1.0)
ABSENT, GROUP = "parameters-not-in-optimiser", "lr-of-a-group"


def report_of(rates, prepare=lambda model: None):
    """A step whose optimiser gives each parameter rates(name) times lr; None: does not know it."""
    model = hugging_face(TINY)
    prepare(model)
    named = [(rates(name), p) for name, p in model.named_parameters()]
    groups = [
        {"params": [p for own, p in named if own == rate], "lr": rate * RULE.lr}
        for rate in {rate for rate, _ in named if rate is not None}
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)

    def step(images, tokens):
        model.zero_grad()
        model(pixel_values=images, input_ids=tokens, return_loss=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return sr.check_step(step, RULE, model)


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
    assert "tensors move 0.65 times as far: another learning rate in their group" in report.findings[0].evidence


@pytest.mark.parametrize("last", [3.0, None])
def test_several_groups_are_told_apart(last):
    report = report_of(lambda name: 0.5 if "text" in name else last if "logit_" in name else 1.0)
    assert [finding.id for finding in report.findings] == [GROUP, ABSENT if last is None else GROUP], report
    assert "move 0.5 times" in report.findings[0].evidence
    assert ("never move" if last is None else "3 times as far") in report.findings[1].evidence


def test_one_rate_for_everything_is_another_setting():
    report = report_of(lambda name: 0.5)
    assert report.verdict == "OTHER CONVENTION" and "lr=0.0005" in report.findings[0].evidence
