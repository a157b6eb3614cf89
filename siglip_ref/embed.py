"""Embeddings without gradients: the towers of `siglip_ref.towers`, each layer's cache dropped as soon as it is made."""

from collections.abc import Mapping
from types import ModuleType

from siglip_ref import ops as specification
from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.tree import subtree
from siglip_ref.sizes import Config, Tower
from siglip_ref.towers.encoder import block_forward
from siglip_ref.towers.naflex import naflex_stem


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
    weights, how = subtree(params, "image"), cfg.conventions
    gelu, eps, seen = how.image_gelu, how.image_norm_eps, None
    if cfg.naflex:
        x, _ = naflex_stem(images, weights, cfg, ops)
        seen = images.seen[:, None, None, :]
    else:
        x, _ = ops.patch_embed_forward(images, weights["patch/kernel"], weights["patch/bias"], cfg.patch)
        x, _ = ops.position_forward(x, weights["position"])
    x = _encode(x, weights, cfg.image, gelu, eps, seen, ops)
    pooled, _ = ops.map_head_forward(x, subtree(weights, "pool"), cfg.image.heads, gelu, eps, seen)
    return _unit(pooled, how, ops)


def text_embeddings(params: Mapping[str, Array], tokens: Array, cfg: Config, ops: ModuleType) -> Array:
    """Unit vectors (B, D) of token ids (B, N); what `siglip_ref.forward` calls text_embed."""
    weights, how = subtree(params, "text"), cfg.conventions
    x, _ = ops.token_embed_forward(tokens, weights["token"])
    x, _ = ops.position_forward(x, weights["position"])
    x = _encode(x, weights, cfg.text, how.text_gelu, how.text_norm_eps, None, ops)
    pooled, _ = ops.pool_forward(x, tokens, how.text_pooling)
    if cfg.text_head:
        pooled, _ = ops.linear_forward(pooled, weights["head/kernel"], weights["head/bias"])
    return _unit(pooled, how, ops)


def _encode(
    x: Array,
    weights: Mapping[str, Array],
    tower: Tower,
    gelu: GeluForm,
    eps: float,
    mask: Array | None,
    ops: ModuleType,
) -> Array:
    block = getattr(ops, "block_forward", block_forward)  # a twin may fuse more than single operations
    for layer in range(tower.depth):
        x = block(x, subtree(weights, f"block{layer:02d}"), tower.heads, gelu, eps, mask, ops)[0]
    return ops.layer_norm_forward(x, weights["norm/gamma"], weights["norm/beta"], eps)[0]


def _unit(pooled: Array, how: Conventions, ops: ModuleType) -> Array:
    return ops.normalize_forward(pooled, how.embed_norm, how.embed_norm_eps)[0]
