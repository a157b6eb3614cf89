"""big_vision's layout: the tree of Flax parameters as paths, blocks one by one or stacked on a leading axis."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from siglip_ref.architecture.conventions import PRESETS, Conventions
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.checkpoint.tables.names import Entry, Shape, Table, entries, made, plausible
from siglip_ref.errors import UsageError

ENCODERS = {"image": "img/Transformer", "text": "txt/Encoder_0"}
EXTRA = ("txt/Encoder_0/pos_embedding",)  # early text towers had a second table of positions, added to the first
WIDEN = "txt/widen/kernel"  # ours: mSigLIP's code is not public
ATTENTION, MLP = "MultiHeadDotProductAttention_0", "MlpBlock_0"


def prefix(found: Mapping[str, Shape]) -> str:
    """ "params/" where every path starts with it, else nothing."""
    return "params/" if all(path.startswith("params/") for path in found) else ""


def plain(found: Mapping[str, Shape]) -> dict[str, Shape]:
    """The paths without the prefix."""
    return {path.removeprefix(prefix(found)): shape for path, shape in found.items()}


def read_config(
    found: Mapping[str, Shape],
    image_size: tuple[int, int] | None = None,
    conventions: Conventions | None = None,
    sides: tuple[str, ...] = ("image", "text"),
) -> Config:
    """Sizes as the shapes of the tree (without prefix) show them.

    Parameters
    ----------
    image_size : None: square
    sides : ("image",) or ("text",) for one tower alone
    """
    try:
        image = _image(found, image_size) if "image" in sides else {}
        text = _text(found) if "text" in sides else {}
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UsageError(
            expected="a tree in big_vision's layout: img/embedding/kernel (p, p, 3, W), img/Transformer/..., txt/...",
            got=f"{error} in a tree of {', '.join(sorted(found)[:4])} ...",
            cause="another layout, or another model",
            repair="write an Adapter for this tree: examples/ has one",
        ) from error
    return plausible(made(image, text, conventions or PRESETS["big_vision"]))


def _image(found: Mapping[str, Shape], image_size: tuple[int, int] | None) -> dict[str, Any]:
    width = found["img/embedding/bias"][0]
    kernel, position = found["img/embedding/kernel"], found["img/pos_embedding"]
    naflex = len(kernel) == 2
    patch = math.isqrt(kernel[0] // 3) if naflex else kernel[0]
    side = math.isqrt(math.prod(position) // width) * patch
    tower = _tower(found, ENCODERS["image"])
    return {"image": tower, "image_size": image_size or (side, side), "patch": patch, "naflex": naflex}


def _text(found: Mapping[str, Shape]) -> dict[str, Any]:
    vocabulary, columns = found["txt/Embed_0/embedding"]
    head = found.get("txt/head/kernel")
    return {
        "text": _tower(found, ENCODERS["text"]),
        "vocabulary": vocabulary,
        "text_length": found["txt/pos_embedding"][1],
        "text_head": head is not None,
        "embed": head[-1] if head else None,
        "bottleneck": columns if WIDEN in found else 0,
    }


def _tower(found: Mapping[str, Shape], encoder: str) -> Tower:
    stacked = f"{encoder}/encoderblock/{MLP}/Dense_0/kernel" in found
    blocks = {path.split("/")[2] for path in found if path.startswith(f"{encoder}/encoderblock")}
    first = "encoderblock" if stacked else "encoderblock_0"
    width, heads, _ = found[f"{encoder}/{first}/{ATTENTION}/query/kernel"][-3:]
    hidden = found[f"{encoder}/{first}/{MLP}/Dense_0/kernel"]
    return Tower(width, hidden[0] if stacked else len(blocks), hidden[-1], heads)


def table(cfg: Config, found: Mapping[str, Shape]) -> Table:
    """Our names and those of big_vision.

    `found` (paths without prefix) only says, for each tower, whether its blocks are stacked on a leading axis.
    """
    ours = shapes(cfg)
    stacked = [side for side, encoder in ENCODERS.items() if f"{encoder}/encoderblock/LayerNorm_0/scale" in found]
    return tuple(_with_shape(entry, ours[entry.ours], cfg) for entry in entries("big_vision", cfg, stacked))


def _with_shape(entry: Entry, ours: Shape, cfg: Config) -> Entry:
    """The entry with the shape of their tensor: attention is split into heads, stacked blocks have a leading axis."""
    heads = (cfg.image if entry.ours.startswith("image") else cfg.text).heads
    part = entry.ours.split("/attn/")[-1]
    width = ours[0] if ours else 0
    if entry.ours == "image/patch/kernel" and not cfg.naflex:
        ours = (cfg.patch, cfg.patch, 3, ours[1])
    elif entry.ours == "image/position" and cfg.naflex:
        ours = (*cfg.grid, ours[1])
    elif part in ("q/kernel", "k/kernel", "v/kernel"):
        ours = (width, heads, width // heads)
    elif part in ("q/bias", "k/bias", "v/bias"):
        ours = (heads, width // heads)
    elif part == "out/kernel" and "/attn/" in entry.ours:
        ours = (heads, width // heads, width)
    elif entry.part[1] == 1 and "/attn/" not in entry.ours:
        return entry  # as ours, up to axes of length 1
    stacked = "encoderblock/" in entry.theirs
    return replace(entry, shape=(entry.part[1], *ours) if stacked else ours)
