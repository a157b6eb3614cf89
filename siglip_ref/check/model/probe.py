"""Weights, images and captions on which a model is checked: deterministic, exact in its dtype, blind to nothing.

Every number is an odd integer times a power of two, so none is zero. For float64 and float32 it fills the mantissa: one
product whose factors are rounded to fewer bits shows. For bfloat16 and float16 it has at most eight bits, which both
hold exactly. The sizes are chosen so that mistakes show:

- For float64 and float32 the stream between the blocks has a variance of about 1e-3: a layer norm's eps of 1e-6 is
  then a thousandth part of it, and 1e-5 instead moves the result by half a percent. In 16 bits eps is not to be seen,
  and a layer norm whose steps are all float16 would overflow on so small a stream: there the variance is about 1/4.
- The hidden values of every MLP spread over -4 to 4, where the forms of GELU differ most.
- Attention is neither uniform nor saturated; queries and keys have biases, so none of the four projections can stand
  in for another.
- The bias is about -log(B - 1), less one: the negatives' pull is a fifth to a whole of the positives', not a hundredth
  as at initialisation, and yet the two do not cancel.
- Images differ in content and in mean colour; captions are full, short, and almost empty; one id comes twice in a
  caption, and padding repeats another.
"""

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.one_tower import sides_of
from siglip_ref.architecture.params import Params, shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.model.naflex import Patches

# standard deviation of the stream
STREAM = {"float64": 2.0**-5, "float32": 2.0**-5, "bfloat16": 0.5, "float16": 0.5}
SHORT = 7  # bits of odd integers that every format holds, with one to spare
BITS = {"float64": 53, "float32": 24, "bfloat16": SHORT, "float16": SHORT}
PAD = 1  # SigLIP's padding, which is its end of text


@dataclass(frozen=True)
class Probe:
    """What a model is run on: parameters by name, images (B, height, width, 3), tokens (B, N).

    grids : of a NaFlex model: rows and columns of patches of each image; images are then patches (B, N, P)
    """

    params: Params
    images: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    grids: np.ndarray[Any, Any] | None = None

    @property
    def given(self) -> Any:
        """The images as a tower takes them."""
        return self.images if self.grids is None else Patches(self.images, self.grids)


def odd_integers(shape: tuple[int, ...], spread: float, seed: list[int], bits: int = SHORT) -> np.ndarray[Any, Any]:
    """Odd integers of at most `bits` bits times a power of two, uniform in about -spread to spread, as float32; as
    float64 where they have more than 24 bits."""
    power = bits - math.ceil(math.log2(spread))  # spread * 2^power is at most 2^bits
    half = max(1, round(spread * 2.0**power / 2))
    drawn = np.random.default_rng(seed).integers(-half, half, shape, dtype=np.int8 if bits < 8 else np.int64)
    return np.asarray(np.ldexp(2.0 * drawn + 1, -power), np.float32 if bits <= 24 else np.float64)


def probe_params(cfg: Config, batch: int, dtype: Dtype, bits: int | None = None) -> Params:
    """The probe weights of a model: name -> array, in the shapes of `siglip_ref.architecture.params.shapes`; float32,
    or float64 where they have more than 24 bits.

    Parameters
    ----------
    cfg : the model
    batch : B, which sets the bias
    dtype : what the model computes in, which sets the size of the stream
    bits : of the odd integers; None: those of dtype, see BITS
    """
    bits = bits or BITS[dtype]
    params: Params = {}
    for name, shape in shapes(cfg).items():
        centre, deviation = _scale(name, shape, cfg, STREAM[dtype])
        of_sum = bits - 2 if centre else bits  # the sum must fit, too
        drawn = odd_integers(shape, math.sqrt(3) * deviation, [zlib.crc32(name.encode())], of_sum)
        params[name] = drawn.dtype.type(centre) + drawn
    if "log_scale" not in shapes(cfg):  # a tower alone
        return params
    # cosines of unrelated unit vectors are about 1 / sqrt(D): times this scale, the logits spread by one
    scalars = {"log_scale": round(math.log(cfg.embed) * 4) / 8, "bias": -round(math.log(batch - 1) * 16) / 16 - 1}
    for name, value in scalars.items():
        finer = odd_integers((), 1 / 16, [zlib.crc32(name.encode())], bits - 8) if bits > 8 else np.float32(0)
        params[name] = np.asarray(finer.dtype.type(value) + finer)
    return params


