"""check_loss names mistakes as autograd shows them, and what is in no catalogue by what it is made of.

All of the catalogue, in torch: benchmarks/diagnosis.py, docs/generated/diagnosis.md.
"""

import math

import numpy as np
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
    assert [finding.id for finding in report.findings] == ["derived"]
    assert "multiplied by 1.4427/B, not 1/B" in report.findings[0].evidence
    assert report.findings[0].repair == "divide the loss by 1.4427"


def test_a_cause_of_the_catalogue_is_told_with_the_numbers_that_are_there():
    """Of a scale that is another constant, or cut elsewhere, nothing of 1/0.07 or of 100 is said; nor is it unknown."""
    ten = sr.check_loss(lambda x, y, t, b: block(x, y, 10.0, b), "torch", scale="log")
    assert [finding.id for finding in ten.findings] == ["no-gradient-arrives", "derived"], ten
    assert "multiplied by 10, not exp(log_scale)" in ten.findings[1].evidence
    cut = sr.check_loss(lambda x, y, t, b: block(x, y, t.exp().clamp(max=50), b), "torch", scale="log")
    assert [finding.id for finding in cut.findings] == ["scale-clamped"], cut
    assert "min(exp(log_scale), 50)" in cut.findings[0].evidence and "100" not in cut.findings[0].evidence
    fixed = sr.check_loss(lambda x, y, t, b: block(x, y, t.exp(), -10.0), "torch", scale="log")
    assert fixed.findings[-1].repair == "add the bias to the logits: it is unused"


@pytest.mark.parametrize(
    ("times", "story"),
    [(30, "as when the means of micro-batches are added up"), (2, "as when losses of image to text")],
)
def test_how_a_factor_came_about_is_not_seen_of_it(times, story):
    """Somebody may have written it."""
    (found,) = sr.check_loss(lambda x, y, t, b: times * block(x, y, t.exp(), b)).findings
    assert story in found.evidence and found.repair.endswith(f" by {times}"), found


def test_a_number_that_goes_with_the_batch_is_a_table_and_no_factor_is_its_repair():
    odd = sr.check_loss(lambda x, y, t, b: block(x, y, t.exp(), b) * len(x) / (len(x) + 5) ** 1.3, "torch", scale="log")
    assert "0.0796843 at B = 2" in odd.computes[0], odd.computes
    by_log = sr.check_loss(lambda x, y, t, b: block(x, y, t.exp(), b) / math.log(max(len(x), 2)), "torch", scale="log")
    assert by_log.findings[0].repair == "divide the sum over all pairs by len(image_embed)"


def logits(x, y, t, b):
    return t.exp() * x @ y.T + b


def labels(z):
    return 2 * torch.eye(len(z)).to(z) - 1


def weighted(weight):
    """Binary cross-entropy, whose mean is over all pairs, with positives that weigh so much."""

    def fn(x, y, t, b):
        z = logits(x, y, t, b)
        pos_weight = torch.tensor(float(weight(len(z)))).to(z)
        return functional.binary_cross_entropy_with_logits(z, torch.eye(len(z)).to(z), pos_weight=pos_weight)

    return fn


def clip(x, y, t, b):
    z, own = t.exp() * x @ y.T, torch.arange(len(x))
    return (functional.cross_entropy(z, own) + functional.cross_entropy(z.T, own)) / 2


def equal_captions(x, y, t, b):
    same = (y[:, None] == y).all(-1)
    return -functional.logsigmoid((2.0 * same - 1) * logits(x, y, t, b)).sum() / len(x)


def log_of(chance):
    return lambda x, y, t, b: -torch.log(chance(torch.sigmoid(labels(x @ y.T) * logits(x, y, t, b)))).sum() / len(x)


def both_chances(x, y, t, b):
    p, one = torch.sigmoid(logits(x, y, t, b)), torch.eye(len(x)).to(x)
    return -(one * torch.log(p + 1e-8) + (1 - one) * torch.log(1 - p + 1e-8)).sum() / len(x)


def three_faults(x, y, t, b):
    return -torch.log(torch.sigmoid(labels(x @ y.T) * (t.exp() * x @ y.T)) + 1e-8).mean()


