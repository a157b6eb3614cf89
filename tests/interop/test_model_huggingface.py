"""check_model on transformers' SiglipModel: right models pass, mistakes are named, the model stays as it was."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from models import DTYPES, TINY, hugging_face, require_pass, wide
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling

import siglip_ref as sr
from siglip_ref.check.model.adapters.find import load_target
from siglip_ref.check.model.adapters.huggingface import from_huggingface


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_passes(dtype):
    report = sr.check_model(hugging_face(), dtype)
    require_pass(report, dtype)
    assert not report.not_checked
    assert all(row.verdict in ("pass", "zero by structure") for row in report.rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sampled(2)
def test_the_width_of_b16_passes(dtype):
    require_pass(sr.check_model(hugging_face(wide()), dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES[::-1])
@pytest.mark.sampled(2)  # float16, float32
def test_own_weights_pass(dtype):
    require_pass(sr.check_model(hugging_face(), dtype, "own"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sampled(2, in_turn=True)
def test_eager_attention_passes_and_its_softmax_is_named(dtype):
    report = sr.check_model(hugging_face(attention="eager"), dtype)
    require_pass(report, dtype, limit=1e-5)
    assert ("attention softmax" in report.conventions) == (dtype == "float64")
    if dtype == "float64":
        assert max(row.error for row in report.rows if row.verdict == "pass") > 1e-9
        stems = [row for row in report.rows if row.name.endswith("/stem")]
        assert all(row.error < 1e-14 and row.tolerance < 1e-12 for row in stems)


@pytest.mark.parametrize("reentrant", [False, True])
def test_modules_that_are_computed_again_in_the_backward_pass(reentrant):
    model = hugging_face()
    for module in (model.vision_model.head, model.text_model.encoder.layers[1].mlp):
        module.forward = partial(checkpoint, module.forward, use_reentrant=reentrant)
    require_pass(sr.check_model(model), "float32")


def test_every_parameter_has_its_own_row_and_the_users_name():
    model = hugging_face()
    rows = {row.name: row for row in sr.check_model(model).rows if row.kind == "gradient"}
    assert set(rows) == set(sr.init(from_huggingface(model).config))
    assert {row.note.split(";")[0] for row in rows.values()} == {name for name, _ in model.named_parameters()}


# --- mistakes -----------------------------------------------------------------------------------------------------


class PoisonedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, d_out):
        d_out = d_out.clone()
        d_out[-1, -1, -1] = ctx.value
        return d_out, None


class FactorOnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, d_out):
        return d_out * ctx.value, None


def after(module, change):
    """Put `change` behind a module's forward."""
    forward = module.forward
    module.forward = lambda *args, **named: change(forward(*args, **named))


def eps_of_one_norm(model):
    model.vision_model.encoder.layers[1].layer_norm1.eps = 1e-5


def eps_of_a_tower(model):
    for module in model.text_model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def erf(model):
    for layer in model.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()
    model.vision_model.head.mlp.activation_fn = nn.GELU()


def erf_in_one_block(model):
    model.text_model.encoder.layers[1].mlp.activation_fn = nn.GELU()


def first_token(model):
    text = model.text_model

    def forward(input_ids, **named):
        x = text.final_layer_norm(text.encoder(text.embeddings(input_ids)).last_hidden_state)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=text.head(x[:, 0]))

    text.forward = forward


def no_patch_bias(model):
    patch = model.vision_model.embeddings.patch_embedding
    patch.forward = lambda x: nn.functional.conv2d(x, patch.weight, None, patch.stride)


def q_and_k_swapped(model):
    attention = model.vision_model.encoder.layers[0].self_attn
    q, k = attention.q_proj, attention.k_proj
    q_forward, k_forward = q.forward, k.forward
    q.forward, k.forward = k_forward, q_forward


def causal(model):
    for layer in model.text_model.encoder.layers:
        layer.self_attn.is_causal = True


def no_final_norm(model):
    model.vision_model.post_layernorm.forward = lambda x: x


