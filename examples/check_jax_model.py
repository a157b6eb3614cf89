"""Check a JAX model of your own: a two-tower model on a parameter tree in big_vision's layout.

Run it: python examples/check_jax_model.py
Whatever computes the loss (Flax, Equinox, plain functions as here), `BigVision` needs only the tree and
loss_fn(params, images, tokens). Returning activations beside the loss is optional; it shows where a deviation begins.
"""

import jax
import jax.numpy as jnp
import numpy as np

import siglip_ref as sr
from siglip_ref.check.model.adapters.big_vision import BigVision

WIDTH, HEADS, HIDDEN, PATCH, GRID, VOCABULARY, LENGTH, DEPTH = 10, 2, 13, 4, 5, 29, 9, 2
EPS = 1e-6


def layer_norm(x, p):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + EPS) * p["scale"] + p["bias"]


def attention(x_query, x_key, p):
    q, k, v = (
        jnp.einsum("bnc,chd->bnhd", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("query", x_query), ("key", x_key), ("value", x_key))
    )
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5)
    mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    return jnp.einsum("bnhd,hdc->bnc", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def mlp(x, p):
    x = jax.nn.gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], approximate=True)
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def encoder(x, p, tower, seen):
    for i in range(DEPTH):
        block = p[f"encoderblock_{i}"]
        y = layer_norm(x, block["LayerNorm_0"])
        x = seen[f"{tower}/block{i:02d}/+attn"] = x + attention(y, y, block["MultiHeadDotProductAttention_0"])
        x = seen[f"{tower}/block{i:02d}/+mlp"] = x + mlp(layer_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
    return layer_norm(x, p["encoder_norm"])


def image_tower(images, p, seen):
    batch, height, width, _ = images.shape
    grid = images.reshape(batch, height // PATCH, PATCH, width // PATCH, PATCH, 3).swapaxes(2, 3)
    kernel = p["embedding"]["kernel"].reshape(-1, WIDTH)
    x = grid.reshape(batch, -1, PATCH * PATCH * 3) @ kernel + p["embedding"]["bias"] + p["pos_embedding"]
    seen["image/stem"] = x
    x = seen["image/norm"] = encoder(x, p["Transformer"], "image", seen)
    head = p["MAPHead_0"]
    x = attention(jnp.tile(head["probe"], (batch, 1, 1)), x, head["MultiHeadDotProductAttention_0"])
    pooled = seen["image/pool"] = (x + mlp(layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"]))[:, 0]
    return pooled


def text_tower(tokens, p, seen):
    x = seen["text/stem"] = p["Embed_0"]["embedding"][tokens] + p["pos_embedding"]
    x = seen["text/norm"] = encoder(x, p["Encoder_0"], "text", seen)
    x = seen["text/pool"] = x[:, -1]
    x = seen["text/head"] = x @ p["head"]["kernel"] + p["head"]["bias"]
    return x


def normalize(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def loss_fn(params, images, tokens):
    seen = {}
    image = seen["image/embed"] = normalize(image_tower(images, params["img"], seen))
    text = seen["text/embed"] = normalize(text_tower(tokens, params["txt"], seen))
    logits = seen["logits"] = image @ text.T * jnp.exp(params["t"]) + params["b"]
    signs = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum(-1).mean(), seen


def init(seed=0):
    """Random weights in big_vision's layout; the check replaces them by its own."""
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return jnp.asarray(0.1 * rng.standard_normal(shape, np.float32))

    def dense(*shape, bias):
        return {"kernel": tensor(*shape), "bias": tensor(*bias)}

    def norm():
        return {"scale": 1 + tensor(WIDTH), "bias": tensor(WIDTH)}

    def multi_head():
        size = WIDTH // HEADS
        qkv = {name: dense(WIDTH, HEADS, size, bias=(HEADS, size)) for name in ("query", "key", "value")}
        return qkv | {"out": dense(HEADS, size, WIDTH, bias=(WIDTH,))}

    def two_layers():
        return {"Dense_0": dense(WIDTH, HIDDEN, bias=(HIDDEN,)), "Dense_1": dense(HIDDEN, WIDTH, bias=(WIDTH,))}

    def blocks():
        block = {
            f"encoderblock_{i}": {
                "LayerNorm_0": norm(),
                "MultiHeadDotProductAttention_0": multi_head(),
                "LayerNorm_1": norm(),
                "MlpBlock_0": two_layers(),
            }
            for i in range(DEPTH)
        }
        return block | {"encoder_norm": norm()}

    head = {
        "probe": tensor(1, 1, WIDTH),
        "MultiHeadDotProductAttention_0": multi_head(),
        "LayerNorm_0": norm(),
        "MlpBlock_0": two_layers(),
    }
    image = {
        "embedding": dense(PATCH, PATCH, 3, WIDTH, bias=(WIDTH,)),
        "pos_embedding": tensor(1, GRID * GRID, WIDTH),
        "Transformer": blocks(),
        "MAPHead_0": head,
    }
    text = {
        "Embed_0": {"embedding": tensor(VOCABULARY, WIDTH)},
        "pos_embedding": tensor(1, LENGTH, WIDTH),
        "Encoder_0": blocks(),
        "head": dense(WIDTH, WIDTH, bias=(WIDTH,)),
    }
    return {"img": image, "txt": text, "t": tensor(1), "b": tensor(1)}


def model():
    """What `siglip-ref check model examples/check_jax_model.py:model` checks."""
    return BigVision(loss_fn, init(), name="the JAX model of examples/check_jax_model.py")


if __name__ == "__main__":
    report = sr.check_model(model(), dtype="float32")
    print(report)
    report.raise_if_failed()
