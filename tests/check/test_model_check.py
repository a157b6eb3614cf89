"""check_model without any framework: what passes, what never may, and what the report says."""

import json
from dataclasses import replace

import numpy as np
import pytest
from reference_adapter import ReferenceAdapter

import siglip_ref as sr
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.noise import allowed
from siglip_ref.check.model.placed import LOSS, Placed, stages_of, with_mistakes
from siglip_ref.check.model.probe import Probe, model_probe
from siglip_ref.check.model.reference import reference
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.noise.measure import TIMES


def spoiled(kind, name, change):
    """An adapter whose one activation or gradient goes through `change`; kind "loss" has no name."""

    def spoil(run):
        if kind == "loss":
            return replace(run, loss=change(run.loss))
        tensors = dict(getattr(run, kind))
        tensors[name] = change(tensors[name])
        return replace(run, **{kind: tensors})

    return ReferenceAdapter(spoil=spoil)


def one(value):
    def change(x):
        x = np.array(x)
        x.flat[-1] = value
        return x

    return change


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_reference_passes(dtype):
    report = sr.check_model(ReferenceAdapter(), dtype)
    assert report.verdict == "PASS"
    assert not report.findings
    cfg = sr.config("tiny")
    inputs = np.zeros((1, *cfg.image_size, 3)), np.zeros((1, cfg.text_length), int)
    values = sr.forward(sr.init(cfg), *inputs, cfg, activations=True).activations
    assert [row.name for row in report.rows] == [*values, "loss", *sr.init(cfg)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "float64"])
@pytest.mark.sampled(2, in_turn=True)
def test_own_weights(dtype):
    report = sr.check_model(ReferenceAdapter(), dtype, "own")
    assert report.verdict == "PASS"
    assert "own weights" in report.title


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("activations", "image/block01/+mlp"),
        ("activations", "logits"),
        ("grads", "text/token"),
        ("grads", "image/pool/attn/k/bias"),
        ("grads", "bias"),
        ("loss", ""),
    ],
)
@pytest.mark.sampled(3, in_turn=True)
def test_what_is_not_finite_never_passes(kind, name, value):
    report = sr.check_model(spoiled(kind, name, one(value)), "float32")
    assert report.verdict == "FAIL"
    assert report.first_divergent.name == (name or "loss")


def test_all_nan_never_passes():
    def spoil(run):
        nothing = {name: np.full_like(x, np.nan) for name, x in run.grads.items()}
        return replace(run, grads=nothing, activations={}, loss=np.float32(np.nan))

    report = sr.check_model(ReferenceAdapter(spoil=spoil), "float32")
    assert report.verdict == "FAIL"
    assert not any(row.right for row in report.rows)


def test_own_weights_with_a_nan_never_pass():
    own = sr.init(sr.config("tiny"), dtype=np.float32)
    own["text/block01/mlp/in/kernel"][3, 4] = np.nan
    report = sr.check_model(ReferenceAdapter(own=own), "float32", "own")
    assert report.verdict == "FAIL"
    assert "text/block01/mlp/in/kernel holds NaN" in report.findings[0].evidence


@pytest.mark.parametrize("name", ["image/patch/kernel", "text/block00/norm2/beta", "log_scale"])
@pytest.mark.parametrize("change", [np.zeros_like, lambda x: x / 4, lambda x: -x, lambda x: x * np.float32(1.001)])
@pytest.mark.sampled(4)
def test_a_wrong_gradient_is_named(name, change):
    report = sr.check_model(spoiled("grads", name, change), "float32")
    wrong = [row.name for row in report.rows if row.verdict == "FAIL"]
    assert wrong == [name]
    assert report.first_divergent.name == name
    assert "every value is right" in report.findings[0].evidence


def test_a_key_bias_gradient_that_is_not_zero_fails():
    report = sr.check_model(spoiled("grads", "image/block00/attn/k/bias", lambda x: x + np.float32(1e-4)), "float32")
    assert [row.name for row in report.rows if row.verdict == "FAIL"] == ["image/block00/attn/k/bias"]


