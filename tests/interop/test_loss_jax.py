"""check_loss on JAX code: right losses pass in every dtype, mistakes fail, the 64-bit setting stays the user's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import siglip_ref as sr
from siglip_ref.check.call.frameworks import framework_of
from siglip_ref.errors import UsageError

Loss = Callable[..., Any]
DTYPES = ("float64", "float32", "bfloat16", "float16")


def plain(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    logits = jnp.exp(log_scale) * (x @ y.T) + bias
    signs = 2 * jnp.eye(len(x), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(x)


def big_vision(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """Raw rows, normalised with big_vision's eps; its order of operations."""
    x, y = (rows / (jnp.linalg.norm(rows, axis=1, keepdims=True) + 1e-8) for rows in (x, y))
    logits = jnp.dot(x, y.T) * jnp.exp(log_scale) + bias
    eye = jnp.eye(x.shape[0], dtype=logits.dtype)
    return jnp.mean(-jnp.sum(jax.nn.log_sigmoid((-jnp.ones_like(logits) + 2 * eye) * logits), axis=-1))


def by_rows(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """One image after the other, as a loop that XLA sees."""

    def row(index: Any) -> Any:
        logits = y @ x[index] * jnp.exp(log_scale) + bias
        return jax.nn.softplus(logits).sum() - logits[index]

    return jax.lax.map(row, jnp.arange(len(x))).sum() / len(x)


def positives_by_rows(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """Own pairs by their rows, all others out of the product; sums of equal terms run on."""
    scale, others = jnp.exp(log_scale), 1 - jnp.eye(len(x), dtype=x.dtype)
    own = scale * (x * y).sum(-1) + bias
    return ((others * jax.nn.softplus(scale * x @ y.T + bias)).sum() + jax.nn.softplus(-own).sum()) / len(x)


@jax.custom_vjp
def by_hand(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    return plain(x, y, log_scale, bias)


def _forward(*inputs: Any) -> Any:
    return plain(*inputs), jax.grad(plain, (0, 1, 2, 3))(*inputs)


by_hand.defvjp(_forward, lambda gradients, upstream: tuple(gradient * upstream for gradient in gradients))


@jax.custom_vjp
def deaf(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    return plain(x, y, log_scale, bias)


deaf.defvjp(_forward, lambda gradients, upstream: gradients)


def text_stopped(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    return plain(x, jax.lax.stop_gradient(y), log_scale, bias)


def no_negatives(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    return -jax.nn.log_sigmoid((x * y).sum(-1) * jnp.exp(log_scale) + bias).mean()


def log_of_sigmoid(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    logits = jnp.exp(log_scale) * (x @ y.T) + bias
    return -jnp.log(jax.nn.sigmoid((2 * jnp.eye(len(x), dtype=logits.dtype) - 1) * logits)).sum() / len(x)


@pytest.mark.parametrize(
    ("fn", "dtype"),
    [(fn, dtype) for fn in (plain, big_vision) for dtype in DTYPES]
    + [(by_rows, "float64"), (positives_by_rows, "float32"), (by_hand, "float32"), (jax.jit(plain), "float32")],
)
@pytest.mark.sampled(3)
def test_right_losses_pass(fn: Loss, dtype: str) -> None:
    report = sr.check_loss(fn, framework="jax", dtype=dtype)
    assert report.passed and not report.not_checked, report
    assert max(row.excess for row in report.details if row.verdict == "pass") <= 0.5

    if dtype == "float64":
        assert max(row.error for row in report.details if not row.probe.startswith("saturated, right")) < 1e-11


@pytest.mark.parametrize(
    ("fn", "dtype"),
    [(text_stopped, "float64"), (no_negatives, "float32"), (log_of_sigmoid, "float32"), (log_of_sigmoid, "float64")],
)
def test_mistakes_fail(fn: Loss, dtype: str) -> None:
    assert sr.check_loss(fn, dtype=dtype).verdict == "FAIL"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_ignored_upstream_gradient_is_named(dtype: str) -> None:
    assert [f.id for f in sr.check_loss(deaf, framework="jax", dtype=dtype).findings] == ["upstream-gradient-ignored"]


def test_the_framework_is_seen_and_jit_changes_nothing() -> None:
    for fn in (plain, lambda *inputs: plain(*inputs), jax.jit(plain), by_hand):
        assert framework_of(fn) == "jax"


def test_64_bits_are_on_only_during_the_check() -> None:
    seen = set()

    def looks(*inputs: Any) -> Any:
        seen.add(str(inputs[0].dtype))
        return plain(*inputs)

    sr.check_loss(looks, dtype="float64").raise_if_failed()
    assert seen == {"float64"} and not jax.config.jax_enable_x64 and jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [({"precision": "autocast", "dtype": "bfloat16"}, "JAX has no autocast"), ({"device": "tpu:7"}, "device")],
)
def test_what_jax_cannot_do_is_explained(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sr.check_loss(plain, **options)
    with pytest.raises(UsageError, match=r"an array of shape \(9,\)"):
        sr.check_loss(lambda x, y, s, b: jnp.sum(x * y, 1) + s + b)
