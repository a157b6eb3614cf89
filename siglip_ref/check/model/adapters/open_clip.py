"""open_clip's SigLIP models: a timm image tower, open_clip's text tower, its SigLipLoss."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from siglip_ref.architecture.conventions import preset
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters import Hint
from siglip_ref.check.model.adapters.torch_model import Tap, TorchModel
from siglip_ref.checkpoint.tables.open_clip import table
from siglip_ref.errors import UsageError
from siglip_ref.ops.gelu import GeluForm

EPS = 1e-6  # SigLIP's; the text tower has it from its JSON (norm_kwargs), torch's own default is 1e-5


def from_open_clip(model: Any) -> TorchModel:
    """An open_clip CustomTextCLIP that is a SigLIP as an Adapter."""
    cfg = read_config(model)
    forms = f"GELU {cfg.conventions.image_gelu} (images), {cfg.conventions.text_gelu} (texts)"
    return TorchModel(
        name=f"open_clip SigLIP, {cfg.name}, {forms}",
        model=model,
        config=cfg,
        table=table(cfg),
        taps=tuple(taps(cfg)),
        loss=_loss,
        hints=tuple(_hints(model, cfg)),
    )


def read_config(model: Any) -> Config:
    """Sizes and conventions as the modules show them: open_clip keeps no configuration in the model."""
    trunk: Any = getattr(model.visual, "trunk", None)
    text = model.text
    pooled = getattr(trunk, "attn_pool", None) is not None
    open_text = hasattr(text, "transformer") and hasattr(text, "positional_embedding")
    if not pooled or not open_text or getattr(model, "logit_bias", None) is None:
        raise UsageError(
            expected="a SigLIP model of open_clip: timm image tower with attention pooling, text tower, logit_bias",
            got=f"image tower {type(trunk).__name__}, text tower {type(text).__name__}, "
            f"logit_bias {'missing' if getattr(model, 'logit_bias', None) is None else 'present'}",
            cause="a CLIP model, or a SigLIP without its bias",
            repair='open_clip.create_model("ViT-B-16-SigLIP"), or init_logit_bias=-10 for a model of your own',
        )
    blocks, layers = trunk.blocks, text.transformer.resblocks
    image_gelu = gelu_form(blocks[0].mlp.act)
    height, width = trunk.patch_embed.img_size
    length, text_width = text.positional_embedding.shape
    return Config(
        f"{trunk.embed_dim} wide, {len(blocks)} + {len(layers)} blocks, {height} x {width} px",
        Tower(trunk.embed_dim, len(blocks), blocks[0].mlp.fc1.out_features, blocks[0].attn.num_heads),
        Tower(text_width, len(layers), layers[0].mlp.c_fc.out_features, layers[0].attn.num_heads),
        (height, width),
        trunk.patch_embed.patch_size[0],
        text.token_embedding.num_embeddings,
        length,
        text_head=text.text_projection is not None,
        conventions=preset("open_clip", image_gelu=image_gelu, text_gelu=gelu_form(layers[0].mlp.gelu)),
    )


def gelu_form(module: nn.Module) -> GeluForm:
    """Which GELU a module computes."""
    name = type(module).__name__
    by_class: dict[str, GeluForm] = {"QuickGELU": "quick", "GELUTanh": "tanh", "GELU": "erf"}  # open_clip's and timm's
    if isinstance(module, nn.GELU):
        return "tanh" if module.approximate == "tanh" else "erf"
    if name in by_class:
        return by_class[name]
    raise UsageError(
        expected="a GELU",
        got=f"{type(module).__module__}.{name}",
        cause="an activation that no SigLIP has, or a wrapper around one",
        repair="nn.GELU() or nn.GELU(approximate='tanh')",
    )


def taps(cfg: Config) -> Iterator[Tap]:
    """Where the activations of a whole model are."""
    for tower, blocks, depth, second, last in (
        ("image", "visual.trunk.blocks", cfg.image.depth, "norm2", "visual.trunk.norm"),
        ("text", "text.transformer.resblocks", cfg.text.depth, "ln_2", "text.ln_final"),
    ):
        yield Tap(f"{tower}/stem", f"{blocks}.0", "input")
        for i in range(depth):
            yield Tap(f"{tower}/block{i:02d}/+attn", f"{blocks}.{i}.{second}", "input")
            yield Tap(f"{tower}/block{i:02d}/+mlp", f"{blocks}.{i}")
        yield Tap(f"{tower}/norm", last)
    yield Tap("image/pool", "visual.trunk.attn_pool")
    if cfg.text_head:
        yield Tap("text/pool", "text.text_projection", "input")
        yield Tap("text/head", "text.text_projection")
    else:
        yield Tap("text/pool", "text")


def _loss(model: nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's outputs given to open_clip's own loss."""
    from open_clip.loss import SigLipLoss

    out = model(images, tokens)
    if isinstance(out, dict):
        out = (out["image_features"], out["text_features"], out["logit_scale"], out["logit_bias"])
    image, text, scale, bias = out
    values = {"image/embed": image, "text/embed": text, "logits": scale * image @ text.T + bias}
    return SigLipLoss()(image, text, scale, bias), values


def _hints(model: nn.Module, cfg: Config) -> Iterator[Hint]:
    """Layer norms with another eps, activations that differ within a tower."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != EPS:
            evidence = f"{name}: eps is {module.eps:g}, SigLIP's is {EPS:g}"
            yield Hint("layernorm-eps", name, evidence, "norm_kwargs={'eps': 1e-6} in the model's text_cfg")
        if name.endswith(("mlp.act", "mlp.gelu")):
            tower = cfg.conventions.image_gelu if name.startswith("visual") else cfg.conventions.text_gelu
            if gelu_form(module) != tower:
                evidence = f"{name} is {module}, the tower's first block has {tower}"
                yield Hint("gelu-tanh-vs-erf", name, evidence, f"the {tower} form in the whole tower")
