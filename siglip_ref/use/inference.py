"""Embeddings without gradients: the towers of `siglip_ref.model`, each layer's cache dropped as soon as it is made."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.model.encoder import encoder_states
from siglip_ref.model.specification import SPECIFICATION, chosen
from siglip_ref.ops.elementary import Array, subtree
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.record import Ops, Pair


def best_ops() -> Ops:
    """`siglip_ref.fast` where it is compiled, else the specification."""
    try:
        from siglip_ref import fast
    except ImportError:
        return SPECIFICATION
    return fast.OPS if fast.COMPILED else SPECIFICATION


def computes_with(ops: Ops) -> str:
    """In words, for reports: what really computes, not what was asked for."""
    return "compiled kernels (siglip_ref.fast)" if ops.compiled else "the specification, plain NumPy"


def image_embeddings(
    params: Mapping[str, Array], images: Array, cfg: Config, ops: Ops | ModuleType, whole: bool = False
) -> Array:
    """Unit vectors (B, D) of images; what `siglip_ref.forward` calls image_embed.

    images : (B, height, width, 3) in [-1, 1], or `Patches` for a NaFlex model
    whole : narrow towers by the twins' kernel of a whole tower, which a training has compiled already
    """
    alone = _without_gradients(chosen(ops), whole)
    tower = alone.naflex_tower if cfg.naflex else alone.image_tower
    pooled = tower.forward(images, subtree(params, "image"), cfg, cfg.conventions)[0]
    return _unit(pooled, cfg.conventions, alone)


def patch_embeddings(params: Mapping[str, Array], images: Array, cfg: Config, ops: Ops | ModuleType) -> Array:
    """Unit vectors (B, N, D) of an image's patches, to be compared with texts: localisation without training.

    Patch n's vector is what the attention pooling reads where patch n is all that there is to read: a softmax over one
    key is 1, so its value goes through, whatever the query.
    """
    alone = replace(_without_gradients(chosen(ops)), map_head=Pair(_each_patch_alone, _no_way_back))
    tower = alone.naflex_tower if cfg.naflex else alone.image_tower
    pooled = tower.forward(images, subtree(params, "image"), cfg, cfg.conventions)[0]
    return _unit(pooled.reshape(-1, pooled.shape[-1]), cfg.conventions, alone).reshape(pooled.shape)


def text_features(params: Mapping[str, Array], tokens: Array, cfg: Config, ops: Ops | ModuleType) -> Array:
    """What the text head is given (B, width): of a text tower that is locked up to its head, computed once."""
    alone = _without_gradients(chosen(ops))
    headless = replace(cfg, text_head=False)
    pooled: Array = alone.text_tower.forward(tokens, subtree(params, "text"), headless, cfg.conventions)[0]
    return pooled


def text_embeddings(
    params: Mapping[str, Array], tokens: Array, cfg: Config, ops: Ops | ModuleType, whole: bool = False
) -> Array:
    """Unit vectors (B, D) of token ids (B, N); what `siglip_ref.forward` calls text_embed. `whole`: as for images."""
    alone = _without_gradients(chosen(ops), whole)
    pooled = alone.text_tower.forward(tokens, subtree(params, "text"), cfg, cfg.conventions)[0]
    return _unit(pooled, cfg.conventions, alone)


@lru_cache(maxsize=4)  # few: a record of packed weights holds them
def _without_gradients(ops: Ops, whole: bool = False) -> Ops:
    """The same operations with an encoder that keeps nothing; towers operation by operation, unless whole."""
    names = () if whole else ("image_tower", "naflex_tower", "text_tower")
    towers = {name: getattr(SPECIFICATION, name) for name in names}
    return replace(ops, encoder=Pair(encoder_states, _no_way_back), **towers)


def _each_patch_alone(
    x: Array,
    weights: Mapping[str, Array],
    heads: int,
    gelu: GeluForm,
    eps: float,
    mask: Array | None = None,
    *,
    ops: Ops,
) -> tuple[Array, None]:
    """As `siglip_ref.ops.map_head.map_head_forward`, of each of the N tokens x (B, N, C) alone: (B, N, C)."""
    value, _ = ops.linear.forward(x, weights["attn/v/kernel"], weights["attn/v/bias"])
    read, _ = ops.linear.forward(value, weights["attn/out/kernel"], weights["attn/out/bias"])
    normed, _ = ops.layer_norm.forward(read, weights["norm/gamma"], weights["norm/beta"], eps)
    step, _ = ops.mlp.forward(normed, subtree(weights, "mlp"), gelu)
    return read + step, None


def _no_way_back(*given: Any) -> Any:
    """The backward of an encoder that keeps nothing to go back with."""
    raise NotImplementedError("embeddings are computed without gradients")


def _unit(pooled: Array, how: Conventions, ops: Ops) -> Array:
    out: Array = ops.normalize.forward(pooled, how.embed_norm, how.embed_norm_eps)[0]
    return out
