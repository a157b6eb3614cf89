"""Check a model in MLX, or in any framework that siglip-ref has never heard of: an Adapter is two methods.

Run it: pip install "mlx[cpu]", on a Mac mlx; python examples/check_mlx_model.py
"""

import sys
from dataclasses import dataclass

import numpy as np

import siglip_ref as sr
from siglip_ref.check.model.adapters import Run

try:
    import mlx.core as mx
    import mlx.nn as nn
except ImportError:
    sys.exit(print('pip install "mlx[cpu]"'))  # nothing to run here, and nothing wrong


def attention(query, x, p, name, heads):
    q, k, v = (y @ p[f"{name}/{n}/kernel"] + p[f"{name}/{n}/bias"] for n, y in (("q", query), ("k", x), ("v", x)))
    q, k, v = (y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2) for y in (q, k, v))
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5).swapaxes(1, 2)
    return y.reshape(query.shape) @ p[f"{name}/out/kernel"] + p[f"{name}/out/bias"]


def norm(x, p, name):
    return mx.fast.layer_norm(x, p[f"{name}/gamma"], p[f"{name}/beta"], 1e-6)


def mlp(x, p, name):
    return (
        nn.gelu_approx(x @ p[f"{name}/in/kernel"] + p[f"{name}/in/bias"]) @ p[f"{name}/out/kernel"]
        + p[f"{name}/out/bias"]
    )


def encoder(x, p, side, tower, seen):
    seen[f"{side}/stem"] = x
    for name in (f"{side}/block{i:02d}" for i in range(tower.depth)):
        y = norm(x, p, f"{name}/norm1")
        x = seen[f"{name}/+attn"] = x + attention(y, y, p, f"{name}/attn", tower.heads)
        x = seen[f"{name}/+mlp"] = x + mlp(norm(x, p, f"{name}/norm2"), p, f"{name}/mlp")
    seen[f"{side}/norm"] = norm(x, p, f"{side}/norm")
    return seen[f"{side}/norm"]


def loss_fn(p, images, tokens, cfg):
    seen, (b, h, w, _), s = {}, images.shape, cfg.patch
    x = images.reshape(b, h // s, s, w // s, s, 3).swapaxes(2, 3).reshape(b, -1, s * s * 3)
    x = encoder(x @ p["image/patch/kernel"] + p["image/patch/bias"] + p["image/position"], p, "image", cfg.image, seen)
    x = attention(mx.broadcast_to(p["image/pool/probe"], (b, 1, x.shape[-1])), x, p, "image/pool/attn", cfg.image.heads)
    image = seen["image/pool"] = (x + mlp(norm(x, p, "image/pool/norm"), p, "image/pool/mlp"))[:, 0]
    text = seen["text/pool"] = encoder(p["text/token"][tokens] + p["text/position"], p, "text", cfg.text, seen)[:, -1]
    text = seen["text/head"] = text @ p["text/head/kernel"] + p["text/head/bias"]
    image, text = (y / mx.linalg.norm(y, axis=-1, keepdims=True) for y in (image, text))
    seen["image/embed"], seen["text/embed"] = image, text
    logits = seen["logits"] = mx.exp(p["log_scale"]) * image @ text.T + p["bias"]
    return -nn.log_sigmoid((2 * mx.eye(b) - 1).astype(logits.dtype) * logits).sum() / b, seen


@dataclass
class Mlx:
    config: sr.Config
    name: str = "MLX"

    def parameters(self, dtype):  # the model's own weights, for weights="own"
        return {name: np.asarray(value, np.float32) for name, value in sr.init(self.config).items()}

    def run(self, params, images, tokens, dtype):
        p = {name: mx.array(value).astype(getattr(mx, dtype)) for name, value in params.items()}
        given = mx.array(np.asarray(images, np.float32)).astype(getattr(mx, dtype)), mx.array(tokens)
        (loss, seen), grads = mx.value_and_grad(loss_fn)(p, *given, self.config)
        loss, seen, grads = (
            ({n: np.array(v.astype(mx.float32)) for n, v in x.items()}) for x in ({"": loss}, seen, grads)
        )
        return Run(loss[""], seen, grads)


if __name__ == "__main__":
    for dtype in ("float32", "bfloat16"):
        print(report := sr.check_model(Mlx(sr.config("tiny")), dtype=dtype))
        report.raise_if_failed()
