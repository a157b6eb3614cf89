"""Parameters of the recipe: those of the model, of its decoder, of its two heads, and the mask token."""

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.architecture import params as model
from siglip_ref.architecture.params import Params
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.siglip2.choices import Choices, Distillation
from siglip_ref.siglip2.teacher import Teacher, teacher_of

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Entry = tuple[str, tuple[int, ...], Draw]


def table(cfg: Config, choices: Choices) -> Iterator[Entry]:
    """What the recipe adds to the model: name, shape, how it is drawn.

    Source of the distributions: big_vision models/proj/cappa/cappa.py; DINO vision_transformer.py, DINOHead. The mask
    token is random (arXiv 2502.14786, section 2.3); its deviation is that of the heads.
    """
    yield from _decoder(cfg, choices.captioning.decoder)
    yield from _head("local", cfg.image.width, choices.local)
    if not choices.shared_head:
        yield from _head("mask", cfg.image.width, choices.mask)
    yield "mask/token", (cfg.image.width,), _deviation(0.02)


def shapes(cfg: Config, choices: Choices) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, the model's first."""
    return model.shapes(cfg) | {name: shape for name, shape, _ in table(cfg, choices)}


def init(cfg: Config, choices: Choices, seed: int = 0, dtype: DTypeLike = np.float64) -> Params:
    """Fresh parameters; as in the model, each has a generator of its own, seeded by `seed` and its name."""
    fresh = {
        name: np.asarray(draw(np.random.default_rng([seed, zlib.crc32(name.encode())]), shape), dtype)
        for name, shape, draw in table(cfg, choices)
    }
    return model.init(cfg, seed, dtype) | fresh


def born(params: Params, choices: Choices) -> Teacher:
    """The teacher at 80 % of the training: the student as it is, and centres of zero."""
    one = params["log_scale"]
    centres = {name: np.zeros(getattr(choices, name).prototypes, one.dtype) for name in ("local", "mask")}
    return Teacher(teacher_of(params), centres)


def _decoder(cfg: Config, tower: Tower) -> Iterator[Entry]:
    width, read = tower.width, cfg.image.width
    yield "decoder/token", (cfg.vocabulary + 1, width), _deviation(1.0)
    yield "decoder/position", (cfg.text_length, width), _deviation(1 / math.sqrt(width))
    for layer in range(tower.depth):
        block = f"decoder/block{layer:02d}"
        yield f"{block}/norm1/gamma", (width,), _ones
        for kind, source in (("self", width), ("cross", read)):
            for part in ("q", "k", "v", "out"):
                yield f"{block}/{kind}/{part}/kernel", (source if part in "kv" else width, width), _xavier_uniform
            yield f"{block}/{'norm2' if kind == 'self' else 'norm3'}/gamma", (width,), _ones
        yield f"{block}/mlp/in/kernel", (width, tower.mlp), _xavier_uniform
        yield f"{block}/mlp/out/kernel", (tower.mlp, width), _xavier_uniform
    yield "decoder/norm/gamma", (width,), _ones
    yield "decoder/norm/beta", (width,), _zeros
    yield "decoder/out/kernel", (width, cfg.vocabulary), _zeros
    yield "decoder/out/bias", (cfg.vocabulary,), _zeros


def _head(name: str, width: int, own: Distillation) -> Iterator[Entry]:
    widths = (width, own.hidden, own.hidden, own.bottleneck)
    for layer in range(3):
        yield f"{name}/layer{layer}/kernel", widths[layer : layer + 2], _deviation(0.02)
        yield f"{name}/layer{layer}/bias", (widths[layer + 1],), _zeros
    yield f"{name}/prototypes/direction", (own.prototypes, own.bottleneck), _deviation(0.02)
    yield f"{name}/prototypes/gain", (own.prototypes,), _ones


def _deviation(size: float) -> Draw:
    return lambda rng, shape: size * rng.standard_normal(shape)


def _xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    bound = math.sqrt(6 / sum(shape))
    return rng.uniform(-bound, bound, shape)


def _ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape)


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)
