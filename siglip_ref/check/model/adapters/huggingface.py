"""Hugging Face's SiglipModel, any size: configuration read from the model, loss its own."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Dtype, Hint
from siglip_ref.check.model.adapters.torch_model import Patched, Tap, TorchModel
from siglip_ref.checkpoint.tables.huggingface import TOWERS, read_config, table


def from_huggingface(model: Any) -> TorchModel:
    """A transformers SiglipModel or Siglip2Model as an Adapter."""
    cfg = read_config(model.config.to_dict())
    return TorchModel(
        name=f"transformers Siglip{2 * cfg.naflex or ''}Model, {cfg.name}, attention {attention(model)}",
        model=model,
        config=cfg,
        table=table(cfg),
        taps=tuple(taps(cfg)),
        loss=_loss,
        coarsest=coarsest(model, cfg),
        hints=tuple(hints(model, cfg)),
    )


def make_config(cfg: Config) -> Any:
    """Our Config as a transformers SiglipConfig, or Siglip2Config for NaFlex (square images, a text head)."""
    from transformers import Siglip2Config, SiglipConfig

    side = math.isqrt(cfg.patches) * cfg.patch if cfg.image_size[0] != cfg.image_size[1] else cfg.image_size[0]
    common = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    towers = [
        dict(hidden_size=t.width, num_hidden_layers=t.depth, intermediate_size=t.mlp, num_attention_heads=t.heads)
        for t in (cfg.image, cfg.text)
    ]
    grid = {"num_patches": cfg.patches} if cfg.naflex else {"image_size": side}
    image = towers[0] | common | grid | {"patch_size": cfg.patch}
    text = towers[1] | common | {"vocab_size": cfg.vocabulary, "max_position_embeddings": cfg.text_length}
    text |= {"bos_token_id": None, "eos_token_id": None}  # unused; the defaults exceed a small vocabulary
    kind = Siglip2Config if cfg.naflex else SiglipConfig
    return kind(vision_config=image, text_config=text | {"projection_size": cfg.embed})


def taps(cfg: Config) -> Iterator[Tap]:
    """Where the activations of a whole model are."""
    last = {"image": "post_layernorm", "text": "final_layer_norm"}
    for tower, depth in (("image", cfg.image.depth), ("text", cfg.text.depth)):
        model = TOWERS[tower]
        yield Tap(f"{tower}/stem", f"{model}.embeddings")
        for i in range(depth):
            yield Tap(f"{tower}/block{i:02d}/+attn", f"{model}.encoder.layers.{i}.layer_norm2", "input")
            yield Tap(f"{tower}/block{i:02d}/+mlp", f"{model}.encoder.layers.{i}")
        yield Tap(f"{tower}/norm", f"{model}.{last[tower]}")
    yield Tap("image/pool", "vision_model.head")
    yield Tap("text/pool", "text_model.head", "input")
    yield Tap("text/head", "text_model.head")


def pictures(images: Any) -> dict[str, torch.Tensor]:
    """The arguments by which transformers takes images."""
    if not isinstance(images, Patched):
        return {"pixel_values": images}
    return {"pixel_values": images.values, "pixel_attention_mask": images.mask, "spatial_shapes": images.grids}


def coarsest(model: nn.Module, cfg: Config) -> Dtype:
    """Eager attention has its softmax in float32, and a NaFlex tower resizes its positions in float32."""
    return "float32" if attention(model) == "eager" or cfg.naflex else "float64"


def _loss(model: nn.Module, images: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's own loss, with no attention mask: SigLIP was trained without one."""
    out = model(input_ids=tokens, **pictures(images), return_loss=True)
    return out.loss, {"image/embed": out.image_embeds, "text/embed": out.text_embeds, "logits": out.logits_per_image}


def attention(model: nn.Module) -> str:
    """Which attention runs; "eager" if either tower's is."""
    towers = [getattr(model, tower) for tower in TOWERS.values() if hasattr(model, tower)] or [model]
    kinds = {str(tower.config._attn_implementation) for tower in towers}
    return "eager" if "eager" in kinds else " and ".join(sorted(kinds))


def hints(model: nn.Module, cfg: Config) -> Iterator[Hint]:
    """Layer norms whose eps is not the configuration's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            eps = cfg.conventions.image_norm_eps if name.startswith("vision") else cfg.conventions.text_norm_eps
            if module.eps != eps:
                evidence = f"{name}: eps is {module.eps:g}, the configuration says {eps:g}"
                yield Hint("layernorm-eps", name, evidence, f"nn.LayerNorm(..., eps={eps:g})")
