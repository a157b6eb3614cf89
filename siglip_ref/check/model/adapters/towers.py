"""One tower alone as an Adapter: of transformers, of timm, of open_clip."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from siglip_ref.architecture.conventions import preset
from siglip_ref.architecture.one_tower import OneTower, Side, UpTo, has, one_tower
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.check.model.adapters import huggingface, kinds_of, open_clip
from siglip_ref.check.model.adapters.torch_model import Patched, Tap, TorchModel
from siglip_ref.check.model.tower import probe_objective
from siglip_ref.checkpoint.tables import huggingface as names
from siglip_ref.checkpoint.tables import open_clip as timm_names
from siglip_ref.checkpoint.tables.names import Table, made
from siglip_ref.errors import UsageError

Output = Callable[[nn.Module, Any], torch.Tensor]  # model, its inputs -> what it ends at


def from_huggingface_tower(model: Any, up_to: UpTo | None = None) -> TorchModel:
    """An image or text tower of transformers; of a SiglipForImageClassification its image tower."""
    side: Side = "text" if _is_kind_of("Text", model) else "image"
    classifier = hasattr(model, "classifier")
    inner = next((f"{name}." for name in names.TOWERS.values() if hasattr(model, name)), "")
    tower = model.get_submodule(inner[:-1]) if inner else model
    settings = names.DEFAULTS["vision_config" if side == "image" else "text_config"] | tower.config.to_dict()
    naflex = side == "image" and _is_kind_of("Siglip2", tower)
    image = names.image_fields(settings, naflex) if side == "image" else {}
    text = names.text_fields(settings) if side == "text" else {}
    whole = made(image, text, names.conventions_of(settings, settings))
    headed = side == "text" or (hasattr(tower, "head") and not classifier)
    cfg = one_tower(whole, side, up_to or ("pooled" if headed else "last"))
    _require_head(cfg, hasattr(tower, "head"))

    def output(model: nn.Module, given: Any) -> torch.Tensor:
        tower = model.get_submodule(inner[:-1]) if inner else model
        inputs = huggingface.pictures(given) if side == "image" else {"input_ids": given}
        out = tower(**inputs, output_hidden_states=cfg.up_to == "last-but-one")
        if cfg.up_to == "last-but-one":
            return _only(out.hidden_states[-2])
        return _only(out.pooler_output if cfg.up_to == "pooled" else out.last_hidden_state)

    old = f"{names.TOWERS[side]}."
    return TorchModel(
        name=f"transformers {type(model).__name__}, {cfg.name}, attention {huggingface.attention(model)}",
        model=model,
        loss=_objective(cfg, output),
        coarsest=huggingface.coarsest(model, cfg),
        hints=tuple(huggingface.hints(model, cfg)),
        **_parts(model, cfg, names.table(whole), huggingface.taps(whole), old, inner, ("classifier.",)),
    )


def _is_kind_of(word: str, model: Any) -> bool:
    """Whether a class of transformers has this word in its name, also where the model's own class comes of it."""
    return any(package == "transformers" and word in name for name, package in kinds_of(model))


def from_timm_tower(model: Any, up_to: UpTo | None = None) -> TorchModel:
    """An image tower of timm, or open_clip's `model.visual` around one."""
    wrapped = hasattr(model, "trunk")
    trunk: Any = model.trunk if wrapped else model
    blocks: Any = getattr(trunk, "blocks", ())
    if not len(blocks) or not hasattr(trunk, "patch_embed"):
        raise UsageError("a vision transformer of timm", type(trunk).__name__, "", "timm's vit_*_siglip_*")
    headed = getattr(trunk, "attn_pool", None) is not None  # of whatever class: what is no pool of SigLIP's is wrong
    height, width = trunk.patch_embed.img_size
    image = {
        "image": Tower(trunk.embed_dim, len(blocks), blocks[0].mlp.fc1.out_features, blocks[0].attn.num_heads),
        "image_size": (height, width),
        "patch": trunk.patch_embed.patch_size[0],
    }
    whole = made(image, {}, preset("open_clip", image_gelu=open_clip.gelu_form(blocks[0].mlp.act)))
    cfg = one_tower(whole, "image", up_to or ("pooled" if headed else "last"))
    _require_head(cfg, headed)
    inner = "trunk." if wrapped else ""

    def output(model: nn.Module, images: Any) -> torch.Tensor:
        trunk: Any = model.get_submodule("trunk") if wrapped else model
        if cfg.up_to == "pooled":
            if wrapped:
                return _only(model(images))
            return _only(trunk.forward_head(trunk.forward_features(images), pre_logits=True))
        if cfg.up_to == "last":
            return _only(trunk.forward_features(images))
        return _captured(model, f"{inner}blocks.{cfg.image.depth - 1}", lambda: trunk.forward_features(images))

    return TorchModel(
        name=f"{'open_clip visual' if wrapped else 'timm'} {type(trunk).__name__}, {cfg.name}",
        model=model,
        loss=_objective(cfg, output),
        **_parts(model, cfg, timm_names.table(whole), open_clip.taps(whole), f"{timm_names.TRUNK}.", inner, ("head.",)),
    )


