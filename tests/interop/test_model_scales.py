"""The last stage of real models at several scales and biases: clamps, limits and unstable forms inside a model."""

from types import SimpleNamespace

import pytest
import torch
from models import DTYPES, hugging_face, require_pass
from test_model_examples import example, quick_to_compile  # noqa: F401  # a fixture
from test_model_open_clip import build
from torch.nn import functional

import siglip_ref as sr


def hugging_face_with(last_stage):
    """A SiglipModel that ends in last_stage(image_embeds, text_embeds, logit_scale, logit_bias) -> loss, logits."""
    model = hugging_face()

    def forward(input_ids, pixel_values, return_loss=True, **_):
        image = functional.normalize(model.vision_model(pixel_values).pooler_output, dim=-1)
        text = functional.normalize(model.text_model(input_ids=input_ids).pooler_output, dim=-1)
        loss, logits = last_stage(image, text, model.logit_scale, model.logit_bias)
        return SimpleNamespace(loss=loss, image_embeds=image, text_embeds=text, logits_per_image=logits)

    model.forward = forward
    return model


def signed(logits):
    return (2 * torch.eye(len(logits), dtype=logits.dtype) - 1) * logits


def stable(logits):
    return -functional.logsigmoid(signed(logits)).sum() / len(logits)


def made_of(scale=torch.exp, bias=lambda b: b):
    """Logits of another scale and bias than the parameters'."""

    def last_stage(image, text, log_scale, b):
        logits = scale(log_scale) * image @ text.T + bias(b)
        return stable(logits), logits

    return last_stage


def loss_is(loss):
    def last_stage(image, text, log_scale, bias):
        logits = log_scale.exp() * image @ text.T + bias
        return loss(logits), logits

    return last_stage


def coarse(image, text, log_scale, bias):
    """The similarity of embeddings that are rounded to bfloat16."""
    image, text = (x.bfloat16().to(x.dtype) for x in (image, text))
    logits = log_scale.exp() * image @ text.T + bias
    return stable(logits), logits


def cross_entropy_by_hand(logits):
    y, p = torch.eye(len(logits), dtype=logits.dtype), torch.sigmoid(logits)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).sum() / len(logits)


class Limited(torch.autograd.Function):
    """The scale as it is, its gradient cut: what only gradients show, and only at large logits."""

    @staticmethod
    def forward(ctx, log_scale):
        return log_scale.clone()

    @staticmethod
    def backward(ctx, d_out):
        return d_out.clamp(-5, 5)


UNSTABLE = ("log-of-sigmoid", "log-one-plus-exp")
# mistake: its last stage, the ids that name it, a phrase of the report
WRONG = {
    "scale cut at 100": (made_of(lambda s: s.exp().clamp(max=100)), ("scale-clamped",), "right at own scale"),
    "log scale cut": (made_of(lambda s: s.clamp(max=4.6052).exp()), ("scale-clamped",), "released scale (112"),
    "scale at least 1": (made_of(lambda s: s.exp().clamp(min=1)), ("scale-clamped",), "right at own scale"),
    "log scale without its sign": (made_of(lambda s: s.abs().exp()), ("scale-clamped",), "right at own scale"),
    "scale at most 200": (made_of(lambda s: s.exp().clamp(max=200)), ("unknown",), "200 x similarity"),
    "exp twice": (made_of(lambda s: s.exp().exp()), ("derived",), "the loss is right, given these logits"),
    "embeddings in few bits": (coarse, ("derived",), "with embeddings rounded to bfloat16 before their product; "),
    "bias at least -10": (
        made_of(bias=lambda b: b.clamp(min=-10)),
        ("unknown",),
        "similarity -10, not 112 x similarity -16",
    ),
    "bias at most 0": (made_of(bias=lambda b: b.clamp(max=0)), ("unknown",), "similarity +0, not"),
    "bias never positive": (made_of(bias=lambda b: -b.abs()), ("unknown",), "image/embed and text/embed are right"),
    "log of sigmoid": (
        loss_is(lambda z: -torch.log(torch.sigmoid(signed(z))).sum() / len(z)),
        UNSTABLE,
        "large logits",
    ),
    "cross entropy by hand": (loss_is(cross_entropy_by_hand), (*UNSTABLE, "unknown"), "right at own scale"),
    "log of 1 + exp": (
        loss_is(lambda z: torch.log(1 + torch.exp(-signed(z))).sum() / len(z)),
        UNSTABLE,
        "large logits",
    ),
    "log(sigmoid + 1e-8)": (
        loss_is(lambda z: -torch.log(torch.sigmoid(signed(z)) + 1e-8).sum() / len(z)),
        (*UNSTABLE, "unknown"),
        "released scale",
    ),
    "logits cut at 50": (loss_is(lambda z: stable(z.clamp(-50, 50))), ("unknown",), "right at own scale"),
    "gradient of the scale cut": (
        lambda x, y, s, b: loss_is(stable)(x, y, Limited.apply(s), b),
        ("unknown",),
        "right at own scale",
    ),
}