def test_key_biases_are_judged_by_their_terms_and_the_report_says_so():
    report = sr.check_model(ReferenceAdapter(), "float32")
    zero = [row.name for row in report.rows if row.verdict == "zero by structure"]
    assert len(zero) == 5
    assert all(name.endswith("/attn/k/bias") for name in zero)
    assert any("zero by structure" in note for note in report.notes)


def test_the_terms_of_a_key_bias_bound_its_neighbours():
    """The sum of absolute terms is at least what the same terms add up to where they do not cancel."""
    cfg = sr.config("tiny")
    exact = reference(model_probe(cfg, 4, "float32"), cfg, cfg.conventions, np.float64)
    for name, total in exact.key_terms.items():
        kernel = exact.grads[name.replace("bias", "kernel")]
        assert np.abs(exact.grads[name]).max() < 1e-14 * total
        assert np.abs(kernel).max() < 10 * total  # a layer norm's output is hardly ever beyond 10
        assert np.abs(kernel).max() > 1e-3 * total


def test_the_first_activation_that_deviates_is_named():
    report = sr.check_model(spoiled("activations", "text/norm", lambda x: x * np.float32(1.01)), "float32")
    assert report.first_divergent.name == "text/norm"
    assert "text/block01/+mlp is still right" in report.findings[0].evidence


@pytest.mark.parametrize(
    "changes",
    [
        {"image_gelu": "erf"},
        {"text_gelu": "erf"},
        {"image_norm_eps": 1e-5},
        {"text_norm_eps": 1e-12},
        {"text_pooling": "first"},
        {"text_mask": "causal"},
        {"image_gelu": "erf", "text_gelu": "erf"},
        {"embed_norm": "none", "embed_norm_eps": 0.0},
    ],
)
@pytest.mark.sampled(3)
def test_another_convention_is_named_with_its_argument(changes):
    other = sr.preset("big_vision", **changes)
    adapter = ReferenceAdapter(config=replace(sr.config("tiny"), conventions=other))
    report = sr.check_model(adapter, "float64", conventions=sr.preset("big_vision"))
    assert report.verdict == "OTHER CONVENTION"
    for field, value in changes.items():
        if field != "embed_norm_eps":
            assert f"{field}={value!r}" in report.findings[-1].repair
            due = report.findings[-1].repair.partition("; if it is not, the model is to compute ")[2]
            assert f"{field}={getattr(sr.preset('big_vision'), field)!r}" in due
    assert sr.check_model(adapter, "float64", conventions=other).passed


def test_unusual_conventions_do_not_pass_unless_declared():
    other = sr.preset("big_vision", text_norm_eps=1e-5)
    adapter = ReferenceAdapter(config=replace(sr.config("tiny"), conventions=other))
    report = sr.check_model(adapter, "float32")
    assert report.verdict == "OTHER CONVENTION"
    assert "text_norm_eps=1e-05" in report.findings[-1].repair
    assert sr.check_model(adapter, "float32", conventions=other).passed


def test_what_a_run_cannot_see_is_listed_and_counted():
    fine = sr.check_model(ReferenceAdapter(), "float64")
    special = {"equal-captions-as-positives"}  # with equal captions only; at other scales a model is judged
    assert set(fine.sight.blind) == special and len(fine.sight.seen) > 60
    assert sorted([*fine.sight.seen, *fine.sight.blind, *fine.sight.elsewhere]) == sorted(CATALOGUE)
    report = sr.check_model(ReferenceAdapter(), "float32")
    assert report.blind[0] == "embed_norm 'none' instead of 'additive'"
    assert set(report.sight.blind) == special | {"embed-norm-eps", "normalised-again"}  # 1e-8 of a unit row
    coarse = sr.check_model(ReferenceAdapter(), "bfloat16").sight
    assert {"gelu-tanh-vs-erf", "layernorm-eps-1e-5"} <= set(coarse.blind)
    assert len(coarse.seen) + len(coarse.blind) == coarse.of == fine.sight.of


