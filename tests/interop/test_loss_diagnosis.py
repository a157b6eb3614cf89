"""check_loss names mistakes as autograd shows them, and what is in no catalogue by what it is made of.

All of the catalogue, in torch: benchmarks/diagnosis.py, docs/generated/diagnosis.md.
"""

import math

import pytest
import torch
from torch.nn import functional

import siglip_ref as sr


def block(x, y, scale, bias):
    logits = scale * x @ y.T + bias
    return -functional.logsigmoid((2 * torch.eye(len(x)).to(x) - 1) * logits).sum() / len(x)


def low_precision(x, y, t, b):
    logits = (t.exp() * x @ y.T + b).bfloat16().to(x.dtype)
    return -functional.logsigmoid((2 * torch.eye(len(x)).to(x) - 1) * logits).sum() / len(x)


def length_detached(z):
    return z / z.norm(dim=-1, keepdim=True).detach()


UNIT = {
    "logits-low-precision": low_precision,
    "logit-scale-init": lambda x, y, t, b: block(x, y, 1 / 0.07 + 0 * t, b),
    "accum-loss-not-divided": lambda x, y, t, b: 4 * block(x, y, t.exp(), b),
}
RAW = {
    "normalise-backward-missing": lambda x, y, t, b: block(length_detached(x), length_detached(y), t.exp(), b),
    "one-side-not-normalised": lambda x, y, t, b: block(x, functional.normalize(y, dim=-1), t.exp(), b),
}


@pytest.mark.parametrize("name", UNIT | RAW)
def test_mistakes_are_named_as_autograd_shows_them(name):
    kind, fn = ("unit", UNIT[name]) if name in UNIT else ("raw", RAW[name])
    report = sr.check_loss(fn, "torch", scale="log", embeddings=kind)
    assert report.verdict == "FAIL"
    assert report.findings[0].id == name, report


def test_rows_that_are_left_as_they_are_follow_another_convention():
    report = sr.check_loss(lambda x, y, t, b: block(x, y, t.exp(), b), "torch", scale="log", embeddings="raw")
    assert report.verdict == "OTHER CONVENTION"


def mean_without_bias(x, y, factor):
    """Divided by the temperature or times the scale, no bias, mean over all pairs."""
    return functional.binary_cross_entropy_with_logits(factor * x @ y.T, torch.eye(len(x)).to(x))


def unit(x):
    return functional.normalize(x, dim=-1)


THREE = {"temperature-inverted", "logit-bias-dropped", "sum-vs-mean-vs-b2"}
OF_BOTH_SCALES = {
    "log, divided": (lambda x, y, t, b: mean_without_bias(x, y, 1 / t.exp()), "log", "unit", THREE),
    "log, divided, raw": (lambda x, y, t, b: mean_without_bias(unit(x), unit(y), 1 / t.exp()), "log", "raw", THREE),
    "linear, divided": (lambda x, y, t, b: mean_without_bias(x, y, 1 / t), "linear", "unit", THREE),
    "linear, divided, raw": (lambda x, y, t, b: mean_without_bias(unit(x), unit(y), 1 / t), "linear", "raw", THREE),
    "linear": (lambda x, y, t, b: mean_without_bias(x, y, t), "linear", "unit", THREE - {"temperature-inverted"}),
    "constant": (lambda x, y, t, b: block(x, y, 1 / 0.07, b), "log", "unit", {"logit-scale-init"}),
}


@pytest.mark.parametrize("name", OF_BOTH_SCALES)
def test_a_convention_is_not_chosen_for_being_less_wrong(name):
    fn, scale, rows, wanted = OF_BOTH_SCALES[name]
    report = sr.check_loss(fn, "torch")
    assert {f'scale="{scale}"', f'embeddings="{rows}"'} <= set(report.conventions), report
    assert {finding.id for finding in report.findings} == wanted, report


def test_what_has_no_name_is_described():
    report = sr.check_loss(lambda x, y, t, b: block(x, y, t.exp(), b) / math.log(2), "torch", scale="log")
    assert [finding.id for finding in report.findings] == ["unknown"]
    assert "1/log(2) times the right one" in report.findings[0].evidence