NIGHTLY = [pytest.param(dtype, marks=pytest.mark.nightly) for dtype in ("float64", "bfloat16", "float16")]


@pytest.mark.parametrize("dtype", ["float32", *NIGHTLY])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.sampled(3)
def test_what_is_wrong_at_another_scale_fails(name, dtype):
    last_stage, ids, phrase = WRONG[name]
    report = sr.check_model(hugging_face_with(last_stage), dtype)
    assert report.verdict == "FAIL"
    if dtype == "float32":
        assert {finding.id for finding in report.findings} <= set(ids), report.findings
        assert phrase in report.findings[0].evidence, report.findings[0].evidence
    wrong = {row.probe for row in report.details if row.verdict == "FAIL"}
    assert wrong - {""}, "no row says at which scale"


@pytest.mark.parametrize(
    ("threshold", "dtype", "id"),
    [(5, "float32", "unknown"), (20, "float64", "softplus-threshold"), (20, "float32", None)],
)
def test_the_threshold_of_softplus_is_seen_where_it_matters(threshold, dtype, id):
    last_stage = loss_is(lambda z: functional.softplus(-signed(z), threshold=threshold).sum() / len(z))
    report = sr.check_model(hugging_face_with(last_stage), dtype)
    assert [finding.id for finding in report.findings] == ([id] if id else [])
    assert report.passed == (id is None)


def with_logits(logits):
    y = torch.eye(len(logits), dtype=logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(logits)


@pytest.mark.parametrize("dtype", DTYPES[::-1])
@pytest.mark.sampled(2)  # float16, float32
def test_other_right_forms_pass_at_every_scale(dtype):
    forms = [stable, with_logits, lambda z: functional.softplus(-signed(z), threshold=50).sum() / len(z)]
    for form in forms:
        report = sr.check_model(hugging_face_with(loss_is(form)), dtype)
        require_pass(report, dtype)
        assert {row.probe.split(" (")[0] for row in report.details} == {
            "",
            "released scale",
            "large logits",
            "small scale",
        }
    own = sr.check_model(hugging_face_with(loss_is(stable)), dtype, "own")
    assert own.passed, own


def test_a_tower_and_the_last_stage_are_named_both():
    model = hugging_face_with(made_of(lambda s: s.exp().clamp(max=100)))
    for layer in model.text_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    report = sr.check_model(model, "float32")
    assert {finding.id for finding in report.findings} == {"gelu-tanh-vs-erf", "scale-clamped"}
    report = sr.check_model(model, "float32", conventions=sr.preset("huggingface", text_gelu="erf"))
    assert [finding.id for finding in report.findings] == ["scale-clamped"]


def test_open_clip_and_jax_models_are_judged_at_every_scale():
    model = build()
    forward = model.forward

    def cut(*inputs):
        image, text, scale, bias = forward(*inputs)
        return image, text, scale.clamp(max=100), bias

    model.forward = cut
    module = example("check_jax_model", depth=1)
    exp, calls = module.jnp.exp, []

    def cut_in_jax(x):
        calls.append(x)
        return module.jnp.minimum(exp(x), 100)

    class Numpy:
        exp = staticmethod(cut_in_jax)

        def __getattr__(self, name):
            return getattr(jax_numpy, name)

    jax_numpy, module.jnp = module.jnp, Numpy()
    for wrong in (model, module.model()):
        report = sr.check_model(wrong, "float32")
        assert [finding.id for finding in report.findings] == ["scale-clamped"], report.findings
    assert len(calls) <= 2, "traced anew for each scale"
