"""Embeddings without gradients: the towers of `siglip_ref.towers`, each layer's cache dropped as soon as it is made."""

from collections.abc import Mapping
from types import ModuleType

from siglip_ref import ops as specification
from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.tree import subtree
from siglip_ref.sizes import Config
from siglip_ref.towers.encoder import encoder_states
from siglip_ref.towers.image import image_tower_forward
from siglip_ref.towers.naflex import naflex_tower_forward
from siglip_ref.towers.text import text_tower_forward


def best_ops() -> ModuleType:
    """`siglip_ref.fast` where it is compiled and has every operation, else the specification."""
    try:
        from siglip_ref import fast
    except ImportError:
        return specification
    whole = all(hasattr(fast, name) for name in specification.__all__)
    return fast if whole and fast.COMPILED else specification


def computes_with(ops: ModuleType) -> str:
    """In words, for reports: what really computes, not what was asked for."""
    compiled = getattr(ops, "COMPILED", False)
    return "Numba twins (siglip_ref.fast)" if compiled else "the specification, plain NumPy"


def image_embeddings(params: Mapping[str, Array], images: Array, cfg: Config, ops: ModuleType) -> Array:
    """Unit vectors (B, D) of images; what `siglip_ref.forward` calls image_embed.

    images : (B, height, width, 3) in [-1, 1], or `Patches` for a NaFlex model
    """
    tower = naflex_tower_forward if cfg.naflex else image_tower_forward
    pooled = tower(images, subtree(params, "image"), cfg, cfg.conventions, ops, encode=encoder_states)[0]
    return _unit(pooled, cfg.conventions, ops)


def text_embeddings(params: Mapping[str, Array], tokens: Array, cfg: Config, ops: ModuleType) -> Array:
    """Unit vectors (B, D) of token ids (B, N); what `siglip_ref.forward` calls text_embed."""
    weights = subtree(params, "text")
    pooled = text_tower_forward(tokens, weights, cfg, cfg.conventions, ops, encode=encoder_states)[0]
    return _unit(pooled, cfg.conventions, ops)


def _unit(pooled: Array, how: Conventions, ops: ModuleType) -> Array:
    out: Array = ops.normalize_forward(pooled, how.embed_norm, how.embed_norm_eps)[0]
    return out