def test_what_only_special_rows_of_a_loss_show_is_listed_with_the_check_that_sees_it():
    report = sr.check_model(ReferenceAdapter(), "float32")
    lines = [line for line in report.blind if line.endswith("; check_loss on your loss sees this")]
    assert {line.split(":")[0] for line in lines} == {"normalised-again", "equal-captions-as-positives"}
    assert {"scale-clamped", "log-of-sigmoid", "log-one-plus-exp"} <= set(report.sight.seen)


@pytest.mark.parametrize(
    "name",
    ["gelu-tanh-vs-erf", "layernorm-eps-1e-5", "label-sign", "embed-norm-eps", "scale-clamped", "log-of-sigmoid"],
)
def test_what_is_said_of_a_mistake_is_true(name):
    """A model with the mistake fails where the sight says so, and passes where it is said to be blind."""
    mistake = CATALOGUE[name]
    cfg = sr.config("tiny")
    everywhere = [Placed(mistake, frozenset({LOSS, *stages_of(cfg, "image"), *stages_of(cfg, "text")}))]

    class Mistaken(ReferenceAdapter):
        def run(self, params, images, tokens, dtype):
            kind = np.float64 if dtype == "float64" else np.float32
            params = {key: value.astype(kind) for key, value in params.items()}
            probe = Probe(params, images.astype(kind), tokens)
            loss, values, grads = with_mistakes(everywhere, probe, cfg, cfg.conventions)
            return Run(loss, values, grads)

    for dtype in ("float64", "float32", "bfloat16"):
        report = sr.check_model(Mistaken(), dtype)
        assert (report.verdict == "PASS") == (name in report.sight.blind), dtype


def test_a_large_model_is_judged_on_a_small_twin():
    cfg = replace(sr.config("mu/16"), image=replace(sr.config("mu/16").image, width=192, mlp=768))
    report = sr.check_model(ReferenceAdapter(replace(cfg, text=cfg.image)), "float32")
    assert report.verdict == "PASS"
    assert len(report.sight.seen) > 60


def test_a_value_beyond_the_format_is_out_of_range_and_counted():
    own = sr.init(sr.config("tiny"), dtype=np.float32)
    own["text/head/bias"] += np.float32(1e5)
    report = sr.check_model(ReferenceAdapter(own=own), "float16", "own")
    head = next(row for row in report.rows if row.name == "text/head")
    assert head.verdict == "out of range"
    assert any(line.startswith("text/head") for line in report.not_checked)