def quarter_of_the_gradient(model):
    after(model.vision_model.encoder.layers[0], lambda x: FactorOnGradient.apply(x, 0.25))


def detached_tower(model):
    after(model.text_model.head, lambda x: x.detach())


def nan_in_a_value(model):
    after(model.text_model.encoder.layers[0].mlp, lambda x: x * float("nan"))


def nan_in_a_gradient(model):
    after(model.vision_model.post_layernorm, lambda x: PoisonedGradient.apply(x, float("nan")))


def inf_in_a_gradient(model):
    after(model.vision_model.post_layernorm, lambda x: PoisonedGradient.apply(x, float("inf")))


# mistake: where it begins, what a finding says
MISTAKES = {
    eps_of_one_norm: ("image/block01/+attn", "eps is 1e-05"),
    eps_of_a_tower: ("text/block00/+attn", "text_norm_eps=1e-05"),
    erf: ("image/block00/+mlp", "image_gelu='erf'"),
    erf_in_one_block: ("text/block01/+mlp", "text/block01/+attn is still right"),
    first_token: ("text/pool", "text_pooling='first'"),
    no_patch_bias: ("image/stem", "the input and image/stem"),
    q_and_k_swapped: ("image/block00/+attn", "image/stem is still right"),
    causal: ("text/block00/+attn", "text_mask='causal'"),
    no_final_norm: ("image/norm", "image/block01/+mlp is still right"),
    quarter_of_the_gradient: ("image/block00/mlp/out/bias", "every value is right"),
    detached_tower: ("text/head/bias", "every value is right"),
    nan_in_a_value: ("text/block00/+mlp", ""),
    nan_in_a_gradient: ("image/norm/beta", "every value is right"),
    inf_in_a_gradient: ("image/norm/beta", "every value is right"),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
@pytest.mark.sampled(4)
def test_mistakes_are_caught_and_placed(mistake, dtype):
    model = hugging_face()
    mistake(model)
    report = sr.check_model(model, dtype)
    place, words = MISTAKES[mistake]
    assert not report.passed
    assert report.first_divergent.name == place
    assert any(words in finding.evidence + finding.repair for finding in report.findings), report.findings


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "mistake",
    [mistake for mistake in MISTAKES if mistake not in (eps_of_one_norm, eps_of_a_tower, erf, erf_in_one_block)],
    ids=lambda mistake: mistake.__name__,
)
@pytest.mark.sampled(4)
def test_the_coarse_mistakes_are_caught_in_16_bits_too(mistake, dtype):
    model = hugging_face()
    mistake(model)
    assert not sr.check_model(model, dtype).passed


def test_nan_weights_of_the_model_itself_never_pass():
    model = hugging_face()
    model.text_model.encoder.layers[1].mlp.fc1.weight.data[3, 4] = float("nan")
    report = sr.check_model(model, weights="own")
    assert report.verdict == "FAIL"
    assert "text_model.encoder.layers.1.mlp.fc1.weight holds NaN" in report.findings[0].evidence
    assert sr.check_model(model, weights="probe").passed  # the probe brings its own weights


@pytest.mark.parametrize(
    ("changes", "argument"),
    [({"hidden_act": "gelu"}, "image_gelu='erf', text_gelu='erf'"), ({"layer_norm_eps": 1e-5}, "image_norm_eps=1e-05")],
)
def test_a_configuration_that_no_siglip_has_must_be_declared(changes, argument):
    model = hugging_face(**changes)
    report = sr.check_model(model)
    assert report.verdict == "OTHER CONVENTION"
    assert argument in report.findings[0].repair
    assert sr.check_model(model, conventions=from_huggingface(model).config.conventions).passed


# --- the model stays as it was --------------------------------------------------------------------------------------


