"""What is said of wrong models: a mistake once, a repair that fits the check, no form that changes nothing."""

from types import SimpleNamespace

import numpy as np

import siglip_ref as sr
from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.engine.edits import Fitted
from siglip_ref.check.model.diagnosis.mistakes import _each_once
from siglip_ref.check.model.diagnosis.rounding import find_roundings
from siglip_ref.check.model.placed import Placed
from siglip_ref.check.model.probe import model_probe
from siglip_ref.check.model.reference import reference
from siglip_ref.mistakes import CATALOGUE, find
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.elementary import subtree
from siglip_ref.report.edits import same_here


def test_a_mistake_found_alone_and_beside_another_is_made_once():
    eps, gelu = find("layernorm-eps-1e-5"), find("gelu-tanh-vs-erf")
    made = [Placed(eps, frozenset("a"), frozenset("a")), Placed(eps, frozenset("b")), Placed(gelu, frozenset("b"))]
    assert _each_once(made) == (Placed(eps, frozenset("ab"), frozenset("a")), Placed(gelu, frozenset("b")))


def test_what_a_check_of_a_loss_may_be_told_is_not_said_of_a_model():
    for mistake in CATALOGUE.values():
        assert "check_loss(" not in mistake.change
    mean = find("sum-vs-mean-vs-b2")
    assert mean.repair == mean.change + '; if you want the mean over all pairs: check_loss(fn, reduction="mean")'


def test_an_axis_exchanged_with_itself_is_no_other_form():
    def now(text):
        return (SimpleNamespace(now=text),)

    fitted = Fitted(now("x"), (now("x.swapaxes(1, 1)"), now("x.swapaxes(-1, -1)"), now("y.swapaxes(1, 2)")))
    assert same_here(fitted) == "; the same here: y.swapaxes(1, 2)"


def test_attention_as_one_in_few_bits_is_told():
    cfg = sr.config("tiny")
    probe = model_probe(cfg, 4, "float64")
    shown = dict(reference(probe, cfg, cfg.conventions, np.float64).activations)
    weights = subtree(probe.params, "image/block00")
    x = shown["image/stem"]
    normed = SPECIFICATION.layer_norm.forward(x, weights["norm1/gamma"], weights["norm1/beta"], 1e-6)[0]

    def short(values):
        return round_to(values, FORMATS["bfloat16"])

    def heads(name):
        y = normed @ weights[f"attn/{name}/kernel"] + weights[f"attn/{name}/bias"]
        return short(y.reshape(*y.shape[:2], cfg.image.heads, -1).swapaxes(1, 2))

    scores = heads("q") @ heads("k").swapaxes(-1, -2) / np.sqrt(cfg.image.width // cfg.image.heads)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = short(short(weight) @ heads("v") / weight.sum(-1, keepdims=True))
    joined = mixed.swapaxes(1, 2).reshape(x.shape)
    stage = "image/block00/+attn"
    shown[stage] = x + joined @ weights["attn/out/kernel"] + weights["attn/out/bias"]
    (found,) = find_roundings(stage, shown, probe, cfg, cfg.conventions, "float64")
    assert str(found).startswith("the inputs and output of attention itself") and found.formats == ("bfloat16",)
    assert found.left < 1e-3
