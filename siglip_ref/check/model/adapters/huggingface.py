"""Hugging Face's SiglipModel, any size: configuration read from the model, loss its own."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Hint
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.huggingface import TOWERS, read_config, table


def from_huggingface(model: Any) -> TorchModel:
    """A transformers SiglipModel as an Adapter."""
    cfg = read_config(model.config.to_dict())
    return TorchModel(
        name=f"transformers SiglipModel, {cfg.name}, attention {attention(model)}",
        model=model,
        config=cfg,
        table=table(cfg),
        taps=tuple(_taps(cfg)),
        loss=_loss,
        coarsest="float32" if attention(model) == "eager" else "float64",
        hints=tuple(_hints(model, cfg)),
    )


def make_config(cfg: Config) -> Any:
    """Our Config as a transformers SiglipConfig (square images, a text head, no NaFlex)."""
    from transformers import SiglipConfig

    side = math.isqrt(cfg.patches) * cfg.patch if cfg.image_size[0] != cfg.image_size[1] else cfg.image_size[0]
    common = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    towers = [
        dict(hidden_size=t.width, num_hidden_layers=t.depth, intermediate_size=t.mlp, num_attention_heads=t.heads)
        for t in (cfg.image, cfg.text)
    ]
    image = towers[0] | common | {"image_size": side, "patch_size": cfg.patch}
    text = towers[1] | common | {"vocab_size": cfg.vocabulary, "max_position_embeddings": cfg.text_length}
    text |= {"bos_token_id": None, "eos_token_id": None}  # unused; the defaults exceed a small vocabulary
    return SiglipConfig(vision_config=image, text_config=text | {"projection_size": cfg.embed})


def _taps(cfg: Config) -> Iterator[Tap]:
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


def _loss(model: nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's own loss, with no attention mask: SigLIP was trained without one."""
    out = model(input_ids=tokens, pixel_values=images, return_loss=True)
    return out.loss, {"image/embed": out.image_embeds, "text/embed": out.text_embeds, "logits": out.logits_per_image}


def attention(model: nn.Module) -> str:
    """Which attention runs; "eager" if either tower's is."""
    kinds = {str(getattr(model, tower).config._attn_implementation) for tower in TOWERS.values()}
    return "eager" if "eager" in kinds else " and ".join(sorted(kinds))


def _hints(model: nn.Module, cfg: Config) -> Iterator[Hint]:
    """Layer norms whose eps is not the configuration's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            eps = cfg.conventions.image_norm_eps if name.startswith("vision") else cfg.conventions.text_norm_eps
            if module.eps != eps:
                evidence = f"{name}: eps is {module.eps:g}, the configuration says {eps:g}"
                yield Hint("layernorm-eps", name, evidence, f"nn.LayerNorm(..., eps={eps:g})")
