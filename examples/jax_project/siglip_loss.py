"""A project's own loss in JAX, compiled."""

import jax
import jax.numpy as jnp


@jax.jit
def siglip_loss(image_embed: jax.Array, text_embed: jax.Array, log_scale: jax.Array, bias: jax.Array) -> jax.Array:
    """mean over images of the sum over texts of -log sigmoid(+-logit)."""
    logits = image_embed @ text_embed.T * jnp.exp(log_scale) + bias
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)
