"""check_loss on Torch code: right losses pass in every dtype, mistakes fail, the user's environment stays."""

import functools
import math
import random

import numpy as np
import pytest
import torch
import torch_losses as losses

import siglip_ref as sr
from siglip_ref.check.call.frameworks import framework_of
from siglip_ref.errors import UsageError
from siglip_ref.noise.measure import TIMES

WAYS = [
    ("float64", "pure"),
    ("float32", "pure"),
    ("bfloat16", "pure"),
    ("float16", "pure"),
    ("bfloat16", "autocast"),
    ("float16", "autocast"),
]
# values there are smaller than what 16 bits round away: of a thousand pairs the gradients of scale and bias, which are
# differences of large sums
DROWNED = {"saturated, right", "one pair", "a thousand pairs"}


def name_of(fn: object) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


@pytest.mark.parametrize(("dtype", "precision"), WAYS)
@pytest.mark.parametrize("fn", losses.RIGHT, ids=name_of)
def test_right_losses_pass_and_use_at_most_half_of_what_is_allowed(fn: losses.Loss, dtype: str, precision: str) -> None:
    """The calibration of SAFETY: see siglip_ref.check.engine.expected.tolerance."""
    scalars = ("float32", dtype) if dtype in ("bfloat16", "float16") and precision == "pure" else ("float32",)
    for scalar_dtype in scalars:
        report = sr.check_loss(fn, dtype=dtype, precision=precision, scalar_dtype=scalar_dtype)  # type: ignore[arg-type]
        assert report.passed, report
        assert report.smallest_tolerance <= TIMES / 2
        # all is judged, but in 16 bits what drowns in rounding
        drowned = {row.probe.split(" (")[0] for row in report.details if row.verdict != "pass"}
        assert drowned <= (DROWNED if dtype in ("bfloat16", "float16") else set()) and not report.not_checked


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.sampled(2)
def test_at_the_shapes_of_a_kernel_right_losses_pass_and_wrong_ones_fail(dtype: str) -> None:
    """The noise there does not ship: see siglip_ref.noise.quick."""
    dims = {"batch": 64, "dim": 32}
    for fn in (losses.plain, losses.scaled_first, losses.cross_entropy, losses.normalising_with_eps):
        report = sr.check_loss(fn, dtype=dtype, dims=dims)
        assert report.passed and report.smallest_tolerance <= TIMES / 2, report
    for fn in (fn for fn in losses.WRONG if fn is not losses.chunk_forgotten):  # which is right where chunks are whole
        assert sr.check_loss(fn, dtype=dtype, dims=dims).verdict == "FAIL", name_of(fn)


@pytest.mark.parametrize("fn", losses.RIGHT, ids=name_of)
def test_float64_gradients_agree_to_1e_11(fn: losses.Loss) -> None:
    report = sr.check_loss(fn, dtype="float64")
    assert max(row.error for row in report.details if not row.probe.startswith("saturated, right")) < 1e-11


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fn", losses.WRONG, ids=name_of)
@pytest.mark.sampled(3)
def test_mistakes_fail(fn: losses.Loss, dtype: str) -> None:
    assert sr.check_loss(fn, dtype=dtype).verdict == "FAIL"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "fn", [losses.negatives_missing, losses.negatives_detached, losses.text_detached, losses.quarter], ids=name_of
)
@pytest.mark.sampled(3)
def test_the_worst_mistakes_fail_in_16_bits_too(fn: losses.Loss, dtype: str) -> None:
    assert sr.check_loss(fn, dtype=dtype).verdict == "FAIL"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_negatives_without_gradient_show_at_bias_minus_10_too(dtype: str) -> None:
    details = sr.check_loss(losses.negatives_detached, dtype=dtype).details
    at_init = [row for row in details if row.probe.startswith("init") and row.name == "image_embed"]
    balanced = [row for row in details if row.probe.startswith("balanced (") and row.name == "image_embed"]
    assert at_init[0].verdict == balanced[0].verdict == "FAIL" and at_init[0].error < balanced[0].error / 3


def test_log_of_sigmoid_is_caught_where_logits_reach_120() -> None:
    for dtype, where in (("float32", "logits to +-120"), ("float64", "logits to +-1000")):
        report = sr.check_loss(losses.log_of_sigmoid, dtype=dtype)
        bad = {row.probe for row in report.details if row.verdict == "FAIL" and not row.error < 1e-3}
        assert any(probe.startswith(where) for probe in bad)
        assert not any(probe.startswith(("balanced", "init")) for probe in bad)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("fn", losses.BREACHES, ids=name_of)
