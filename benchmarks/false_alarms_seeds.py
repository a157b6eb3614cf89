"""What a seed changes: never the mathematics, always the roundings.

Reordering pairs, widths, heads and hidden units of a task reorders its exact answer and nothing else; a program that is
right rounds at other places. So one proven vector gives as many runs as there are orders: the seed puts the inputs into
another order, and what the program answers is put back before it is judged. Other seeds draw probes that nobody saw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.check.call.frameworks import Inputs, Outcome
from siglip_ref.check.engine.expected.probes import Probe, short
from siglip_ref.check.engine.expected.rows import UNIT, full_rows, unit_rows
from siglip_ref.check.model.adapters import Run
from siglip_ref.ops.elementary import Array

HELD_OUT = (
    1000  # seeds from here on; what was calibrated used 0, and the inputs in the order in which they are packaged
)


@dataclass(frozen=True)
class LossOrder:
    """Another order of the pairs and of the dimensions, some of which change sign."""

    pairs: Array
    dims: Array
    signs: Array

    def there(self, rows: Array) -> Array:
        return rows[np.ix_(self.pairs, self.dims)] * self.signs

    def back(self, rows: Array | None) -> Array | None:
        if rows is None or rows.shape != (len(self.pairs), len(self.dims)):
            return rows
        out = np.empty_like(rows)
        out[np.ix_(self.pairs, self.dims)] = rows * self.signs
        return out

    def inputs(self, given: Inputs) -> Inputs:
        return replace(given, image_embed=self.there(given.image_embed), text_embed=self.there(given.text_embed))

    def outcome(self, got: Outcome) -> Outcome:
        return replace(got, gradients={name: self.back(value) for name, value in got.gradients.items()})


def loss_order(seed: int, shape: tuple[int, int]) -> LossOrder:
    rng = np.random.default_rng([seed, *shape])
    return LossOrder(rng.permutation(shape[0]), rng.permutation(shape[1]), rng.choice([-1.0, 1.0], shape[1]))


def drawn_probe(seed: int, raw: bool, full: str | None = None) -> Probe:
    """Inputs that no calibration saw: any shape, scale and bias, fresh to saturated; raw: rows of any length.

    full : every second probe has the full mantissas of this format; None: all are exact in 16 bits
    """
    rng = np.random.default_rng([seed, 2303])
    shape = (int(rng.choice([1, 2, 5, 9, 16, 23, 33])), int(rng.choice([5, 8, 13, 20, 32])))

    def rows(directions: Array) -> Array:
        return full_rows(directions, full) if full and seed % 2 else unit_rows(directions, rng) / UNIT

    image = rows(rng.standard_normal(shape))
    likeness, other = rng.uniform(-0.5, 1.0), rng.standard_normal(shape) / np.sqrt(shape[1])
    text = rows(likeness * image + 0.8 * other)
    if rng.random() < 0.2:  # duplicate captions
        text[1::3] = text[: len(text[1::3]) * 3 : 3]
    log_scale, balanced = short(rng.uniform(1.5, 4.8)), -np.log(max(shape[0] - 1, 2))
    bias = short(float(rng.choice([balanced, balanced, -10.0, -16.0, rng.uniform(-40, 10)])))
    lengths = 2.0 ** (rng.integers(-3, 4, (2, shape[0], 1)) if raw else np.zeros((2, 1, 1)))
    name = f"drawn {seed}"
    return Probe(name, image * lengths[0], text * lengths[1], log_scale, short(np.exp(log_scale)), bias)


@dataclass(frozen=True)
class ModelOrder:
    """Another order along every axis of a two-tower model whose order means nothing: see `axes`."""

    orders: Mapping[str, Array]
    cfg: Config

    def there(self, name: str, tensor: Array) -> Array:
        for axis, label in enumerate(axes(name, tensor.ndim, self.cfg)):
            if label in self.orders:
                tensor = np.take(tensor, self.orders[label], axis)
        return tensor

    def back(self, name: str, tensor: Array) -> Array:
        for axis, label in enumerate(axes(name, tensor.ndim, self.cfg)):
            if label in self.orders:
                tensor = np.take(tensor, np.argsort(self.orders[label]), axis)
        return tensor

    def run(self, got: Run) -> Run:
        """Values and gradients in the order of the vector."""
        parts = (
            {name: self.back(name, value) for name, value in part.items()} for part in (got.activations, got.grads)
        )
        activations, grads = parts
        return replace(got, activations=activations, grads=grads)


def model_order(seed: int, cfg: Config, batch: int) -> ModelOrder:
    rng = np.random.default_rng([seed, batch])
    orders = {"batch": rng.permutation(batch), "embed": rng.permutation(cfg.embed)}
    orders["text/width"] = rng.permutation(cfg.text.width) if cfg.text_head else orders["embed"]
    for side, tower in (("image", cfg.image), ("text", cfg.text)):
        size = tower.width // tower.heads
        for block in (*(f"{side}/block{i:02d}" for i in range(tower.depth)), *(["image/pool"] * (side == "image"))):
            orders[f"{block}/mlp"] = rng.permutation(tower.mlp)
            heads = rng.permutation(tower.heads)
            for kind in ("qk", "v"):  # queries and keys meet feature by feature, values and the output projection too
                orders[f"{block}/attn/{kind}"] = np.concatenate([size * h + rng.permutation(size) for h in heads])
    return ModelOrder(orders, cfg)


def axes(name: str, ndim: int, cfg: Config) -> tuple[str, ...]:
    """What stands along each axis of a parameter or an activation; "" where the order must stay (tokens, pixels, ids).

    >>> axes("image/block00/mlp/in/kernel", 2, sr.config("tiny"))
    ('embed', 'image/block00/mlp')
    """
    side, *middle, last = name.split("/") if "/" in name else ("", name)
    width = "text/width" if side == "text" else "embed"  # the image tower's width is the embedding's
    where, part = "/".join([side, *middle]), (middle or [""])[-1]
    inner = {"q": "qk", "k": "qk", "v": "v", "out": "v"}
    if name == "logits":
        return "batch", "batch"
    if last in ("stem", "norm", "pool", "head", "embed", "+attn", "+mlp"):  # activations
        return ("batch", *[""] * (ndim - 2), "embed" if last in ("head", "embed") else width)
    if last == "kernel" and part in ("patch", "head"):
        return ("" if part == "patch" else width), "embed"
    if last in ("kernel", "bias") and "attn" in middle:
        features = f"{where.rsplit('/', 1)[0]}/{inner[part]}"
        pair = (features, width) if part == "out" else (width, features)
        return pair if last == "kernel" else pair[1:]
    if last in ("kernel", "bias") and "mlp" in middle:
        hidden = where.rsplit("/", 1)[0]
        pair = (hidden, width) if part == "out" else (width, hidden)
        return pair if last == "kernel" else pair[1:]
    if ndim == 0:
        return ()
    if last == "bias":  # of the patches, of the head
        return ("embed",)
    return (*[""] * (ndim - 1), width)  # norms, positions, tokens, the probe
