"""Torch losses whose gradient is wrong where a logit is exactly 0, and nowhere else: seen, and named."""

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
import torch_losses as losses
from torch import Tensor

import siglip_ref as sr

ID = "gradient-wrong-at-tie"


def softplus_clamp(z: Tensor) -> Tensor:
    """The textbook's stable form; at 0 clamp lets the whole gradient through, and abs none."""
    return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))


def softplus_relu(z: Tensor) -> Tensor:
    """The gradients of relu and abs are both 0 there."""
    return F.relu(z) + torch.log1p(torch.exp(-z.abs()))


def softplus_masked(z: Tensor) -> Tensor:
    """Neither branch takes what lies between them."""
    above, below = z.clamp(min=0) * (z > 0), z.clamp(max=0) * (z < 0)
    return torch.where(z == 0, torch.full_like(z, 2.0).log(), above + torch.log1p(torch.exp(below - above)))


def loss_of(softplus: losses.Loss) -> losses.Loss:
    def fn(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits = x @ y.T * log_scale.exp() + bias
        return softplus(-losses.signs(logits) * logits).sum() / len(x)

    return fn


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("softplus", [softplus_clamp, softplus_relu, softplus_masked])
def test_a_gradient_that_is_wrong_at_0_is_named(softplus: losses.Loss, dtype: str) -> None:
    report = sr.check_loss(loss_of(softplus), "torch", dtype, scale="log", embeddings="unit")
    assert report.verdict == "FAIL" and [finding.id for finding in report.findings] == [ID]
    wrong = [row for row in report.details if row.verdict == "FAIL"]
    assert all(row.kind == "gradient" and row.probe.startswith(("zero logits", "rows of zeros")) for row in wrong)


def test_slopes_that_are_off_in_other_ways_for_both_labels_are_named() -> None:
    """jnp.abs has the slope 1 at 0, so that the textbook's form has none there, and a label's part stays."""

    def fn(x: jax.Array, y: jax.Array, log_scale: jax.Array, bias: jax.Array) -> jax.Array:
        z = jnp.exp(log_scale) * jnp.matmul(x, y.T, precision="highest") + bias
        return (jnp.maximum(z, 0) - z * jnp.eye(len(x)) + jnp.log1p(jnp.exp(-jnp.abs(z)))).sum() / len(x)

    report = sr.check_loss(fn, "jax", "float32", scale="log", embeddings="unit")
    assert [finding.id for finding in report.findings] == [ID]
    assert "2 times the right one of positives, 0 times the right one of negatives" in report.findings[0].evidence


def test_in_16_bits_it_fails_too() -> None:
    assert sr.check_loss(loss_of(softplus_relu), "torch", "bfloat16").verdict == "FAIL"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_both_branches_differentiated_are_right(dtype: str) -> None:
    def softplus(z: Tensor) -> Tensor:
        return torch.maximum(z, torch.zeros_like(z)) + torch.log1p(torch.exp(-z.abs()))

    assert sr.check_loss(loss_of(softplus), "torch", dtype, scale="log", embeddings="unit").passed