def state(model):
    """Everything a check might change."""
    parameters = {
        name: (p.data_ptr(), p.dtype, p.requires_grad, p.detach().view(torch.uint8).clone(), p.grad, p._version)
        for name, p in model.named_parameters()
    }
    modules = {
        name: (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    }
    settings = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    return parameters, modules, settings


def same(before, after_it):
    for name, (pointer, dtype, requires, bits, grad, version) in before[0].items():
        now = after_it[0][name]
        assert (pointer, dtype, requires, version) == (now[0], now[1], now[2], now[5]), name
        assert torch.equal(bits, now[3]), name
        assert grad is now[4], name
    assert before[1:] == after_it[1:]


def used_model():
    """A model in the middle of a user's work: gradients, frozen parameters, mixed modes, own hooks."""
    model = hugging_face(attention_dropout=0.5)
    model.train()
    model.vision_model.eval()
    model.text_model.embeddings.requires_grad_(False)
    for place, p in enumerate(model.parameters()):
        if place % 2 and p.requires_grad:
            p.grad = torch.randn_like(p)
    model.text_model.head.register_forward_hook(lambda module, args, out: None)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", ["probe", "own"])
@pytest.mark.sampled(3)
def test_the_model_is_left_as_it_was(dtype, weights):
    model = used_model()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    before = state(model)
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert sr.check_model(model, dtype, weights).passed
    same(before, state(model))
    for p, grad in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)
    assert torch.equal(draws[0], torch.get_rng_state())
    assert np.array_equal(draws[1], np.random.get_state()[1])
    assert draws[2] == random.getstate()


def test_the_model_is_left_as_it_was_when_it_raises():
    model = used_model()
    clean = model.text_model.head.forward

    def fail(x):
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        raise RuntimeError("the user's model fails")

    model.text_model.head.forward = fail
    before = state(model)
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.raises(sr.UsageError, match="user's model fails"):
        sr.check_model(model)
    same(before, state(model))
    assert torch.equal(draws[0], torch.get_rng_state())
    assert np.array_equal(draws[1], np.random.get_state()[1])
    assert draws[2] == random.getstate()
    model.text_model.head.forward = clean
    assert sr.check_model(model).passed


def test_it_works_without_gradients_and_under_autocast():
    model = hugging_face()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert sr.check_model(model).passed
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        assert sr.check_model(model).passed


def test_a_model_loaded_in_bfloat16_is_checked_in_float32_too():
    model = hugging_face().to(torch.bfloat16)
    assert sr.check_model(model, "float32", "own").passed
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


# --- wrong use ------------------------------------------------------------------------------------------------------


def test_short_names():
    assert from_huggingface(load_target("hf:tiny")).config.image == TINY.image
    with pytest.raises(sr.UsageError, match="hf: and one of"):
        load_target("hf:huge")
    with pytest.raises(sr.UsageError, match="without text head"):
        load_target("hf:So400m/16-i18n-256")


def test_a_naflex_model_and_a_tower_by_name(tmp_path):
    """A short name, and directories as transformers saves them: of whole models, and of towers."""
    model = load_target("hf:tiny-naflex")
    assert type(model).__name__ == "Siglip2Model" and sr.check_model("hf:tiny-naflex").passed
    model.save_pretrained(tmp_path / "whole")
    model.vision_model.save_pretrained(tmp_path / "tower")
    whole, tower = (sr.check_model(str(tmp_path / name), weights="own") for name in ("whole", "tower"))
    assert whole.passed and "Siglip2Model" in whole.title, whole
    assert tower.passed and "tower alone" in tower.title, tower


def test_a_model_that_was_cut_or_extended_is_explained():
    model = hugging_face()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(sr.UsageError, match=r"left over: extra\.bias, extra\.weight"):
        sr.check_model(model)


def test_a_part_of_the_model_is_explained():
    with pytest.raises(sr.UsageError, match=r"got: +transformers"):
        sr.check_model(hugging_face().vision_model.encoder)


def test_a_missing_framework_is_explained_with_the_install_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers.models.siglip.modeling_siglip", None)
    with pytest.raises(sr.UsageError, match="pip install torch transformers"):
        load_target("hf:tiny")
