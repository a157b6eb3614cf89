"""Right sigmoid losses in JAX that took no part in setting any tolerance; the known ones stand in tests/interop."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def _signed(logits: Any) -> Any:
    return jnp.where(jnp.eye(*logits.shape, dtype=bool), -logits, logits)


def softplus(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    return jax.nn.softplus(_signed(x @ y.T * jnp.exp(log_scale) + bias)).sum() / len(x)


def cross_entropy(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    logits = (jnp.exp(log_scale) * x) @ y.T + bias
    return optax.sigmoid_binary_cross_entropy(logits, jnp.eye(len(x), dtype=logits.dtype)).sum(1).mean()


def wide_logits(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """Products that come out in float32, as on accelerators."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.einsum("id,jd->ij", x, y, preferred_element_type=wide) * jnp.exp(log_scale.astype(wide)) + bias
    return -jax.nn.log_sigmoid(-_signed(logits)).sum() / len(x)


def scanned(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """Rows one by one, added up in float32 at least."""

    def row(total: Any, both: Any) -> Any:
        image, own = both
        logits = y @ image * jnp.exp(log_scale) + bias
        return total + jax.nn.softplus(jnp.where(own, -logits, logits)).sum().astype(total.dtype), None

    start = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    return jax.lax.scan(row, start, (x, jnp.eye(len(x), dtype=bool)))[0] / len(x)


def mapped(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    def pair(image: Any, text: Any, own: Any) -> Any:
        logit = jnp.dot(image, text) * jnp.exp(log_scale) + bias
        return jnp.logaddexp(0, jnp.where(own, -logit, logit))

    rows = jax.vmap(jax.vmap(pair, (None, 0, 0)), (0, None, 0))
    return rows(x, y, jnp.eye(len(x), dtype=bool)).sum(1).mean()


@jax.checkpoint
def recomputed(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    logits = x @ y.T * jnp.exp(log_scale) + bias
    return (jax.nn.softplus(logits).sum() - jnp.trace(logits)) / len(x)


def unit_by_root(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    x, y = (rows * jax.lax.rsqrt((rows * rows).sum(-1, keepdims=True)) for rows in (x, y))
    return softplus(x, y, log_scale, bias)


def negatives_by_logarithm(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """Own pairs by their rows, all others out of the product, with log sigmoid: a stranger's."""
    scale, others = jnp.exp(log_scale), 1 - jnp.eye(len(x), dtype=x.dtype)
    own = scale * (x * y).sum(-1) + bias
    apart = (others * jax.nn.log_sigmoid(-(scale * x @ y.T + bias))).sum()
    return -(apart + jax.nn.log_sigmoid(own).sum()) / len(x)


PLAIN = (softplus, cross_entropy, wide_logits, scanned, mapped, recomputed, negatives_by_logarithm)
RAW = (unit_by_root,)
