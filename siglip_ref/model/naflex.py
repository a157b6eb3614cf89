"""SigLIP 2's image tower for any shape: patches given, positions resized to each image's grid, padding never seen."""

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import Ops

NaflexCache = namedtuple("NaflexCache", "patch resized encoder pool")


@dataclass(frozen=True)
class Patches:
    """A batch of images cut into patches: values (B, N, P), zero beyond each image's own; grids int (B, 2), rows and
    columns of patches."""

    values: Array
    grids: Array

    def __len__(self) -> int:
        return len(self.values)

    @property
    def seen(self) -> Array:
        """Which patches are an image's own: bool (B, N)."""
        return np.arange(self.values.shape[1]) < self.grids.prod(-1)[:, None]


def naflex_tower_forward(
    images: Patches, weights: Mapping[str, Array], cfg: Config, conventions: Conventions, *, ops: Ops
) -> tuple[Array, NaflexCache, dict[str, Array]]:
    """From patches to one vector per image, not yet of unit length; as `image_tower_forward` otherwise.

    Padding carries the position of the first patch, as in transformers and big_vision. No key or value comes from it,
    so it changes nothing.

    Source: big_vision models/proj/image_text/naflex_vit.py; transformers' modeling_siglip2.py.
    """
    gelu, eps, mask = conventions.image_gelu, conventions.image_norm_eps, images.seen[:, None, None, :]  # (B, 1, 1, N)
    stem, (patch_cache, resize_caches) = naflex_stem(images, weights, cfg, ops)
    tokens, encoder_cache, activations = ops.encoder.forward(stem, weights, cfg.image, gelu, eps, mask)
    pooled, pool_cache = ops.map_head.forward(tokens, subtree(weights, "pool"), cfg.image.heads, gelu, eps, mask)
    cache = NaflexCache(patch_cache, resize_caches, encoder_cache, pool_cache)
    return pooled, cache, {"stem": stem} | activations | {"pool": pooled}


def naflex_stem(
    images: Patches, weights: Mapping[str, Array], cfg: Config, ops: Ops
) -> tuple[Array, tuple[Any, list[Any]]]:
    """Patches as vectors, with positions: (B, N, C)."""
    patches, patch_cache = ops.linear.forward(images.values, weights["patch/kernel"], weights["patch/bias"])
    table = weights["position"].reshape(*cfg.grid, -1)
    resized = [ops.position_resize.forward(table, int(rows), int(columns)) for rows, columns in images.grids]
    room = images.values.shape[1]
    positions = [np.concatenate([at, np.repeat(at[:1], room - len(at), 0)]) for at, _ in resized]
    return patches + np.stack(positions), (patch_cache, [cache for _, cache in resized])


def naflex_tower_backward(
    d_pooled: Array, cache: NaflexCache, *, ops: Ops
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Gradients of `naflex_tower_forward`: a dict with the keys of `weights`, one with those of `activations`.

    Padding reaches neither the pooled vector nor another patch, so the gradient at its position is zero.
    """
    patch_cache, resize_caches, encoder_cache, pool_cache = cache
    # pooled = map_head(tokens)
    d_tokens, d_pool = ops.map_head.backward(d_pooled, pool_cache)
    # tokens = encoder(stem)
    d_stem, d, d_activations = ops.encoder.backward(d_tokens, encoder_cache)
    # stem = patches + resized positions
    d_tables = [
        ops.position_resize.backward(d_image[: len(at[0]) * len(at[2])], at)
        for d_image, at in zip(d_stem, resize_caches, strict=True)
    ]
    d["position"] = np.stack(d_tables).sum(0).reshape(-1, d_stem.shape[-1])
    _, d["patch/kernel"], d["patch/bias"] = ops.linear.backward(d_stem, patch_cache)
    return d | prefixed("pool", d_pool), {"stem": d_stem} | d_activations | {"pool": d_pooled}
