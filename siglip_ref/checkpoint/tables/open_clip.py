"""open_clip's layout: a timm image tower and open_clip's text tower; what open_clip_config.json says."""

import math
from collections.abc import Mapping
from typing import Any

from siglip_ref.architecture.conventions import preset
from siglip_ref.architecture.sizes import TOWERS, Config, Tower
from siglip_ref.checkpoint.tables.names import Shape, Table, entries, made, plausible
from siglip_ref.checkpoint.tables.wrapped import about
from siglip_ref.errors import UsageError

TRUNK = "visual.trunk"
WIDEN = "text.token_projection.weight"  # ours: open_clip has no bottleneck
# Released timm image towers that compute the exact GELU, whatever weights they are given; all others the tanh form.
ERF: list[str] = about("open_clip")["erf"]
# Width: heads, of the released towers; any other width has heads of 64.
HEADS = {tower.width: tower.heads for tower in TOWERS.values()}


def read_config(
    found: Mapping[str, Shape],
    settings: Mapping[str, Any] | None = None,
    sides: tuple[str, ...] = ("image", "text"),
) -> Config:
    """Sizes as the shapes show them; the rest from open_clip_config.json, or as released models have it.

    Parameters
    ----------
    found : name and shape of every tensor
    settings : the content of open_clip_config.json, or None
    sides : ("image",) or ("text",) for one tower alone
    """
    model = (settings or {}).get("model_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    try:
        images = _image(found, vision) if "image" in sides else {}
        texts = _text(found, text) if "text" in sides else {}
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(
            expected="a SigLIP model of open_clip: visual.trunk... with attention pooling, text..., logit_bias",
            got=f"{error} among {', '.join(sorted(found)[:4])} ...",
            cause="a CLIP model, or another layout",
            repair='open_clip.create_model("ViT-B-16-SigLIP") has the right names',
        ) from error
    erf_image = vision.get("timm_model_name", "vit_base_patch16_siglip_224") in ERF
    erf_text = text.get("act_kwargs", {}).get("approximate") != "tanh"
    conventions = preset(
        "open_clip",
        image_gelu="erf" if erf_image else "tanh",
        text_gelu="erf" if erf_text else "tanh",
        text_norm_eps=float(text.get("norm_kwargs", {"eps": 1e-6}).get("eps", 1e-5)),
    )
    return plausible(made(images, texts, conventions))


def _image(found: Mapping[str, Shape], vision: Mapping[str, Any]) -> dict[str, Any]:
    width, _, patch, _ = found[f"{TRUNK}.patch_embed.proj.weight"]
    patches = found[f"{TRUNK}.pos_embed"][-2]
    hidden = found[f"{TRUNK}.blocks.0.mlp.fc1.weight"][0]
    side = vision.get("image_size", math.isqrt(patches) * patch)
    height, across = side if isinstance(side, list | tuple) else (side, side)
    tower = Tower(width, _depth(found, f"{TRUNK}.blocks."), hidden, heads_of(width))
    return {"image": tower, "image_size": (int(height), int(across)), "patch": patch}


def _text(found: Mapping[str, Shape], text: Mapping[str, Any]) -> dict[str, Any]:
    length, width = found["text.positional_embedding"]
    vocabulary, columns = found["text.token_embedding.weight"]
    hidden = found["text.transformer.resblocks.0.mlp.c_fc.weight"][0]
    head = found.get("text.text_projection.weight")
    depth = _depth(found, "text.transformer.resblocks.")
    return {
        "text": Tower(width, depth, hidden, int(text.get("heads", heads_of(width)))),
        "vocabulary": vocabulary,
        "text_length": length,
        "text_head": head is not None,
        "embed": head[0] if head else None,
        "bottleneck": columns if WIDEN in found else 0,
    }


def _depth(found: Mapping[str, Shape], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in found if name.startswith(prefix)})


def heads_of(width: int) -> int:
    """As the released tower of this width has them; else heads of 64."""
    return HEADS.get(width) or max(1, width // 64)


def table(cfg: Config) -> Table:
    """Our names and those of open_clip."""
    return entries("open_clip", cfg)