WEIGHTED, DETACHED, MEAN = "positives-weighted", "no-gradient-arrives", "sum-vs-mean-vs-b2"
EXCHANGED = "scale-and-bias-exchanged"
NAMED = {
    "scale detached": (lambda x, y, t, b: block(x, y, t.detach().exp(), b), {DETACHED}, "d log_scale: no gradient"),
    "scale given as a number": (lambda x, y, t, b: block(x, y, math.exp(t.item()), b), {DETACHED}, "d log_scale: no"),
    "bias detached": (lambda x, y, t, b: block(x, y, t.exp(), b.detach()), {DETACHED}, "d bias: no gradient arrives"),
    "scale detached, linear": (lambda x, y, t, b: block(x, y, t.detach(), b), {DETACHED}, "d scale: no gradient"),
    "scale detached, no bias": (
        lambda x, y, t, b: block(x, y, t.detach().exp(), 0.0),
        {DETACHED, "logit-bias-dropped"},
        "d log_scale: no gradient arrives",
    ),
    "scale detached, mean": (
        lambda x, y, t, b: block(x, y, t.detach().exp(), b) / len(x),
        {DETACHED, MEAN},
        "d log_scale: no gradient arrives",
    ),
    "everything detached": (lambda x, y, t, b: block(x, y, t.exp(), b).detach(), {DETACHED}, "d text_embed, d log"),
    "pos_weight B - 1, mean": (weighted(lambda pairs: pairs - 1), {MEAN, WEIGHTED}, ""),
    "pos_weight 5, mean": (
        weighted(lambda pairs: 5),
        {WEIGHTED},
        "i = j with weight 5/B^2; negatives: i != j with weight 1/B^2",
    ),
    "mean of positives, mean of negatives": (
        lambda x, y, t, b: len(x) * weighted(lambda pairs: max(pairs - 1, 1))(x, y, t, b) / max(len(x) - 1, 1),
        {WEIGHTED},
        "negatives: i != j with weight 1/(B (B - 1))",
    ),
    "log(sigmoid + 1e-8)": (log_of(lambda p: p + 1e-8), {"log-of-sigmoid"}, "log(sigmoid(x) + 1e-8)"),
    "log(sigmoid + 1e-6)": (log_of(lambda p: p + 1e-6), {"log-of-sigmoid"}, "log(sigmoid(x) + 1e-6)"),
    "log(clamp(sigmoid))": (log_of(lambda p: p.clamp(min=1e-7)), {"log-of-sigmoid"}, "log(max(sigmoid(x), 1e-7))"),
    "log(p + eps), log(1 - p + eps)": (both_chances, {"log-of-sigmoid"}, "log(1 - p + 1e-8)"),
    "three at once": (three_faults, {"log-of-sigmoid", MEAN, "logit-bias-dropped"}, ""),
    "both directions, not divided": (
        lambda x, y, t, b: 2 * len(x) * block(x, y, t.exp(), b),
        {"both-directions-summed", "loss-not-divided"},
        "not divided by B",
    ),
    "scale and bias exchanged": (lambda x, y, t, b: block(x, y, b.exp(), t), {EXCHANGED}, "exchanged, loss and"),
    "exchanged, linear": (lambda x, y, t, b: block(x, y, b, t), {EXCHANGED}, "exchanged, loss and gradients are right"),
    "exchanged, raw": (lambda x, y, t, b: block(unit(x), unit(y), b.exp(), t), {EXCHANGED}, "exchanged, loss and"),
    "softmax": (clip, {"softmax-loss"}, "this is the softmax (CLIP) loss"),
    "softmax, linear": (lambda x, y, t, b: clip(x, y, t.log(), b), {"softmax-loss"}, "this is the softmax (CLIP) loss"),
    "softmax, raw": (lambda x, y, t, b: clip(unit(x), unit(y), t, b), {"softmax-loss"}, "this is the softmax (CLIP)"),
    "equal captions": (equal_captions, {"equal-captions-as-positives"}, "pairs whose captions are equal count"),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.sampled(3)
def test_forms_from_the_wild_are_named(name):
    fn, wanted, words = NAMED[name]
    report = sr.check_loss(fn, "torch")
    assert report.verdict == "FAIL"
    assert {finding.id for finding in report.findings} == wanted, report
    assert any(words in finding.evidence for finding in report.findings), report


def test_gradients_of_zeros_do_not_arrive_either():
    """As JAX's stop_gradient leaves them, or a backward by hand."""

    def fn(x, y, t, b):
        return sr.sigmoid_loss(x, y, t, b)._replace(d_log_scale=np.zeros(()))

    report = sr.check_loss(fn, "numpy")
    assert [finding.evidence for finding in report.findings] == ["d log_scale: no gradient arrives"]


@pytest.mark.parametrize("locked", ["image_embed", "text_embed"])
def test_where_one_gradient_does_not_arrive_the_other_speaks(locked):
    def smoothed(x, y, t, b):
        x, y = (x.detach(), y) if locked == "image_embed" else (x, y.detach())
        target = 0.8 * torch.eye(len(x)).to(x) + 0.1
        return functional.binary_cross_entropy_with_logits(t.exp() * x @ y.T + b, target, reduction="sum") / len(x)

    report = sr.check_loss(smoothed, "torch", "float32")
    said = str(report)
    assert report.verdict == "FAIL"
    assert 'embeddings="unit"' in report.conventions and "exchanged" not in said, said
    assert report.computes and f"d {locked}: no gradient arrives" in said, said
