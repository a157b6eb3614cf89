"""The softmax (CLIP) loss: right ones pass in every framework, each mistake is named, and neither is taken for the
sigmoid loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from torch_losses import open_clip_loss

import siglip_ref as sr
from siglip_ref.check.engine.expected.convention import SOFTMAX
from siglip_ref.check.engine.expected.exact import exact_loss, proven
from siglip_ref.check.engine.expected.expected import conventions_of
from siglip_ref.check.engine.expected.probes import MANY, Probe, loss_probes, points_of
from siglip_ref.check.engine.expected.repeated import MIDDLE, repeated_probe
from siglip_ref.mistakes import executable
from siglip_ref.ops import softmax_loss

Loss = Callable[..., Any]
DTYPES = ("float64", "float32", "bfloat16", "float16")


def plain(x: Any, y: Any, log_scale: Any) -> Any:
    logits, own = log_scale.exp() * x @ y.T, torch.arange(len(x))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def with_bias(x: Any, y: Any, scale: Any, bias: Any) -> Any:
    logits = scale * (x @ y.T) + bias
    return (torch.logsumexp(logits, 0) + torch.logsumexp(logits, 1)).mean() / 2 - logits.diagonal().mean()


def normalising(x: Any, y: Any, log_scale: Any) -> Any:
    return plain(F.normalize(x), F.normalize(y), log_scale)


def in_jax(x: Any, y: Any, log_scale: Any) -> Any:
    logits = jnp.exp(log_scale) * (x @ y.T)
    both = jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 0)
    return -jnp.diagonal(both).mean() / 2


def in_numpy(x: Any, y: Any, log_scale: Any) -> tuple[Any, ...]:
    return tuple(softmax_loss(x, y, log_scale))


def in_numpy_with_bias(x: Any, y: Any, log_scale: Any, bias: Any) -> tuple[Any, ...]:
    return *softmax_loss(x, y, log_scale), None


def sigmoid(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -F.logsigmoid(signs * (x @ y.T * log_scale.exp() + bias)).sum() / len(x)


RIGHT = [plain, with_bias, normalising, open_clip_loss("ClipLoss"), in_jax, in_numpy, in_numpy_with_bias]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fn", RIGHT, ids=lambda fn: getattr(fn, "__name__", type(fn).__name__))
@pytest.mark.sampled(3)
def test_right_ones_pass(fn: Loss, dtype: str) -> None:
    report = sr.check_loss(fn, dtype=dtype, loss="softmax")
    assert report.passed, report
    assert report.smallest_tolerance < 3  # half of what is allowed
    assert any("softmax does not see it" in line for line in report.not_checked)
    assert 'loss="softmax"' in report.conventions and 'loss="softmax"' in str(report.notes)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_mistake_of_its_own_would_have_been_seen(dtype: str) -> None:
    sight = sr.check_loss(plain, dtype=dtype, loss="softmax").sight
    assert sight is not None and not sight.blind
    assert {mistake.id for mistake in executable("softmax")} <= set(sight.seen)
    assert sight.elsewhere["label-sign"] == "in the sigmoid loss (check_loss)"


def cross(logits: Any, **how: Any) -> Any:
    return F.cross_entropy(logits, torch.arange(len(logits)), **how)


def shifted(x: Any, y: Any, s: Any) -> Any:
    logits, own = s.exp() * x @ y.T, (torch.arange(len(x)) + 1) % len(x)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, (own - 2) % len(x))) / 2


def in_jax_one_direction(x: Any, y: Any, s: Any) -> Any:
    return -jnp.diagonal(jax.nn.log_softmax(jnp.exp(s) * (x @ y.T), 1)).mean()


WRONG: dict[str, list[Loss]] = {
    "softmax-one-direction": [lambda x, y, s: cross(s.exp() * x @ y.T), in_jax_one_direction],
    "softmax-other-direction": [lambda x, y, s: cross(s.exp() * y @ x.T)],
    "softmax-not-halved": [lambda x, y, s: 2 * plain(x, y, s)],
    "softmax-summed": [lambda x, y, s: plain(x, y, s) * len(x)],
    "softmax-temperature-inverted": [lambda x, y, s: plain(x, y, -s)],
    "softmax-labels-shifted": [shifted],
    "softmax-keys-detached": [
        lambda x, y, s: (cross(s.exp() * x @ y.detach().T) + cross(s.exp() * y @ x.detach().T)) / 2
    ],
    "no-gradient-arrives": [lambda x, y, s: plain(x, y.detach(), s), lambda x, y, s: plain(x, y, s.detach())],
}


@pytest.mark.parametrize(("id", "fn"), [(id, fn) for id, fns in WRONG.items() for fn in fns])
def test_mistakes_are_named(id: str, fn: Loss) -> None:
    framework = "jax" if fn is in_jax_one_direction else "torch"
    report = sr.check_loss(fn, framework, loss="softmax", embeddings="unit")
    assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == [id], report


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_that_are_computed_anew_for_the_gradient_pass(dtype: str) -> None:
    """As of a loss that keeps no (B, B) matrix: another product, here in the other order of D, makes other errors."""

    def log_sum(logits: Any) -> Any:
        top = logits.max(1, keepdims=True)
        return top + np.log(np.exp(logits - top).sum(1, keepdims=True))

    def in_two_passes(x: Any, y: Any, log_scale: Any) -> tuple[Any, ...]:
        scale, pairs = np.exp(log_scale), len(x)
        of_rows, of_columns = log_sum(scale * (x @ y.T)), log_sum(scale * (y @ x.T))
        logits = scale * (x[:, ::-1] @ y[:, ::-1].T)
        slope = np.exp(logits - of_rows) + np.exp(logits - of_columns.T) - 2 * np.eye(pairs, dtype=x.dtype)
        loss = (of_rows.mean() + of_columns.mean()) / 2 - scale * (x * y).sum(1).mean()
        slope = slope / (2 * pairs)
        return loss, scale * slope @ y, scale * slope.T @ x, (slope * logits).sum()

    report = sr.check_loss(in_two_passes, "numpy", dtype=dtype, loss="softmax")
    assert report.passed and report.smallest_tolerance < 4, report  # 3.6 with AVX2's products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("floor", [0.0, None])
def test_sums_of_exponentials_that_are_all_zero_or_infinite_fail(floor: float | None, dtype: str) -> None:
    """A maximum that starts at 0, and none at all."""

    def log_sum(logits: Any) -> Any:
        top = torch.zeros(()) if floor is None else logits.max(1, keepdim=True).values.clamp(min=floor).detach()
        return (top + (logits - top).exp().sum(1, keepdim=True).log())[:, 0]

    def loss(x: Any, y: Any, log_scale: Any) -> Any:
        logits = log_scale.exp() * x @ y.T
        return ((log_sum(logits) + log_sum(logits.T)) / 2 - logits.diagonal()).mean()

    report = sr.check_loss(loss, dtype=dtype, loss="softmax")
    assert report.verdict == "FAIL" and "m = max(l)" in report.findings[0].repair, report
    assert not {"log-of-sigmoid", "softplus-threshold"} & {finding.id for finding in report.findings}


def test_a_sigmoid_check_that_meets_a_softmax_says_how_to_declare_it() -> None:
    report = sr.check_loss(with_bias)
    assert report.verdict == "FAIL" and report.findings[0].id == "softmax-loss"
    assert 'check_loss(fn, loss="softmax")' in report.findings[0].repair
    with pytest.raises(sr.UsageError, match='loss="softmax"'):
        sr.check_loss(plain)


def test_a_softmax_check_that_meets_a_sigmoid_says_so() -> None:
    report = sr.check_loss(sigmoid, loss="softmax")
    assert report.verdict == "OTHER CONVENTION"
    assert report.findings[0].repair.endswith('check_loss(fn, loss="sigmoid")')
    assert {row.name for row in report.rows} >= {"bias"}


def test_another_word_is_refused() -> None:
    with pytest.raises(sr.UsageError, match="CLIP's"):
        sr.check_loss(plain, loss="clip")  # type: ignore[arg-type]


def probes(dtype: str) -> list[Probe]:
    points = SOFTMAX.points(points_of("unit", dtype))
    return loss_probes(points, None, dtype, "float32" if dtype == "bfloat16" else dtype)[0]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_truths_are_proven(dtype: str) -> None:
    convention = conventions_of(SOFTMAX)[0]
    for probe in probes(dtype):
        if probe.image_embed.size >= np.prod(MANY) or probe.name == "saturated, right":
            continue  # where every pair is sure the loss is 1e-30, a difference of sums that drowns it in every format
        found, right = exact_loss(probe, convention)._asdict(), proven(probe, convention)._asdict()
        assert not [name for name in right if not np.array_equal(found[name], right[name])], probe.label


def test_repeated_rows_are_the_plain_loss_of_all_rows() -> None:
    probe = repeated_probe(MIDDLE, None, "float64", "float64")
    assert probe is not None
    found = exact_loss(probe, conventions_of(SOFTMAX)[0])
    whole = softmax_loss(probe.image_embed, probe.text_embed, np.array(probe.log_scale))
    for one, other in zip(found, whole, strict=False):
        assert np.abs(one - other).max() <= 1e-12 * np.abs(other).max()


def test_a_scale_that_is_not_exponentiated_is_another_convention() -> None:
    report = sr.check_loss(lambda x, y, s: plain(x, y, s.log()), loss="softmax", scale="log")
    assert report.verdict == "OTHER CONVENTION" and 'scale="linear"' in report.findings[0].repair
