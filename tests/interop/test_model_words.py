"""What is said of models that cannot be judged, or are wrong: the cause is what was got, the repair can be done."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_mistakes import after, exact, first_end, layers, pooled_with
from models import hugging_face
from test_model_examples import example, quick_to_compile  # noqa: F401  # a fixture
from torch import nn

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.probe import model_probe


def refusal(model):
    with pytest.raises(sr.UsageError) as caught:
        sr.check_model(model)
    return caught.value


def of_peft(model):
    """What peft returns, by the only thing that is looked at: where its class comes from."""
    return type("PeftModel", (nn.Module,), {"__module__": "peft.peft_model"})()


def in_a_trainer(model):
    trainer = nn.Module()
    trainer.siglip = model
    return trainer


# what is given, phrases of the cause, of the repair
KINDS = {
    "DataParallel": (nn.DataParallel, "a wrapper", "give model.module"),
    "torch.compile": (torch.compile, "a wrapper", "give model._orig_mod"),
    "both": (lambda m: nn.DataParallel(torch.compile(m)), "a wrapper", "give model.module._orig_mod"),
    "trainer": (in_a_trainer, "a wrapper", "give model.siglip"),
    "peft": (of_peft, "adapters (LoRA)", "merge_and_unload()"),
    "class": (type, "the class, where a model of it is wanted", "sr.check_model(SiglipModel(...))"),
    "name": (lambda m: "google/siglip-base-patch16-224", "a str, where the model itself is wanted", "load it first"),
    "Linear": (lambda m: nn.Linear(2, 2), "", "write an Adapter"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_another_kind_is_told_what_it_is_and_what_to_do(kind):
    make, cause, repair = KINDS[kind]
    error = refusal(make(hugging_face()))
    assert cause in error.cause and repair in error.repair, error
    assert bool(cause) == bool(error.cause)


def test_nobody_is_sent_to_base_model_which_is_the_model_itself():
    encoder = hugging_face().vision_model.embeddings
    assert "base_model" not in str(refusal(encoder))


class Lora(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.Linear(linear.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def no_final_norm(model):
    model.vision_model.post_layernorm = nn.Identity()


def tied(model):
    first, second = layers(model, "image")
    second.mlp.fc1.weight = first.mlp.fc1.weight


def no_bias(model):
    layers(model, "text")[0].mlp.fc1.bias = None


def no_logit_bias(model):
    del model.logit_bias


def lora(model):
    attention = layers(model, "image")[0].self_attn
    attention.q_proj = Lora(attention.q_proj)


def lora_on_the_pooling_head(model):
    attention = model.vision_model.head.attention
    attention.out_proj = Lora(attention.out_proj)


def a_buffer(model):
    fc1 = layers(model, "text")[0].mlp.fc1
    weight = fc1.weight.detach()
    del fc1.weight
    fc1.register_buffer("weight", weight)


def an_extra_layer(model):
    model.extra = nn.Linear(2, 2)


LACKING = {
    no_final_norm: ("the model has no vision_model.post_layernorm: Identity stands in its place", "SigLIP has it"),
    tied: ("tied weights: vision_model.encoder.layers.1.mlp.fc1.weight and vision_model.encoder.layers.0", "its own"),
    no_bias: ("text_model.encoder.layers.0.mlp.fc1 has no bias", "bias=True"),
    no_logit_bias: ("the model has no logit_bias", "model.logit_bias = nn.Parameter(torch.tensor(-10.0))"),
    lora: ("adapters (LoRA) that are not merged", "merge_and_unload()"),
    lora_on_the_pooling_head: ("adapters (LoRA) that are not merged", "merge_and_unload()"),
    a_buffer: ("text_model.encoder.layers.0.mlp.fc1.weight is no parameter of the model", "nn.Parameter"),
    an_extra_layer: ("the model has more than a SigLIP has", "the SigLIP in it alone"),
}


@pytest.mark.parametrize("make", LACKING, ids=lambda make: make.__name__)
def test_what_a_model_lacks_is_named(make):
    model = hugging_face()
    make(model)
    error, (cause, repair) = refusal(model), LACKING[make]
    assert cause in error.cause and repair in error.repair, error
    assert "saved" not in str(error), "this is no file"


@pytest.mark.parametrize("make", [tied, no_logit_bias], ids=lambda make: make.__name__)
def test_the_repair_for_what_is_lacking_works(make):
    model = hugging_face()
    make(model)
    exec(refusal(model).repair.removeprefix("give each its own: "), {"model": model, "nn": nn, "torch": torch})
    assert sr.check_model(model).passed


def test_each_of_several_findings_carries_its_own_tensor():
    model = hugging_face()
    exact(model)
    pooled_with(first_end)(model)
    layers(model, "image")[1].layer_norm2.eps = 1e-5
    tensors = {one.id: one.tensor for one in sr.check_model(model).findings if one.id != "layernorm-eps"}
    assert tensors == {
        "layernorm-eps-1e-5": "image/block01/+mlp",
        "gelu-tanh-vs-erf": "text/block01/+mlp",
        "eos-pooling-first-eos": "text/pool",
    }


def test_unknown_logits_are_told_with_the_inputs_that_are_right():
    model = hugging_face()
    forward = model.forward

    def wrong(**given):
        out = forward(**given)
        out.logits_per_image = out.logits_per_image * 1.5
        return out

    model.forward = wrong
    [finding] = sr.check_model(model).findings
    assert finding.tensor == "logits"
    assert "image/embed and text/embed are right" in finding.evidence
    assert "the loss is not computed from these logits" in finding.evidence


def test_rectangular_images_without_their_size_are_asked_for_it():
    module = example("check_jax_model", depth=1)
    params = module.init()
    table = params["img"]["pos_embedding"]
    params["img"]["pos_embedding"] = module.jnp.concatenate([table, table], 1)
    with pytest.raises(sr.UsageError) as caught:
        BigVision(module.loss_fn, params)
    error = caught.value
    side = module.GRID * module.PATCH
    assert "image_size=" in error.expected and "rectangular" in error.cause
    assert f"image_size=({side}, {2 * side})" in error.repair
    cfg = BigVision(module.loss_fn, params, image_size=(side, 2 * side)).config
    assert cfg == replace(cfg, image_size=(side, 2 * side))


def test_of_a_tower_that_is_detached_it_is_told_where_its_gradient_ends():
    model = hugging_face()
    after(model.text_model.head, lambda x: x.detach())
    report = sr.check_model(model)
    [finding] = report.findings
    assert finding.id == "derived" and finding.tensor == "text/head/bias" and "0 * d_out" in finding.evidence
    assert "every value is right" in finding.evidence
    assert all(row.right for row in report.rows if row.kind != "gradient")


def test_further_runs_of_a_jax_model_are_not_traced_anew():
    module, traced = example("check_jax_model", depth=1), []
    model = BigVision(lambda *given: traced.append(1) or module.loss_fn(*given), module.init())
    probe = model_probe(model.config, 2, "float32")
    given = probe.params, probe.images, probe.tokens, "float32"
    model.runs([given[0]], *given[1:])
    first = len(traced)
    assert model.again(*given).loss == model.again(*given).loss
    assert len(traced) == first
    compiled = model._compiled
    model.run(*given)  # what draws random numbers while it is traced must show
    assert len(traced) > first
    assert model._compiled is compiled  # the same program is compiled once


def test_a_jax_model_that_draws_numbers_while_it_is_traced_is_another_program_in_each_run():
    module = example("check_jax_model", depth=1)

    def loss(*given):
        found, shown = module.loss_fn(*given)
        return found * np.random.uniform(), shown

    model = BigVision(loss, module.init())
    probe = model_probe(model.config, 2, "float32")
    one, other = (model.run(probe.params, probe.images, probe.tokens, "float32") for _ in range(2))
    assert one.loss != other.loss