@pytest.mark.sampled(3, in_turn=True)
def test_breaches_of_the_contract_are_named(fn: losses.Loss, dtype: str) -> None:
    report = sr.check_loss(fn, dtype=dtype)
    assert report.verdict == "FAIL" and losses.BREACHES[fn] in [finding.id for finding in report.findings]
    plain_calls = [row for row in report.details if "(B=" in row.probe]
    assert all(row.right or row.verdict == "out of range" for row in plain_calls)


def of_softplus(form: str, scale: str = "exp(s)", per: str = "sum") -> losses.Loss:
    """Losses of Torch's softplus, which is a straight line above 20: with the label inside, by the closed form; as well
    with another scale or divisor."""
    softplus = torch.nn.functional.softplus

    def fn(x: torch.Tensor, y: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = x @ y.T * (log_scale if scale == "exp(s)" else -log_scale).exp() + bias
        z = 2 * torch.eye(len(x), dtype=x.dtype) - 1
        each = softplus(-z * logits) if form == "label inside" else softplus(logits) - torch.diag(logits.diagonal())
        return each.mean() if per == "mean" else each.sum() / len(x)

    return fn


@pytest.mark.parametrize(
    ("scale", "per", "others"),
    [("exp(s)", "sum", set()), ("exp(s)", "mean", {"sum-vs-mean-vs-b2"}), ("exp(-s)", "sum", {"temperature-inverted"})],
)
@pytest.mark.parametrize("form", ["label inside", "closed"])
def test_torchs_softplus_threshold_is_named_in_float64_whatever_stands_beside_it(
    form: str, scale: str, per: str, others: set[str]
) -> None:
    fn = of_softplus(form, scale, per)
    report = sr.check_loss(fn, scale="log", embeddings="unit", dtype="float64")
    assert {finding.id for finding in report.findings} == {"softplus-threshold", *others}
    assert " is x above 20" in report.computes[0] and "SigLIP's own" not in "".join(report.computes)
    coarse = sr.check_loss(fn, scale="log", embeddings="unit", dtype="float32")
    assert {finding.id for finding in coarse.findings} == others and coarse.passed == (not others)


NORMS = {
    "F.normalize": (torch.nn.functional.normalize, ""),
    "big_vision": (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-8), ""),
    "1e-6": (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-6), "length + 1e-06"),
    "1e-12": (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-12), "length + 1e-12"),
    "root": (lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12), "sqrt(length^2 + 1e-12)"),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("mistake", [None, "sum-vs-mean-vs-b2"])
