"""The image tower: patches, positions, encoder, attention pooling."""

from collections import namedtuple
from collections.abc import Mapping

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import Ops

ImageCache = namedtuple("ImageCache", "patch position encoder pool")


def image_tower_forward(
    images: Array, weights: Mapping[str, Array], cfg: Config, conventions: Conventions, *, ops: Ops
) -> tuple[Array, ImageCache, dict[str, Array]]:
    """From pixels to one vector per image, not yet of unit length.

    Parameters
    ----------
    images : array, shape (B, height, width, 3), in [-1, 1]
    weights : patch/..., position, blockII/..., norm/..., pool/...

    Returns
    -------
    pooled : array, shape (B, D)
    activations : stem (patches with positions), the encoder's, pool

    Source: big_vision models/vit.py with pool_type "map": the final norm before the pooling, no projection after it.
    """
    gelu, eps = conventions.image_gelu, conventions.image_norm_eps
    patches, patch_cache = ops.patch_embed.forward(images, weights["patch/kernel"], weights["patch/bias"], cfg.patch)
    stem, position_cache = ops.position.forward(patches, weights["position"])
    tokens, encoder_cache, activations = ops.encoder.forward(stem, weights, cfg.image, gelu, eps, None)
    pooled, pool_cache = ops.map_head.forward(tokens, subtree(weights, "pool"), cfg.image.heads, gelu, eps)
    cache = ImageCache(patch_cache, position_cache, encoder_cache, pool_cache)
    return pooled, cache, {"stem": stem} | activations | {"pool": pooled}


def image_tower_backward(d_pooled: Array, cache: ImageCache, *, ops: Ops) -> tuple[dict[str, Array], dict[str, Array]]:
    """Gradients of `image_tower_forward`: a dict with the keys of `weights`, one with those of `activations`.

    That of the images is the first of `patch_embed.backward`, from that of the stem.
    """
    patch_cache, position_cache, encoder_cache, pool_cache = cache
    # pooled = map_head(tokens)
    d_tokens, d_pool = ops.map_head.backward(d_pooled, pool_cache)
    # tokens = encoder(stem)
    d_stem, d, d_activations = ops.encoder.backward(d_tokens, encoder_cache)
    # stem = patches + position
    d_patches, d["position"] = ops.position.backward(d_stem, position_cache)
    _, d["patch/kernel"], d["patch/bias"] = ops.patch_embed.backward(d_patches, patch_cache)
    return d | prefixed("pool", d_pool), {"stem": d_stem} | d_activations | {"pool": d_pooled}
