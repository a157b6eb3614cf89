"""Hugging Face's SiglipModel, any size: configuration read from the model, loss its own."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from siglip_ref.check.adapters import Hint
from siglip_ref.check.adapters.names import Entry, Table, dense, fused, norm
from siglip_ref.check.adapters.torch_model import Tap, TorchModel
from siglip_ref.conventions import preset
from siglip_ref.errors import UsageError
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.sizes import Config, Tower

# Source: transformers 5.23, activations.py
GELU: dict[str, GeluForm] = {
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu": "erf",
    "gelu_python": "erf",
    "quick_gelu": "quick",
}
TOWERS = {"image": "vision_model", "text": "text_model"}


def from_huggingface(model: nn.Module) -> TorchModel:
    """A transformers SiglipModel as an Adapter."""
    cfg = read_config(model.config)
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


def read_config(config: Any) -> Config:
    """A transformers SiglipConfig as ours, conventions included."""
    image, text = config.vision_config, config.text_config
    side, patch, channels = image.image_size, image.patch_size, image.num_channels
    projected = getattr(text, "projection_size", None) or text.hidden_size
    head = getattr(image, "vision_use_head", True)
    if channels != 3 or not head or projected != image.hidden_size:
        raise UsageError(
            expected="a SigLIP configuration: 3 channels, attention pooling, texts projected to the images' width",
            got=f"{channels} channels, vision_use_head {head}, projection {projected}, width {image.hidden_size}",
            cause="a configuration that no SigLIP has",
            repair="correct SiglipConfig, or write an Adapter for this model",
        )
    conventions = preset(
        "huggingface",
        image_gelu=_gelu(image.hidden_act),
        text_gelu=_gelu(text.hidden_act),
        image_norm_eps=float(image.layer_norm_eps),
        text_norm_eps=float(text.layer_norm_eps),
    )
    return Config(
        f"{image.hidden_size} wide, {image.num_hidden_layers} + {text.num_hidden_layers} blocks, {side} px",
        Tower(image.hidden_size, image.num_hidden_layers, image.intermediate_size, image.num_attention_heads),
        Tower(text.hidden_size, text.num_hidden_layers, text.intermediate_size, text.num_attention_heads),
        (side, side),
        patch,
        text.vocab_size,
        text.max_position_embeddings,
        conventions=conventions,
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


def table(cfg: Config) -> Table:
    """Our names and those of transformers' SiglipModel. Source: modeling_siglip.py, transformers 5.23."""
    return tuple(_entries(cfg))


def _entries(cfg: Config) -> Iterator[Entry]:
    yield Entry("image/patch/kernel", "vision_model.embeddings.patch_embedding.weight", "patch")
    yield Entry("image/patch/bias", "vision_model.embeddings.patch_embedding.bias")
    yield Entry("text/token", "text_model.embeddings.token_embedding.weight")
    for tower, depth in (("image", cfg.image.depth), ("text", cfg.text.depth)):
        model = TOWERS[tower]
        yield Entry(f"{tower}/position", f"{model}.embeddings.position_embedding.weight")
        for i in range(depth):
            ours, theirs = f"{tower}/block{i:02d}", f"{model}.encoder.layers.{i}"
            yield from norm(f"{ours}/norm1", f"{theirs}.layer_norm1")
            for part in ("q", "k", "v", "out"):
                yield from dense(f"{ours}/attn/{part}", f"{theirs}.self_attn.{part}_proj")
            yield from norm(f"{ours}/norm2", f"{theirs}.layer_norm2")
            yield from dense(f"{ours}/mlp/in", f"{theirs}.mlp.fc1")
            yield from dense(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")
    yield from norm("image/norm", "vision_model.post_layernorm")
    yield from norm("text/norm", "text_model.final_layer_norm")
    yield Entry("image/pool/probe", "vision_model.head.probe")
    yield from fused("image/pool/attn", "vision_model.head.attention.in_proj", joint="_")
    yield from dense("image/pool/attn/out", "vision_model.head.attention.out_proj")
    yield from norm("image/pool/norm", "vision_model.head.layernorm")
    yield from dense("image/pool/mlp/in", "vision_model.head.mlp.fc1")
    yield from dense("image/pool/mlp/out", "vision_model.head.mlp.fc2")
    yield from dense("text/head", "text_model.head")
    yield Entry("log_scale", "logit_scale")
    yield Entry("bias", "logit_bias")


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


def _gelu(name: str) -> GeluForm:
    if name not in GELU:
        raise UsageError(
            expected="hidden_act one of " + ", ".join(GELU),
            got=repr(name),
            cause="an activation that no SigLIP has",
            repair='SigLIP\'s is "gelu_pytorch_tanh"',
        )
    return GELU[name]


def _hints(model: nn.Module, cfg: Config) -> Iterator[Hint]:
    """Layer norms whose eps is not the configuration's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            eps = cfg.conventions.image_norm_eps if name.startswith("vision") else cfg.conventions.text_norm_eps
            if module.eps != eps:
                evidence = f"{name}: eps is {module.eps:g}, the configuration says {eps:g}"
                yield Hint("layernorm-eps", name, evidence, f"nn.LayerNorm(..., eps={eps:g})")