def test_how_rows_are_divided_is_found_whatever_else_is_wrong(name: str, mistake: str | None) -> None:
    """What a library adds to a length is a convention where a library has it, and said where it has not."""
    norm, words = NORMS[name]

    def fn(x: torch.Tensor, y: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = norm(x) @ norm(y).T * log_scale.exp() + bias
        each = -torch.nn.functional.logsigmoid((2 * torch.eye(len(x), dtype=x.dtype) - 1) * logits)
        return each.mean() if mistake else each.sum() / len(x)

    report = sr.check_loss(fn, dtype="float64")
    ids = {finding.id for finding in report.findings}
    assert ids == {*filter(None, [mistake]), *(["derived"] if words else [])}, report
    assert words in "".join(finding.evidence for finding in report.findings)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rows_of_one_side_are_one_mistake(dtype: str) -> None:
    def fn(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        logits = x @ torch.nn.functional.normalize(y, dim=-1).T * t.exp() + b
        return -torch.nn.functional.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).sum() / len(x)

    report = sr.check_loss(fn, dtype=dtype, embeddings="raw")
    assert [finding.id for finding in report.findings] == ["one-side-not-normalised"], report


def weighed_by_size(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logits, own = x @ y.T * t.exp() + b, torch.eye(len(x), dtype=x.dtype)
    each = -torch.nn.functional.logsigmoid((2 * own - 1) * logits)
    return 0.5 * ((each * own).sum() / len(x) + (each * (1 - own)).sum() / (len(x) * (len(x) - 1)))  # 0 / 0 of one pair


def over_log_of_pairs(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logits, own = (x @ y.T * t.exp() + b).float(), torch.eye(len(x))
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, own) * len(x) / math.log(len(x))  # raises


def within(low: float, high: float) -> losses.Loss:
    def fn(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        logits = (x @ y.T * t.exp() + b).clamp(low, high)
        return -torch.nn.functional.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).sum() / len(x)

    return fn


def in_float32(x: torch.Tensor, y: torch.Tensor, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    logits = x.float() @ y.float().T * t.float().clamp(-4.6, 4.6).exp() + b.float()
    return -torch.nn.functional.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).sum() / len(x)


@pytest.mark.parametrize(
    ("fn", "dtype", "told"),
    [
        (weighed_by_size, "float64", ["0.5/B sum over i = j", "0.5/(B (B - 1)) sum over i != j"]),
        (over_log_of_pairs, "float64", ["1/(B log(B)) sum_ij", "in float32"]),
        (over_log_of_pairs, "float32", ["1/(B log(B)) sum_ij"]),
        (within(-50, 50), "float64", ["clamp(exp(log_scale) sim_ij + bias, -50, 50)"]),
        (within(-20, 20), "float32", ["clamp(exp(log_scale) sim_ij + bias, -20, 20)"]),
        (in_float32, "float64", ["min(exp(log_scale), 99.4843)", "in float32"]),
        (in_float32, "float32", ["min(exp(log_scale), 99.4843)"]),
    ],
)
def test_losses_of_public_code_are_told_in_full(fn: losses.Loss, dtype: str, told: list[str]) -> None:
    """A batch of one pair without a number takes nothing from the rest; of two ways to say a number the rounder one;
    that something is computed in float32 is a difference where more was asked for."""
    report = sr.check_loss(fn, dtype=dtype, scale="log", embeddings="unit")
    assert report.computes[0].startswith("your loss") and all(words in report.computes[0] for words in told), report
    assert ("in float32" in str(report.computes)) == ("in float32" in told)
    assert "log-of-sigmoid" not in [finding.id for finding in report.findings]


def test_open_clips_scale_is_linear_and_declaring_another_is_no_pass() -> None:
    fn = losses.open_clip_loss()
    assert 'scale="linear"' in sr.check_loss(fn).conventions
    report = sr.check_loss(fn, scale="log")
    assert report.verdict == "OTHER CONVENTION" and 'scale="linear"' in report.findings[0].repair


def test_broken_losses_are_judged_by_the_likelier_convention() -> None:
    for fn in (losses.negatives_missing, losses.quarter, losses.text_detached):
        assert {'scale="log"', 'embeddings="unit"'} <= set(sr.check_loss(fn).conventions)

    def raw_without_negatives(*inputs: torch.Tensor) -> torch.Tensor:
        x, y = (torch.nn.functional.normalize(rows, dim=-1) for rows in inputs[:2])
        return losses.negatives_missing(x, y, *inputs[2:])

    assert 'embeddings="raw"' in sr.check_loss(raw_without_negatives).conventions


def test_lambdas_partials_methods_and_local_functions() -> None:
    class Owner:
        def loss(self, *inputs: torch.Tensor) -> torch.Tensor:
            return losses.plain(*inputs)

    def local(*inputs: torch.Tensor) -> torch.Tensor:
        return losses.plain(*inputs)

    for fn in (lambda *inputs: losses.plain(*inputs), functools.partial(losses.chunked, size=5), Owner().loss, local):
        assert framework_of(fn) == "torch"
        sr.check_loss(fn).raise_if_failed()


def test_a_module_with_parameters_keeps_its_gradients() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return losses.plain(*inputs) * self.weight

    module = Module()
    module.weight.grad = kept = torch.tensor(7.0)
    sr.check_loss(module).raise_if_failed()
    assert module.weight.grad is kept and kept.item() == 7


@pytest.mark.parametrize("raises", [False, True])
def test_the_environment_stays_as_it_was(raises: bool) -> None:
    def untidy(*inputs: torch.Tensor) -> torch.Tensor:
        torch.rand(3), np.random.rand(3), random.random()
        torch.set_default_dtype(torch.float64)
        if raises:
            raise RuntimeError("no")
        return losses.plain(*inputs)

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if raises:
            with pytest.raises(UsageError, match="RuntimeError: no"):
                sr.check_loss(untidy)
        else:
            assert sr.check_loss(untidy).passed
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[union-attr]
    with torch.inference_mode():
        assert sr.check_loss(losses.plain).passed


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda *a: losses.plain(*a).expand(3), r"an array of shape \(3,\)"),
        (lambda *a: {"loss": losses.plain(*a)}, "a dict of 1"),
        (lambda *a: losses.plain(*a).item(), "float"),
        (lambda x, y, s, b: torch.mm(x, y), "at every probe"),
    ],
    ids=["vector", "dict", "item", "wrong shapes inside"],
)
def test_results_that_are_no_scalar_are_explained(fn: losses.Loss, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sr.check_loss(fn, framework="torch")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_explained(device: str) -> None:
    with pytest.raises(UsageError, match="a device that Torch can use here"):
        sr.check_loss(losses.plain, device=device)


def test_dtypes_may_be_torchs_own() -> None:
    assert "bfloat16" in sr.check_loss(losses.plain, dtype=torch.bfloat16).title