def test_no_tolerance_lets_a_gradient_of_zeros_pass():
    """Below 1 wherever something is judged, at least twice the noise, never more than the stated multiple."""
    for noise in np.geomspace(1e-17, 0.499, 100):
        assert 2 * noise <= allowed(noise) <= TIMES * noise
        assert allowed(noise) < 1
    assert allowed(0.5) >= 1
    assert np.isnan(allowed(float("nan")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gradient_of_zeros_fails_in_16_bits_too(dtype):
    zeros = ReferenceAdapter(spoil=lambda run: replace(run, grads={n: np.zeros_like(x) for n, x in run.grads.items()}))
    rows = [row for row in sr.check_model(zeros, dtype).rows if row.kind == "gradient"]
    wrong = [row for row in rows if row.verdict == "FAIL"]
    assert all(row.verdict in ("FAIL", "zero by structure", "out of range") for row in rows)
    assert len(wrong) >= 0.9 * sum(row.verdict != "zero by structure" for row in rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("stage", ["image/block00/+attn", "text/block01/+mlp", "image/pool", "text/head"])
@pytest.mark.sampled(3)
def test_a_stage_that_is_a_fifth_off_fails_in_16_bits_too(stage, dtype):
    """Nothing is coarser than bfloat16: no rounding can explain it there."""

    def spoil(run):
        values = dict(run.activations)
        values[stage] = values[stage] * np.linspace(0.8, 1.2, values[stage].shape[-1], dtype=np.float32)
        return replace(run, activations=values)

    report = sr.check_model(ReferenceAdapter(spoil=spoil), dtype)
    assert report.verdict == "FAIL"
    assert [finding.tensor for finding in report.findings] == [stage]


def test_the_report_is_complete_as_json(tmp_path):
    report = sr.check_model(ReferenceAdapter(), "float32")
    content = json.loads(report.save(tmp_path / "r.json").read_text())
    assert {row["name"] for row in content["rows"]} >= set(sr.init(sr.config("tiny")))


def test_the_case_holds_inputs_and_the_worst_tensor(tmp_path):
    report = sr.check_model(spoiled("grads", "log_scale", np.negative), "float32")
    with np.load(report.save_case(tmp_path / "case") / "case.npz") as case:
        assert {"input/images", "input/tokens", "got/log_scale", "expected/log_scale"} == set(case)
        assert case["got/log_scale"] == pytest.approx(-case["expected/log_scale"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float8"}, "float64, float32, bfloat16, float16"),
        ({"weights": "mine"}, "batch at least 2"),
        ({"batch": 1}, "batch at least 2"),
    ],
)
def test_wrong_options_are_explained(options, said):
    with pytest.raises(sr.UsageError, match=said):
        sr.check_model(ReferenceAdapter(), **options)


@pytest.mark.parametrize("dtype", ["torch.float32", np.float32, np.dtype("float32")])
def test_a_dtype_may_be_a_frameworks_own(dtype):
    assert sr.check_model(ReferenceAdapter(), dtype).verdict == "PASS"


def test_a_model_of_an_unknown_kind_is_explained():
    with pytest.raises(sr.UsageError, match="write an Adapter"):
        sr.check_model(object())


def test_a_wrapper_is_recognised_by_what_it_holds():
    class Wrapper:
        def __init__(self, inner):
            self.module = inner

    for wrapped, path in (
        (Wrapper(ReferenceAdapter()), "module"),
        (Wrapper(Wrapper(ReferenceAdapter())), "module.module"),
    ):
        with pytest.raises(sr.UsageError, match=rf"give model\.{path}$"):
            sr.check_model(wrapped)
    with pytest.raises(sr.UsageError, match="write an Adapter"):
        sr.check_model(Wrapper(None))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("batch", [2, 4, *(pytest.param(n, marks=pytest.mark.nightly) for n in (3, 5, 7, 8))])
@pytest.mark.sampled(3)
def test_right_models_are_right_at_every_scale_where_terms_cancel_too(batch, dtype):
    """At large logits a pair counts 0 or 1, so gradients may vanish altogether: no measure for an error."""
    for seed in range(2):
        own = sr.init(sr.config("tiny"), seed=seed, dtype=np.float32)
        rng = np.random.default_rng(seed)
        own = {name: x + np.float32(0.1) * rng.standard_normal(x.shape).astype(np.float32) for name, x in own.items()}
        if dtype in ("bfloat16", "float16"):
            own = {name: (x * 256).round().clip(-255, 255).astype(np.float32) / 256 for name, x in own.items()}
        report = sr.check_model(ReferenceAdapter(own=own), dtype, "own", batch=batch)
        assert report.verdict in ("PASS", "NOT JUDGED"), (
            seed
        )  # in bfloat16 rounding may drown a gradient at its own scale
        assert all(row.verdict != "FAIL" for row in report.details)


@pytest.mark.parametrize("weights", ["own", "probe"])
def test_own_weights_cannot_show_a_wrong_conversion_and_the_report_says_so(weights):
    report = sr.check_model(ReferenceAdapter(), "float32", weights)
    assert any("a wrong conversion" in note for note in report.notes) == (weights == "own")


def test_an_adapter_that_leaves_out_a_gradient_or_misspells_a_name_is_explained():
    def without(run):
        return replace(run, grads={name: x for name, x in run.grads.items() if name != "bias"})

    def misspelt(run):
        return replace(run, activations={"image/block0/+attn": run.activations["image/block00/+attn"]})

    for spoil, name in ((without, "bias"), (misspelt, "image/block0/")):
        with pytest.raises(sr.UsageError, match=name):
            sr.check_model(ReferenceAdapter(spoil=spoil))
