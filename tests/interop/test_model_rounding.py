"""One product of a tower in fewer bits: every product, format and side shows at ten times the noise, and is named."""

import pytest
import torch
from model_roundings import CASES, SIDES, make_rounded
from models import hugging_face, wide
from torch.nn import functional

import siglip_ref as sr
from siglip_ref.check.model.diagnosis.range import MOVED
from siglip_ref.report.words import WORDS

FORMATS = {"float32": ("bfloat16", "float16", "tf32"), "float64": ("float32",)}
BITS = {"bfloat16": 8, "float16": 11, "tf32": 11, "float32": 24}
ALL = [
    (dtype, name, stage, form, side)
    for dtype, forms in FORMATS.items()
    for name, stage in CASES
    for form in forms
    for side in SIDES
]
SAMPLE = ALL[::29]  # another product each time, formats, sides and stages in turn


def require_named(model, dtype, name, stage, form, side):
    """FAIL at ten times the noise, the stage first, and the words for it."""
    make_rounded(model, name, stage, form, side)
    report = sr.check_model(model, dtype)
    row = next(row for row in report.rows if row.name == stage and row.kind == "activation")
    assert report.verdict == "FAIL"
    assert row.times >= 10, row.times
    assert report.first_divergent.name == stage
    assert [finding.id for finding in report.findings] == ["product-low-precision"], report.findings
    finding = report.findings[0]
    assert finding.tensor == stage
    assert f"the {side} of {WORDS['products'].get(name, name)}, rounded to " in finding.evidence
    assert form in finding.evidence
    assert f"({BITS[form]} bits)" in finding.evidence
    if (name, side) in MOVED:
        assert f"rounded to {form} ({BITS[form]} bits)" in finding.evidence, finding.evidence


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in SAMPLE else pytest.mark.nightly) for case in ALL], ids="-".join
)
@pytest.mark.sampled(2, in_turn=True)
def test_one_product_in_fewer_bits_is_named(case):
    require_named(hugging_face(), *case)


@pytest.mark.parametrize("form", ["float16", "tf32"])
@pytest.mark.parametrize(("name", "stage"), [("k", "text/block00/+attn"), ("mlp/in", "image/pool")])
@pytest.mark.sampled(2, in_turn=True)
def test_float16_and_tf32_are_told_apart_by_their_range(name, stage, form):
    assert (name, "inputs") in MOVED
    require_named(hugging_face(), "float32", name, stage, form, "inputs")


@pytest.mark.nightly
def test_it_is_named_at_the_width_of_b16():
    require_named(hugging_face(wide()), "float32", "scores", "image/block01/+attn", "tf32", "inputs")


def test_the_same_in_several_layers_is_told_once():
    model = hugging_face()
    for layer in model.text_model.encoder.layers:
        for linear in (layer.mlp.fc1, layer.mlp.fc2):
            forward = linear.forward
            linear.forward = lambda x, forward=forward, own=linear: forward(x.bfloat16().to(x.dtype))
    report = sr.check_model(model, "float32")
    assert [finding.id for finding in report.findings] == ["product-low-precision"]
    assert "text/block00/+mlp, text/block01/+mlp" in report.findings[0].evidence


def test_layers_that_are_cast_as_they_are_with_their_biases_are_named():
    model = hugging_face()
    for layer in model.text_model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.forward = lambda x, own=layer: functional.linear(
                x.bfloat16(), own.weight.bfloat16(), own.bias.bfloat16()
            ).to(x.dtype)
    findings = sr.check_model(model, "float32").findings
    assert [finding.id for finding in findings] == ["product-low-precision"] * 2, findings
    assert "the inputs and output of every linear layer, rounded to bfloat16 (8 bits)" in findings[0].evidence
    assert "the inputs and output of the text head, rounded to bfloat16 (8 bits)" in findings[1].evidence


def test_bfloat16_rounding_is_nothing_in_a_model_of_bfloat16():
    model = hugging_face()
    make_rounded(model, "mlp/in", "text/block01/+mlp", "bfloat16", "inputs")
    assert sr.check_model(model, "bfloat16").passed
