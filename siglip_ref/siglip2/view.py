"""A view of an image: a crop of any size, some of its patches hidden, as tokens after the encoder's final norm."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.siglip2.record import Recipe

MaskCache = namedtuple("MaskCache", "masked")
ViewCache = namedtuple("ViewCache", "patch mask resize position encoder")


def mask_tokens_forward(patches: Array, token: Array, masked: Array) -> tuple[Array, MaskCache]:
    """out_n = token where masked, else patches_n: after the patch embedding and its bias, before the position.

    Parameters
    ----------
    patches : array, shape (B, N, C)
    token : array, shape (C,), trained
    masked : array of bool, shape (B, N)

    Source: iBOT models/vision_transformer.py, mask_model.
    """
    return np.where(masked[..., None], token, patches), MaskCache(masked)


def mask_tokens_backward(d_out: Array, cache: MaskCache) -> tuple[Array, Array]:
    """Gradients of `mask_tokens_forward`: d_patches (B, N, C), exactly zero under the mask, and d_token (C,)."""
    hidden = cache.masked[..., None]
    # out = token where masked, else patches
    return np.where(hidden, 0, d_out), np.where(hidden, d_out, 0).sum((0, 1))


def view_forward(
    images: Array, weights: Mapping[str, Array], cfg: Config, conventions: Conventions,
    token: Array | None = None, masked: Array | None = None, *, ops: Recipe,
) -> tuple[Array, ViewCache]:  # fmt: skip
    """out = encoder(mask_tokens(patch_embed(images)) + position).

    Un-pooled tokens: what the decoder reads, what the pooling reads, what masked patches are judged by.

    Parameters
    ----------
    images : array, shape (B, height, width, 3); where its grid is not the table's, positions are resized to it
    weights : patch/..., position, blockII/..., norm/...: of the image tower
    token, masked : see `mask_tokens_forward`, or None: nothing is hidden

    Returns
    -------
    out : array, shape (B, N, C)

    How SigLIP 2 resized the table for local crops is not published; here as in its NaFlex models (`position_resize`).
    """
    patches, patch_cache = ops.patch_embed.forward(images, weights["patch/kernel"], weights["patch/bias"], cfg.patch)
    mask_cache = resize_cache = None
    if masked is not None:
        patches, mask_cache = ops.mask_tokens.forward(patches, token, masked)
    table, grid = weights["position"], (images.shape[1] // cfg.patch, images.shape[2] // cfg.patch)
    if grid != cfg.grid:
        table, resize_cache = ops.position_resize.forward(table.reshape(*cfg.grid, -1), *grid)
    stem, position_cache = ops.position.forward(patches, table)
    gelu, eps = conventions.image_gelu, conventions.image_norm_eps
    out, encoder_cache, _ = ops.encoder.forward(stem, weights, cfg.image, gelu, eps, None)
    return out, ViewCache(patch_cache, mask_cache, resize_cache, position_cache, encoder_cache)


def view_backward(d_out: Array, cache: ViewCache, *, ops: Recipe) -> tuple[Array, dict[str, Array], Array | None]:
    """Gradients of `view_forward`: d_images, a dict with the keys of `weights`, d_token (C,) where there is a mask."""
    # out = encoder(stem)
    d_stem, d, _ = ops.encoder.backward(d_out, cache.encoder)
    # stem = patches + table
    d_patches, d_table = ops.position.backward(d_stem, cache.position)
    if cache.resize is not None:
        # table = resized position, a linear map
        d_table = ops.position_resize.backward(d_table, cache.resize).reshape(-1, d_table.shape[-1])
    d_token = None
    if cache.mask is not None:
        # patches = token where masked
        d_patches, d_token = ops.mask_tokens.backward(d_patches, cache.mask)
    # patches = patch_embed(images)
    d_images, d_kernel, d_bias = ops.patch_embed.backward(d_patches, cache.patch)
    return d_images, d | {"position": d_table, "patch/kernel": d_kernel, "patch/bias": d_bias}, d_token


def masks(noise: Array, count: int) -> Array:
    """The places with the least noise, `count` in each row; of equals the first.

    Pattern and rounding are not published: half of 729 patches is 364 or 365, as `count` says.

    >>> masks(np.array([[0.3, 0.1, 0.2]]), 2)
    array([[False,  True,  True]])
    """
    return noise.argsort(-1, kind="stable").argsort(-1) < count
