"""Parameters: names, shapes and big_vision's initialisation. One flat dict, name -> array."""

import math
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.architecture.one_tower import has
from siglip_ref.architecture.sizes import Config, Tower

Params = dict[str, Any]
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def _ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape)


def _xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    fan_in, fan_out = (1, *shape)[-2:]  # the probe counts as one row: fan_in 1
    bound = math.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-bound, bound, shape)


def _lecun_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal cut at two standard deviations (which leaves deviation 0.8796), scaled to variance 1 / fan_in."""
    draw = rng.standard_normal(shape)
    while (outside := np.abs(draw) > 2).any():
        draw[outside] = rng.standard_normal(outside.sum())
    return draw / (0.87962566103423978 * math.sqrt(shape[0]))


def _normal_of_width(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) / math.sqrt(shape[-1])


def _almost_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * 1e-6


def _log_ten(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, math.log(10))


def _minus_ten(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, -10.0)


Entry = tuple[str, tuple[int, ...], Draw]


def _attention(prefix: str, width: int) -> Iterator[Entry]:
    for part in ("q", "k", "v", "out"):
        yield f"{prefix}/{part}/kernel", (width, width), _xavier_uniform
        yield f"{prefix}/{part}/bias", (width,), _zeros


def _mlp(prefix: str, width: int, hidden: int) -> Iterator[Entry]:
    yield f"{prefix}/in/kernel", (width, hidden), _xavier_uniform
    yield f"{prefix}/in/bias", (hidden,), _almost_zero
    yield f"{prefix}/out/kernel", (hidden, width), _xavier_uniform
    yield f"{prefix}/out/bias", (width,), _almost_zero


def _norm(prefix: str, width: int) -> Iterator[Entry]:
    yield f"{prefix}/gamma", (width,), _ones
    yield f"{prefix}/beta", (width,), _zeros


def _encoder(prefix: str, tower: Tower) -> Iterator[Entry]:
    for layer in range(tower.depth):
        block = f"{prefix}/block{layer:02d}"
        yield from _norm(f"{block}/norm1", tower.width)
        yield from _attention(f"{block}/attn", tower.width)
        yield from _norm(f"{block}/norm2", tower.width)
        yield from _mlp(f"{block}/mlp", tower.width, tower.mlp)
    yield from _norm(f"{prefix}/norm", tower.width)


def table(cfg: Config) -> Iterator[Entry]:
    """Every parameter in network order: its name, its shape, how it is drawn.

    Source of the distributions: big_vision's vit.py and text_transformer.py with Flax's defaults.
    """
    image, text = cfg.image, cfg.text
    yield "image/patch/kernel", (cfg.patch * cfg.patch * 3, image.width), _lecun_normal
    yield "image/patch/bias", (image.width,), _zeros
    yield "image/position", (cfg.patches, image.width), _normal_of_width
    yield from _encoder("image", image)
    yield "image/pool/probe", (image.width,), _xavier_uniform
    yield from _attention("image/pool/attn", image.width)
    yield from _norm("image/pool/norm", image.width)
    yield from _mlp("image/pool/mlp", image.width, image.mlp)
    yield "text/token", (cfg.vocabulary, cfg.bottleneck or text.width), _normal_of_width
    if cfg.bottleneck:  # nobody published its start: the product's rows are as long as those of a whole table
        yield "text/widen/kernel", (cfg.bottleneck, text.width), _normal_of_width
    yield "text/position", (cfg.text_length, text.width), _normal_of_width
    yield from _encoder("text", text)
    if cfg.text_head:
        yield "text/head/kernel", (text.width, cfg.embed), _lecun_normal
        yield "text/head/bias", (cfg.embed,), _zeros
    yield "log_scale", (), _log_ten
    yield "bias", (), _minus_ten


def shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in network order."""
    return dict(_shapes(cfg))


@lru_cache(maxsize=64)
def _shapes(cfg: Config) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, shape) for name, shape, _ in table(cfg) if has(cfg, name))


def count(cfg: Config) -> int:
    """Number of parameters.

    >>> from siglip_ref.architecture.sizes import config
    >>> count(config("B/16-256"))
    203202050
    """
    return sum(math.prod(shape) for shape in shapes(cfg).values())


def init(cfg: Config, seed: int = 0, dtype: DTypeLike = np.float64) -> Params:
    """Fresh parameters, drawn as big_vision does.

    Each tensor has a generator of its own, seeded by `seed` and its name: adding a layer changes no other tensor.

    Parameters
    ----------
    cfg : the model
    seed : any non-negative integer
    dtype : drawn in float64, then rounded to this

    Returns
    -------
    dict, name -> array of shape `shapes(cfg)[name]`
    """
    return {
        name: np.asarray(draw(np.random.default_rng([seed, zlib.crc32(name.encode())]), shape), dtype)
        for name, shape, draw in table(cfg)
    }
