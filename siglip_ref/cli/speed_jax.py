"""The same model in jax.numpy, on the same parameter dict: what XLA makes of it."""

from typing import Any

import jax
import jax.numpy as jnp

from siglip_ref.architecture.sizes import Config, Tower

Weights = dict[str, Any]


def _norm(x: Any, w: Weights, name: str) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}/gamma"] + w[f"{name}/beta"]


def _linear(x: Any, w: Weights, name: str) -> Any:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def _attention(query: Any, keys: Any, w: Weights, name: str, heads: int) -> Any:
    def split(x: Any) -> Any:
        return x.reshape(*x.shape[:2], heads, -1)

    q, k, v = (split(_linear(x, w, f"{name}/{part}")) for x, part in ((query, "q"), (keys, "k"), (keys, "v")))
    mixed = jax.nn.dot_product_attention(q, k, v)
    return _linear(mixed.reshape(query.shape), w, f"{name}/out")


def _mlp(x: Any, w: Weights, name: str) -> Any:
    return _linear(jax.nn.gelu(_linear(x, w, f"{name}/in"), approximate=True), w, f"{name}/out")


def _encoder(x: Any, w: Weights, name: str, tower: Tower) -> Any:
    for layer in range(tower.depth):
        block = f"{name}/block{layer:02d}"
        normed = _norm(x, w, f"{block}/norm1")
        x = x + _attention(normed, normed, w, f"{block}/attn", tower.heads)
        x = x + _mlp(_norm(x, w, f"{block}/norm2"), w, f"{block}/mlp")
    return _norm(x, w, f"{name}/norm")


def image_forward(w: Weights, images: Any, cfg: Config) -> Any:
    """Image embeddings before normalisation (B, D)."""
    batch, (rows, columns), patch = len(images), cfg.grid, cfg.patch
    grid = images.reshape(batch, rows, patch, columns, patch, 3).swapaxes(2, 3)
    x = _linear(grid.reshape(batch, rows * columns, -1), w, "image/patch") + w["image/position"]
    tokens = _encoder(x, w, "image", cfg.image)
    probe = jnp.broadcast_to(w["image/pool/probe"], (batch, 1, cfg.image.width))
    read = _attention(probe, tokens, w, "image/pool/attn", cfg.image.heads)
    return (read + _mlp(_norm(read, w, "image/pool/norm"), w, "image/pool/mlp"))[:, 0]


def text_forward(w: Weights, tokens: Any, cfg: Config) -> Any:
    """Text embeddings before normalisation (B, D)."""
    x = w["text/token"][tokens] + w["text/position"][: tokens.shape[1]]
    pooled = _encoder(x, w, "text", cfg.text)[:, -1]
    return _linear(pooled, w, "text/head") if cfg.text_head else pooled


def pair_loss(x: Any, y: Any, log_scale: Any, bias: Any) -> Any:
    """The sigmoid loss as everyone writes it."""
    logits = jnp.exp(log_scale) * x @ y.T + bias
    labels = 2 * jnp.eye(len(x), dtype=x.dtype) - 1
    return -jax.nn.log_sigmoid(labels * logits).sum() / len(x)


def model_loss(w: Weights, images: Any, tokens: Any, cfg: Config) -> Any:
    """Loss of a batch of pairs."""
    x, y = image_forward(w, images, cfg), text_forward(w, tokens, cfg)
    x, y = (z / (jnp.sqrt((z * z).sum(-1, keepdims=True)) + 1e-8) for z in (x, y))
    return pair_loss(x, y, w["log_scale"], w["bias"])


def adamw_step(w: Weights, m: Weights, v: Weights, step: Any, images: Any, tokens: Any, cfg: Config) -> Any:
    """One training step: gradients, clip to global norm 1, AdamW."""
    loss, grads = jax.value_and_grad(model_loss)(w, images, tokens, cfg)
    norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1, 1 / (norm + 1e-6)), grads)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    one, two = 1 - 0.9**step, 1 - 0.999**step
    w = jax.tree.map(lambda w, m, v: w - 1e-3 * (m / one / (jnp.sqrt(v / two) + 1e-8) + 1e-4 * w), w, m, v)
    return loss, w, m, v
