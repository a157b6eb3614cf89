"""check_model names the catalogue's mistakes in a SiglipModel; what stands in none is placed, worked out or unknown."""

import pytest
import torch
from model_mistakes import (
    FORWARD,
    after,
    attend,
    attention_with,
    exact,
    factor,
    first_end,
    layers,
    pooled_with,
)
from model_mistakes_backward import MISTAKES
from models import hugging_face
from torch import nn

import siglip_ref as sr

# right under another convention, which says the same
CONVENTIONS = {
    "quickgelu-vs-gelu": "text_gelu='quick'",
    "causal-mask-wrong": "text_mask='causal'",
    "eos-pooling-argmax": "text_pooling='argmax'",
    "pool-first-token": "text_pooling='first'",
}


def report_of(make, dtype="float32"):
    model = hugging_face()
    make(model)
    return sr.check_model(model, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.sampled(16)
def test_every_mistake_is_named(name, dtype):
    report = report_of(MISTAKES[name], dtype)
    assert not report.passed
    first = next(finding for finding in report.findings if finding.id != "layernorm-eps")  # told by the settings
    if name in CONVENTIONS:
        assert first.id == "convention"
        assert CONVENTIONS[name] in first.evidence
    else:
        assert {finding.id for finding in report.findings} <= {name, "layernorm-eps"}
        assert first.id == name


def test_mistakes_in_several_places_are_named_one_by_one():
    def make(model):
        exact(model)
        attention_with("image", scale=1.0)(model)
        pooled_with(first_end)(model)

    report = report_of(make)
    named = {finding.id: finding.evidence for finding in report.findings}
    assert set(named) == {"gelu-tanh-vs-erf", "attention-scale-missing", "eos-pooling-first-eos"}
    assert "text/block01/+mlp" in named["gelu-tanh-vs-erf"]
    assert "image/block00/+attn, image/block01/+attn" in named["attention-scale-missing"]
    assert "all 3 of them" in report.findings[0].evidence


def scale_and_heads(model):
    attention_with("text", scale=1.0, head_size_first=True)(model)


def eps_and_erf(model):
    layers(model, "text")[1].layer_norm2.eps = 1e-5
    exact(model)


def pooling_and_norm(model):
    FORWARD["map-head-no-residual"](model)
    model.vision_model.head.layernorm.eps = 1e-12


TOGETHER = {
    scale_and_heads: {"attention-scale-missing", "head-split"},
    eps_and_erf: {"layernorm-eps-1e-5", "gelu-tanh-vs-erf"},
    pooling_and_norm: {"map-head-no-residual", "layernorm-eps-1e-12"},
}


@pytest.mark.parametrize("make", TOGETHER, ids=lambda make: make.__name__)
def test_two_mistakes_in_one_stage_are_named_both(make):
    report = report_of(make)
    assert {finding.id for finding in report.findings} - {"layernorm-eps"} == TOGETHER[make]


# --- in no catalogue


def half_value(model):
    after(layers(model, "image")[1].self_attn.v_proj, lambda x: x / 2)


def no_fc2_bias(model):
    fc2 = layers(model, "text")[0].mlp.fc2
    fc2.forward = lambda x: nn.functional.linear(x, fc2.weight)


def one_head_off(model):
    attention = layers(model, "text")[1].self_attn
    after(attention.v_proj, lambda x: torch.cat([x[..., :6], 0 * x[..., 6:]], -1))


def relu(model):
    layers(model, "image")[0].mlp.activation_fn = nn.ReLU()


def softmax_over_queries(model):
    attention = layers(model, "image")[0].self_attn

    def forward(hidden_states, **_):
        q, k, v = (
            p(hidden_states).unflatten(-1, (2, -1)).transpose(1, 2)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = (q @ k.transpose(-1, -2) * attention.scale).softmax(-2) @ v
        return attention.out_proj(mixed.transpose(1, 2).flatten(2)), None

    attention.forward = forward


def scale_a_little_off(model):
    attention = layers(model, "text")[0].self_attn
    attention.forward = lambda hidden_states, **_: attend(attention, hidden_states, scale=0.9 * attention.scale)


def positions_from_the_end(model):
    table = model.text_model.embeddings.position_embedding
    forward = table.forward
    table.forward = lambda ids: forward(8 - ids)


def clipped_stream(model):
    after(layers(model, "text")[1], lambda x: x.clamp(-0.02, 0.02))


def gradient_of_one_kernel(model):
    out = layers(model, "image")[1].self_attn.out_proj
    out.forward = lambda x: nn.functional.linear(x, factor(1.5)(out.weight), out.bias)


def gradient_of_a_block(model):
    after(layers(model, "text")[0], factor(0.7))


WORKED_OUT = {
    half_value: "image/block01/+attn",
    no_fc2_bias: "text/block00/+mlp",
    relu: "image/block00/+mlp",
    softmax_over_queries: "image/block00/+attn",
    scale_a_little_off: "text/block00/+attn",
}
UNKNOWN = {
    one_head_off: "text/block01/+attn",
    clipped_stream: "text/block01/+mlp",
    gradient_of_one_kernel: "image/block01/attn/out/kernel",
    gradient_of_a_block: "text/block00/mlp/out/bias",
}


def test_positions_in_another_order_are_told():
    (finding,) = report_of(positions_from_the_end).findings
    assert (finding.id, finding.tensor) == ("derived", "text/stem")
    assert finding.evidence.endswith(
        "every value of text/stem is right where position is read in another order: reversed"
    )


@pytest.mark.parametrize("make", WORKED_OUT | UNKNOWN, ids=lambda make: make.__name__)
@pytest.mark.sampled(3)
def test_what_is_in_no_catalogue_is_placed_and_worked_out_or_unknown(make):
    report = report_of(make)
    assert not report.passed
    told = ("derived", WORKED_OUT[make]) if make in WORKED_OUT else ("unknown", UNKNOWN[make])
    assert [(finding.id, finding.tensor) for finding in report.findings] == [told]