def from_open_clip_text_tower(model: Any, up_to: UpTo | None = None) -> TorchModel:
    """open_clip's text tower, `model.text`."""
    layers = model.transformer.resblocks
    length, width = model.positional_embedding.shape
    head = model.text_projection
    text = {
        "text": Tower(width, len(layers), layers[0].mlp.c_fc.out_features, layers[0].attn.num_heads),
        "vocabulary": model.token_embedding.num_embeddings,
        "text_length": length,
        "text_head": head is not None,
        "embed": width if head is None else getattr(head, "out_features", width),
    }
    whole = made({}, text, preset("open_clip", text_gelu=open_clip.gelu_form(layers[0].mlp.gelu)))
    cfg = one_tower(whole, "text", up_to or "pooled")

    def output(model: nn.Module, tokens: Any) -> torch.Tensor:
        if cfg.up_to == "pooled":
            return _only(model(tokens))
        last = f"transformer.resblocks.{cfg.text.depth - 1}" if cfg.up_to == "last-but-one" else "ln_final"
        return _captured(model, last, lambda: model(tokens))

    return TorchModel(
        name=f"open_clip {type(model).__name__}, {cfg.name}",
        model=model,
        loss=_objective(cfg, output),
        **_parts(model, cfg, timm_names.table(whole), open_clip.taps(whole), "text.", ""),
    )


def _parts(
    model: nn.Module,
    cfg: OneTower,
    table: Table,
    taps: Iterable[Tap],
    old: str,
    new: str,
    others: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Table, taps and what is ignored of a tower: of a whole model's, under its own names.

    old, new : what the whole model's names begin with, and what stands there here
    others : what names of parameters begin with that are none of SigLIP's
    """

    def own(name: str) -> str:
        return new + name.removeprefix(old)

    depth = (cfg.image if cfg.side == "image" else cfg.text).depth
    of_side = [replace(entry, theirs=own(entry.theirs)) for entry in table if entry.ours.startswith(f"{cfg.side}/")]
    used = tuple(entry for entry in of_side if _within(entry.ours, cfg, depth))
    read = {entry.theirs for entry in used}
    rest = {entry.theirs for entry in of_side} - read
    found = [name for name, _ in model.named_parameters()]
    left = rest.intersection(found) | {name for name in found if name.startswith(others)}
    if cfg.up_to != "pooled":
        gone = (f"{new}head.", f"{new}attn_pool.", f"{new}fc_norm.")
        left |= {name for name in found if name.startswith(gone)}
    placed = tuple(replace(tap, module=own(tap.module)) for tap in taps if tap.module != old.removesuffix("."))
    return {
        "config": cfg,
        "table": used,
        "taps": tuple(tap for tap in placed if tap.ours.startswith(cfg.side) and _within(tap.ours, cfg, depth)),
        "ignored": tuple(left),
    }


def _only(out: Any) -> torch.Tensor:
    """What a tower gives, which is one tensor."""
    if not isinstance(out, torch.Tensor):
        raise UsageError("a tower that gives one tensor", type(out).__name__, "", "turn off what else it gives")
    return out


def _within(name: str, cfg: Config, depth: int) -> bool:
    part = name.split("/")[1]
    return has(cfg, name) and not (part.startswith("block") and int(part[5:]) >= depth)


def _require_head(cfg: OneTower, headed: bool) -> None:
    if cfg.up_to == "pooled" and cfg.side == "image" and not headed:
        raise UsageError(
            expected="a tower with SigLIP's pooling head",
            got='up_to="pooled" and a tower without one',
            cause="",
            repair='up_to="last" judges its last hidden state',
        )


def _objective(cfg: OneTower, output: Output) -> Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The sum of what comes out, each number times its own, without rounding of our own."""

    def objective(model: nn.Module, images: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        out = output(model, images if cfg.side == "image" else tokens)
        seen = images.mask.cpu().numpy() if isinstance(images, Patched) else None
        weights = torch.from_numpy(probe_objective(tuple(out.shape), seen)).to(out.device)
        return (out.double() * weights).sum(), {cfg.end: out}

    return objective


def _captured(model: nn.Module, name: str, run: Callable[[], object]) -> torch.Tensor:
    """What a module gives while this runs."""
    taken: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, out: taken.append(out))
    try:
        run()
    finally:
        handle.remove()
    return taken[-1]
