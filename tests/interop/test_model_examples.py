"""Models of one's own behind an Adapter: the worked examples for torch and JAX, in all dtypes, right and broken."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import DTYPES, require_pass

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision
from siglip_ref.check.model.adapters.torch_model import TorchModel

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """These models are small: compiling them takes all the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def example(name, depth=2):
    """An example as a module of its own, so that a test may break it."""
    spec = importlib.util.spec_from_file_location(f"broken_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.DEPTH = depth
    return module


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["check_torch_model", "check_jax_model"])
@pytest.mark.sampled(2)
def test_the_examples_pass(name, dtype):
    report = sr.check_model(example(name).model(), dtype)
    require_pass(report, dtype)
    assert all(row.verdict != "not checked" for row in report.rows)


def test_own_weights_pass_in_torch():
    require_pass(sr.check_model(example("check_torch_model").model(), "float32", "own"), "float32")


# --- JAX ------------------------------------------------------------------------------------------------------------


def test_blocks_stacked_on_a_leading_axis_and_a_params_level_are_understood():
    module = example("check_jax_model")
    params = module.init()

    def stacked(tree):
        blocks = [tree.pop(f"encoderblock_{i}") for i in range(module.DEPTH)]
        return tree | {"encoderblock": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

    def unstacked(tree):
        blocks = tree["encoderblock"]
        return tree | {f"encoderblock_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(module.DEPTH)}

    params["img"]["Transformer"] = stacked(params["img"]["Transformer"])
    params["txt"]["Encoder_0"] = stacked(params["txt"]["Encoder_0"])

    def loss_fn(tree, images, tokens):
        tree = tree["params"]
        image = tree["img"] | {"Transformer": unstacked(tree["img"]["Transformer"])}
        text = tree["txt"] | {"Encoder_0": unstacked(tree["txt"]["Encoder_0"])}
        return module.loss_fn(tree | {"img": image, "txt": text}, images, tokens)[0]  # no activations this time

    report = sr.check_model(BigVision(loss_fn, {"params": params}), "float64")
    require_pass(report, "float64")
    assert {row.verdict for row in report.rows if row.kind == "activation"} == {"not checked"}


def embeds_alone(module, image_of, text_of):
    """The example's loss of towers that show nothing but their embeddings."""

    def loss_fn(params, images, tokens):
        image, text = image_of(params["img"], images), text_of(params["txt"], tokens)
        logits = image @ text.T * jnp.exp(params["t"]) + params["b"]
        signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
        shown = {"image/embed": image, "text/embed": text, "logits": logits}
        return jax.nn.softplus(-signs * logits).sum(-1).mean(), shown

    return loss_fn


def test_the_loss_is_not_blamed_for_texts_that_are_not_normalised():
    """Its slopes are next to nothing at one scale, and logits larger than those of unit rows."""
    module = example("check_jax_model")
    loss_fn = embeds_alone(
        module,
        lambda params, images: module.normalize(module.image_tower(images, params, {})),
        lambda params, tokens: module.text_tower(tokens, params, {}),
    )
    report = sr.check_model(BigVision(loss_fn, module.init()))
    assert [finding.id for finding in report.findings] == ["features-not-normalised"], report


def test_a_bias_that_is_not_added_is_no_other_number():
    """Norms do not see a number that is added to all channels, such as a height."""
    module = example("check_jax_model")

    def image_of(params, images):
        without = params | {"embedding": params["embedding"] | {"bias": 0 * params["embedding"]["bias"]}}
        return module.normalize(module.image_tower(images, without, {}))

    loss_fn = embeds_alone(module, image_of, lambda p, tokens: module.normalize(module.text_tower(tokens, p, {})))
    report = sr.check_model(BigVision(loss_fn, module.init()))
    assert report.verdict == "FAIL" and "0 * bias" in report.computes[0], report


def test_own_weights_pass_in_jax_and_leave_the_tree_and_jaxs_settings_as_they_were():
    model = example("check_jax_model", depth=1).model()
    before = {name: np.array(leaf) for name, leaf in model._leaves.items()}
    require_pass(sr.check_model(model, "float64", "own"), "float64")
    assert not jax.config.jax_enable_x64
    assert all(np.array_equal(before[name], leaf) for name, leaf in model._leaves.items())


def eps(module):
    module.EPS = 1e-5


def erf(module):
    def mlp(x, p):
        x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=False)
        return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    module.mlp = mlp


def stopped_text(module):
    text_tower = module.text_tower
    module.text_tower = lambda *args: jax.lax.stop_gradient(text_tower(*args))


def no_negatives(module):
    loss_fn = module.loss_fn

    def positives_only(params, images, tokens):
        _, seen = loss_fn(params, images, tokens)
        return -jax.nn.log_sigmoid(jnp.diag(seen["logits"])).mean(), seen

    module.loss_fn = positives_only


@pytest.mark.parametrize(
    ("mistake", "place"),
    [
        (eps, "image/block00/+attn"),
        (erf, "image/block00/+mlp"),
        (stopped_text, "text/head/bias"),
        (no_negatives, "loss"),
    ],
    ids=["eps", "erf", "stopped_text", "no_negatives"],
)
@pytest.mark.sampled(2)
def test_mistakes_in_jax_are_caught_and_placed(mistake, place):
    module = example("check_jax_model", depth=1)
    mistake(module)
    report = sr.check_model(module.model(), "float32")
    assert not report.passed
    assert report.first_divergent.name == place


def test_a_tree_of_another_layout_or_shape_is_explained():
    module = example("check_jax_model")
    with pytest.raises(sr.UsageError, match="big_vision's layout"):
        BigVision(module.loss_fn, {"w": jnp.zeros(3)})
    params = module.init()
    params["img"]["MAPHead_0"]["MultiHeadDotProductAttention_0"]["query"]["kernel"] = jnp.zeros((10, 5, 2))
    with pytest.raises(sr.UsageError, match=r"\(10, 5, 2\), not \(10, 2, 5\)"):
        BigVision(module.loss_fn, params)
    params = module.init()
    del params["b"]
    with pytest.raises(sr.UsageError, match="missing: b"):
        BigVision(module.loss_fn, params)


# --- a table that does not fit --------------------------------------------------------------------------------------


def test_a_table_is_checked_name_by_name_and_shape_by_shape():
    module = example("check_torch_model")

    def adapter(table, model=None):
        return TorchModel("broken", model or module.MyModel(), module.CONFIG, tuple(table), (), module.loss)

    with pytest.raises(sr.UsageError, match="missing or twice: bias"):
        adapter([entry for entry in module.TABLE if entry.ours != "bias"])
    with pytest.raises(sr.UsageError, match="missing or twice: bias"):
        adapter([*module.TABLE, next(entry for entry in module.TABLE if entry.ours == "bias")])
    wide = module.MyModel()
    wide.text.head = module.nn.Linear(12, 11)
    with pytest.raises(sr.UsageError, match=r"text\.head\.weight \(11, 12\), not \(10, 12\)"):
        adapter(module.TABLE, wide)
