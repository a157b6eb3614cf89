"""Hugging Face's layout: the names of SiglipModel and Siglip2Model, and config.json, as our Config."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from siglip_ref.architecture.conventions import Conventions, preset
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.checkpoint.tables.names import Table, entries, made, plausible
from siglip_ref.checkpoint.tables.wrapped import about
from siglip_ref.errors import UsageError
from siglip_ref.ops.gelu import GeluForm

TOWERS = {"image": "vision_model", "text": "text_model"}
_ABOUT = about("huggingface")
GELU: dict[str, GeluForm] = _ABOUT["gelu"]
# What a config.json may leave out.
DEFAULTS: dict[str, dict[str, Any]] = {
    part: _ABOUT["tower"] | _ABOUT[part] for part in ("vision_config", "text_config")
}


def read_config(settings: Mapping[str, Any]) -> Config:
    """The content of a config.json (`config.to_dict()` of a live model) as ours, conventions included.

    Parameters
    ----------
    settings : with "vision_config" and "text_config"; what they leave out has transformers' default
    """
    image = DEFAULTS["vision_config"] | dict(settings.get("vision_config") or {})
    text = DEFAULTS["text_config"] | dict(settings.get("text_config") or {})
    naflex = settings.get("model_type") == "siglip2"
    channels, head = image["num_channels"], image["vision_use_head"]
    projected = text.get("projection_size") or text["hidden_size"]
    if channels != 3 or not head or projected != image["hidden_size"]:
        raise UsageError(
            expected="a SigLIP configuration: 3 channels, attention pooling, texts projected to the images' width",
            got=f"{channels} channels, vision_use_head {head}, projection {projected}, width {image['hidden_size']}",
            cause="a configuration that no SigLIP has",
            repair="correct the configuration, or write an Adapter for this model",
        )
    return plausible(made(image_fields(image, naflex), text_fields(text), conventions_of(image, text)))


def image_fields(settings: Mapping[str, Any], naflex: bool) -> dict[str, Any]:
    """A vision_config as fields of ours."""
    patch = _side(settings["patch_size"])
    side = math.isqrt(settings["num_patches"]) * patch if naflex else _side(settings["image_size"])
    return {"image": _tower(settings), "image_size": (side, side), "patch": patch, "naflex": naflex}


def text_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A text_config as fields of ours."""
    return {
        "text": _tower(settings),
        "vocabulary": settings["vocab_size"],
        "text_length": settings["max_position_embeddings"],
        "embed": settings.get("projection_size"),
        "bottleneck": settings.get("embedding_size") or 0,  # ELECTRA's word; transformers' SigLIP has none
    }


def conventions_of(image: Mapping[str, Any], text: Mapping[str, Any]) -> Conventions:
    """What a vision_config and a text_config say of GELU and layer norms."""
    return preset(
        "huggingface",
        image_gelu=_gelu(image["hidden_act"]),
        text_gelu=_gelu(text["hidden_act"]),
        image_norm_eps=float(image["layer_norm_eps"]),
        text_norm_eps=float(text["layer_norm_eps"]),
    )


def write_config(cfg: Config) -> dict[str, Any]:
    """Our Config as the content of a config.json; transformers has square images and always a text head."""
    if cfg.grid[0] != cfg.grid[1]:
        raise UsageError(
            expected="square images",
            got=f"{cfg.name} with images of {cfg.image_size[0]} x {cfg.image_size[1]} pixels",
            cause="transformers' SigLIP knows one side length only",
            repair='save(..., format="big_vision"), or dataclasses.replace(cfg, image_size=(side, side))',
        )
    kind = "siglip2" if cfg.naflex else "siglip"
    hidden = {form: name for name, form in reversed(GELU.items())}
    conventions = cfg.conventions

    def tower(tower: Tower, part: str, gelu: GeluForm, eps: float) -> dict[str, Any]:
        return {
            "model_type": f"{kind}_{part}_model",
            "hidden_size": tower.width,
            "num_hidden_layers": tower.depth,
            "intermediate_size": tower.mlp,
            "num_attention_heads": tower.heads,
            "hidden_act": hidden[gelu],
            "layer_norm_eps": eps,
        }

    grid = {"num_patches": cfg.patches} if cfg.naflex else {"image_size": cfg.image_size[0]}
    image = tower(cfg.image, "vision", conventions.image_gelu, conventions.image_norm_eps)
    text = tower(cfg.text, "text", conventions.text_gelu, conventions.text_norm_eps)
    length = {"vocab_size": cfg.vocabulary, "max_position_embeddings": cfg.text_length, "projection_size": cfg.embed}
    narrow = {"embedding_size": cfg.bottleneck} if cfg.bottleneck else {}
    return {
        "model_type": kind,
        "architectures": ["Siglip2Model" if cfg.naflex else "SiglipModel"],
        "vision_config": image | grid | {"patch_size": cfg.patch},
        "text_config": text | length | narrow,
    }


def table(cfg: Config) -> Table:
    """Our names and those of transformers' SiglipModel and Siglip2Model.

    The files always hold a text head: for a model
    without one (So400m/16-i18n) it is the identity, which belongs to no parameter of ours; see `HEAD`.
    """
    found = entries("huggingface", cfg)
    if not cfg.naflex:
        return found
    return tuple(replace(entry, layout="turned") if entry.layout == "patch" else entry for entry in found)


HEAD = ("text_model.head.weight", "text_model.head.bias")
WIDEN = "text_model.embeddings.token_projection.weight"  # ours: no library has a SigLIP with a bottleneck


def _tower(settings: Mapping[str, Any]) -> Tower:
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    return Tower(*(settings[key] for key in keys))


def _side(value: Any) -> int:
    """transformers allows [side, side] for side."""
    sides = {int(side) for side in value} if isinstance(value, list | tuple) else {int(value)}
    if len(sides) != 1:
        raise UsageError(
            expected="square images and patches",
            got=str(value),
            cause="no SigLIP was released with another shape",
            repair="give one number",
        )
    return sides.pop()


def _gelu(name: str) -> GeluForm:
    if name not in GELU:
        raise UsageError(
            expected="hidden_act one of " + ", ".join(GELU),
            got=repr(name),
            cause="an activation that no SigLIP has",
            repair='SigLIP\'s is "gelu_pytorch_tanh"',
        )
    return GELU[name]
