"""A model that does not read its parameters through its modules is told so; whatever it keeps is left as it was."""

from collections.abc import Callable
from typing import Any

import pytest

import siglip_ref as sr
from siglip_ref.check.model.adapters.find import load_target

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
F = torch.nn.functional
Model = Any

FC1 = "vision_model.encoder.layers.0.mlp.fc1.weight"


def tiny() -> Model:
    torch.manual_seed(0)
    return load_target("hf:tiny")


def alias(model: Model) -> None:
    """As fused copies, flattened weights, and Keras on torch hold them: the parameter itself, by another name."""
    layer = model.vision_model.encoder.layers[0].mlp.fc1
    box = [layer.weight]
    layer.forward = lambda x: F.linear(x, box[0], layer.bias)


def frozen_alias(model: Model) -> None:
    alias(model)
    model.get_parameter(FC1).requires_grad_(False)


def copy(model: Model) -> None:
    layer = model.vision_model.encoder.layers[0].mlp.fc1
    made_before = layer.weight.detach().clone()
    layer.forward = lambda x: F.linear(x, made_before, layer.bias)


def fused(model: Model) -> None:
    """Made before, with a graph that leads back to the parameter."""
    layer = model.vision_model.encoder.layers[0].mlp.fc1
    made_before = torch.cat([layer.weight[:1], layer.weight[1:]])
    layer.forward = lambda x: F.linear(x, made_before, layer.bias)


@pytest.mark.parametrize("weights", ["probe", "own"])
@pytest.mark.parametrize("spoil", [alias, frozen_alias, copy, fused])
@pytest.mark.sampled(2, in_turn=True)
def test_a_parameter_that_is_not_read_is_named(spoil: Callable[[Model], None], weights: str) -> None:
    model = tiny()
    spoil(model)
    layer = model.get_parameter(FC1)
    layer.grad = torch.full_like(layer, 5.0)
    fired: list[int] = []
    if layer.requires_grad:  # as optimisers do that step within the backward pass
        layer.register_post_accumulate_grad_hook(lambda p: fired.append(1))
    before = layer.grad, layer.requires_grad, layer._version, layer.detach().clone()
    report = sr.check_model(model, weights=weights)
    assert report.verdict == "FAIL"
    finding, *_ = report.findings  # what else deviates comes after
    assert finding.evidence.startswith(f"{FC1}: your forward does not read this parameter through the module")
    assert finding.tensor == "image/block00/mlp/in/kernel"
    assert layer.grad is before[0] and bool((layer.grad == 5).all()) and layer.grad._version == 0 and not fired
    assert (layer.requires_grad, layer._version) == before[1:3] and torch.equal(layer, before[3])
    bias = model.get_parameter(FC1.replace("weight", "bias"))
    assert bias.grad is None


def test_several_are_named_together_and_a_detached_one_is_not_among_them() -> None:
    model = tiny()
    for layer in model.text_model.encoder.layers:
        box = [layer.mlp.fc2.bias]
        layer.mlp.fc2.forward = lambda x, layer=layer, box=box: F.linear(x, layer.mlp.fc2.weight, box[0])
    head = model.text_model.head
    head.forward = lambda x: F.linear(x, head.weight.detach(), head.bias)
    finding, *_ = sr.check_model(model).findings  # what else deviates comes after
    names = [f"text_model.encoder.layers.{k}.mlp.fc2.bias" for k in range(2)]
    assert finding.evidence.startswith(", ".join(names) + ": your forward does not read these parameters")


def test_a_bias_that_is_left_out_is_named_where_its_stage_deviates_and_an_alias_beside_it_by_itself() -> None:
    model = tiny()
    head, fc2 = model.text_model.head, model.vision_model.encoder.layers[1].mlp.fc2
    head.forward = lambda x: F.linear(x, head.weight)
    [finding] = sr.check_model(model).findings
    assert finding.tensor == "text/head"
    assert finding.evidence.startswith("worked out: out = rows @ kernel, where the specification has"), finding
    assert finding.repair == "there should be out = rows @ kernel + bias"
    box = [fc2.weight]
    fc2.forward = lambda x: F.linear(x, box[0], fc2.bias)
    first, *others = sr.check_model(model).findings
    assert first.evidence.startswith("vision_model.encoder.layers.1.mlp.fc2.weight: your forward does not read this")
    assert any("text_model.head.bias: nothing reads it" in one.evidence for one in others)


