"""The image tower: patches, positions, encoder, attention pooling."""

from collections.abc import Mapping
from typing import Any

from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.tree import prefixed, subtree
from siglip_ref.record import Ops
from siglip_ref.sizes import Config
from siglip_ref.towers.encoder import Cache


def image_tower_forward(
    images: Array, weights: Mapping[str, Array], cfg: Config, conventions: Conventions, *, ops: Ops
) -> tuple[Array, Cache, dict[str, Array]]:
    """From pixels to one vector per image, not yet of unit length.

    Parameters
    ----------
    images : array, shape (B, height, width, 3), in [-1, 1]
    weights : patch/..., position, blockII/..., norm/..., pool/...

    Returns
    -------
    pooled : array, shape (B, D)
    cache : what `image_tower_backward` needs
    activations : stem (patches with positions), the encoder's, pool

    Source: big_vision models/vit.py with pool_type "map": the final norm before the pooling, no projection after it.
    """
    gelu, eps = conventions.image_gelu, conventions.image_norm_eps
    patches, patch_cache = ops.patch_embed.forward(images, weights["patch/kernel"], weights["patch/bias"], cfg.patch)
    stem, _ = ops.position.forward(patches, weights["position"])
    tokens, encoder_cache, activations = ops.encoder.forward(stem, weights, cfg.image, gelu, eps, None)
    pooled, pool_cache = ops.map_head.forward(tokens, subtree(weights, "pool"), cfg.image.heads, gelu, eps)
    cache = (patch_cache, weights["position"], encoder_cache, pool_cache)
    return pooled, cache, {"stem": stem} | activations | {"pool": pooled}


def image_tower_backward(
    d_pooled: Array, cache: Cache, pixels: bool = True, *, ops: Ops
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
    """Gradients of `image_tower_forward`: d_images, a dict with the keys of `weights`, one of `activations`.

    Without `pixels` d_images is None.
    """
    patch_cache, position, encoder_cache, pool_cache = cache
    # pooled = map_head(tokens)
    d_tokens, d_pool = ops.map_head.backward(d_pooled, pool_cache)
    # tokens = encoder(stem)
    d_stem, d, d_activations = ops.encoder.backward(d_tokens, encoder_cache)
    # stem = patches + position
    d_patches, d["position"] = ops.position.backward(d_stem, position)
    d_images, d["patch/kernel"], d["patch/bias"] = ops.patch_embed.backward(d_patches, patch_cache, pixels)
    return d_images, d | prefixed("pool", d_pool), {"stem": d_stem} | d_activations | {"pool": d_pooled}