def probe_images(cfg: Config, batch: int, bits: int = SHORT) -> np.ndarray[Any, Any]:
    """Images (B, height, width, 3) in -1 to 1, each with a colour of its own under its own noise."""
    height, width = cfg.image_size if "image" in sides_of(cfg) else (1, 1)
    noise = odd_integers((batch, height, width, 3), 0.25, [1], bits - 3)
    corner = np.arange(batch)[:, None] >> np.arange(3) & 1  # (B, 3): the corners of the colour cube, one after another
    colour = (2 * corner - 1) * odd_integers((batch, 3), 0.25, [2], bits=4) + (corner - 0.5)
    return np.asarray(noise + colour[:, None, None] / 2, noise.dtype)


def probe_grids(cfg: Config, batch: int) -> np.ndarray[Any, Any]:
    """Rows and columns of patches (B, 2) of images that a NaFlex tower sees: fewer rows, and more columns, than its
    table of positions has; the other way round; as many; and both fewer."""
    side, room = cfg.grid[0], cfg.patches
    few, many = max(1, side // 2), min(2 * side - 1, room // max(1, side // 2))
    kinds = [(few, many), (many, few), (side, side), (max(1, side - 1), few)]
    return np.array([kinds[row % len(kinds)] for row in range(batch)])


def probe_patches(cfg: Config, batch: int, bits: int = SHORT) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Patches (B, N, P) of images of many shapes, zero beyond each image's own; and their grids."""
    grids = probe_grids(cfg, batch)
    images = probe_images(replace(cfg, image_size=(cfg.patch, cfg.patches * cfg.patch)), batch, bits)
    values = images.reshape(batch, cfg.patch, cfg.patches, cfg.patch * 3).swapaxes(1, 2).reshape(batch, cfg.patches, -1)
    own = np.arange(cfg.patches) < grids.prod(-1)[:, None]
    return values * own[..., None].astype(values.dtype), grids


def probe_tokens(cfg: Config, batch: int) -> np.ndarray[Any, Any]:
    """Captions (B, N): the first is full and has one id twice, the others are shorter and shorter, then padding."""
    if "text" not in sides_of(cfg):
        return np.zeros((batch, 1), int)
    length, vocabulary = cfg.text_length, cfg.vocabulary
    tokens = np.random.default_rng(3).integers(2, vocabulary, (batch, length))
    tokens[0, : min(3, length)] = (vocabulary - 1, 0, vocabulary - 1)[: min(3, length)]
    for row in range(1, batch):
        tokens[row, max(1, length * (batch - row) // (batch + 1)) :] = PAD
    return tokens


def model_probe(cfg: Config, batch: int, dtype: Dtype, params: Params | None = None) -> Probe:
    """Everything a model is run on; `params` given (the model's own): only images and captions are drawn."""
    params = probe_params(cfg, batch, dtype) if params is None else params
    if cfg.naflex and "image" in sides_of(cfg):
        patches, grids = probe_patches(cfg, batch, BITS[dtype])
        return Probe(params, patches, probe_tokens(cfg, batch), grids)
    return Probe(params, probe_images(cfg, batch, BITS[dtype]), probe_tokens(cfg, batch))


def _scale(name: str, shape: tuple[int, ...], cfg: Config, stream: float) -> tuple[float, float]:
    """Where a tensor's numbers lie: their centre and their standard deviation."""
    tower = cfg.image if name.startswith("image") else cfg.text
    branch = stream / math.sqrt(max(tower.depth, 1))  # so that the stream stays small through all blocks
    if "/pool/" in name:
        branch = stream
    fan_in = shape[0] if len(shape) == 2 else 1
    part = "/".join(name.split("/")[-2:])
    by_part = {
        "patch/kernel": 3 * stream / math.sqrt(fan_in),
        "patch/bias": stream / 4,
        "image/position": stream / 2,
        "text/token": stream,
        "widen/kernel": 1 / math.sqrt(fan_in),
        "text/position": stream / 2,
        "pool/probe": 1.0,
        "q/kernel": 1.5 / math.sqrt(fan_in),
        "k/kernel": 1.5 / math.sqrt(fan_in),
        "v/kernel": 1 / math.sqrt(fan_in),
        "in/kernel": 1.5 / math.sqrt(fan_in),
        "head/kernel": 1 / math.sqrt(fan_in),
        "head/bias": 0.25,
        "in/bias": 0.5,
    }
    if part.endswith("gamma"):
        return 1.0, 0.25
    if part.endswith("beta"):
        return 0.0, 0.25
    if part in by_part:
        return 0.0, by_part[part]
    if part == "out/kernel":
        return 0.0, 2 * branch / math.sqrt(fan_in)
    if part == "out/bias":
        return 0.0, branch / 4
    return 0.0, 0.25  # biases of q, k, v; the scalars are set by the caller