def test_a_scale_and_a_bias_of_the_logits_that_nothing_reads_are_flagged() -> None:
    model = tiny()
    forward = model.forward

    def without(**given: Any) -> Any:
        out = forward(**given)
        image, text = out.image_embeds, out.text_embeds
        logits = 10 * text @ image.T
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
        out.logits_per_text, out.logits_per_image = logits, logits.T
        out.loss = -F.logsigmoid(signs * logits).sum(-1).mean()
        return out

    model.forward = without
    report = sr.check_model(model)
    assert report.verdict == "FAIL"
    assert report.findings[0].id == "no-gradient-arrives" and report.findings[0].tensor == "d log_scale"


def test_a_detached_parameter_is_read() -> None:
    model = tiny()
    head = model.text_model.head
    head.forward = lambda x: F.linear(x, head.weight.detach(), head.bias)
    report = sr.check_model(model)
    assert report.verdict == "FAIL" and "does not read" not in report.findings[0].evidence


def test_what_a_model_counts_is_put_back() -> None:
    model = tiny()
    model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.number, model.kept = 0, []

    def count(*_: Any) -> None:
        model.calls += 1
        model.number += 1
        model.kept.append(model.number)

    model.vision_model.register_forward_hook(count)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    grads, buffer, version = {n: p.grad for n, p in model.named_parameters()}, model.calls, model.calls._version
    assert sr.check_model(model).passed
    assert model.calls is buffer and buffer == 0 and buffer._version == version
    assert model.number == 0 and model.kept == []
    assert all(p.grad is grads[n] and p.grad._version == 0 for n, p in model.named_parameters())


def test_weights_without_numbers_are_refused_and_those_made_for_inference_are_judged() -> None:
    with torch.device("meta"):
        model = tiny()
    for weights in ("probe", "own"):
        with pytest.raises(sr.UsageError, match="on the device meta"):
            sr.check_model(model, weights=weights)
    with torch.inference_mode():
        model = tiny()
    for weights in ("probe", "own"):
        assert sr.check_model(model, weights=weights).passed


def test_a_model_that_raises_is_refused_with_its_words() -> None:
    model = tiny()
    model.text_model.head.forward = lambda x: x.no_such_thing
    with pytest.raises(sr.UsageError, match="no_such_thing"):
        sr.check_model(model)


def test_a_default_device_without_numbers_does_not_matter() -> None:
    model = tiny()
    torch.set_default_device("meta")
    try:
        assert sr.check_model(model).passed
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


def scaled(factor: float) -> Model:
    model = tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1e30, "float32"), (50.0, "float16"), (1e-40, "float32"), (1e-30, "bfloat16")]
)
def test_own_weights_at_which_nothing_is_finite_are_not_judged(factor: float, dtype: str) -> None:
    model = scaled(factor)
    report = sr.check_model(model, dtype, "own")
    assert report.verdict == "NOT JUDGED" and not report.passed
    assert report.unjudged and report.unjudged.why == "out of range" and "loss" in report.unjudged.tensors
    model.text_model.head.register_forward_hook(lambda _, __, out: out * 0 + 7)  # a wrong model
    wrong = sr.check_model(model, dtype, "own")
    assert wrong.verdict in ("NOT JUDGED", "FAIL")
    unjudged = {row.name for row in report.rows if row.verdict == "out of range"}
    assert len(unjudged) > 80 and len(report.sight.seen) < 20  # nor would it have seen much


@pytest.mark.parametrize("log_scale", [200.0, 800.0])
def test_a_scale_that_overflows_is_not_judged(log_scale: float) -> None:
    model = tiny()
    model.logit_scale.data.fill_(log_scale)
    report = sr.check_model(model, weights="own")
    assert report.unjudged and report.unjudged.tensors == ("logits", "loss")


def test_right_float16_models_pass() -> None:
    for weights in ("probe", "own"):
        assert sr.check_model(tiny(), "float16", weights).passed
