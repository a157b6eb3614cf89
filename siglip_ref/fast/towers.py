"""The towers, where they are narrow: one kernel each way, as small models spend their time on calls, not on numbers.

Wide ones go operation by operation, with the twins of operations and blocks.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.architecture import params
from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.fast.attention import HEAD, root_of, seen_by_head
from siglip_ref.fast.gelu import FORMS
from siglip_ref.fast.kernels.towers import (
    all_images,
    all_texts,
    d_all_images,
    d_all_texts,
    d_some_images,
    d_some_texts,
    some_images,
    some_texts,
)
from siglip_ref.fast.machine.blas import gemm_address
from siglip_ref.fast.machine.fit import NOTHING, empty, gradient_of, rows_in_memory, same_precision
from siglip_ref.fast.machine.packed import Layout, layout, pieces
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.fast.patches import PatchCache, patch_embed_backward, patch_embed_weights
from siglip_ref.model import image as plain_image
from siglip_ref.model import text as plain_text
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.pooling import pool_forward
from siglip_ref.ops.record import Ops, Pair

# Narrow is where the hidden layers of at least FEWEST rows, and of a whole sequence, are NEAR numbers together.
NEAR, FEWEST = 1 << 16, 128
Gradients = dict[str, Array]


class Settings(NamedTuple):
    """What both ways of all blocks have in common."""

    mask: Array
    heads: int
    root: Array
    eps: float
    form: int
    nothing: Array


class TowerCache(NamedTuple):
    """What the backward needs."""

    cfg: Config
    inputs: Array  # images, or tokens
    flat: Array
    token: Any  # cache of the tokens' vectors
    speaker: Array | None  # of each text
    settings: Settings
    kept: tuple[Any, ...]
    few: int
    work: int  # multiplications of the forward

    @property
    def patch(self) -> PatchCache:
        """That of the patches, of an image tower."""
        return PatchCache(self.inputs, pieces(self.flat, _layout(self.cfg, "image/"))["patch/kernel"], self.cfg.patch)


@lru_cache(maxsize=8)
def _without_pixels(ops: Ops) -> Ops:
    """The same, but for the gradient of the images, which a tower has no use for."""
    forward, backward = ops.patch_embed
    return replace(ops, patch_embed=Pair(forward, patch_embed_weights)) if backward is patch_embed_backward else ops


@cache
def _layout(cfg: Config, tower: str) -> Layout:
    """Where each weight of a tower lies among all of them, but for the token table and what widens it."""
    shapes = {
        name.removeprefix(tower): shape
        for name, shape in params.shapes(cfg).items()
        if name.startswith(tower) and name not in ("text/token", "text/widen/kernel")
    }
    return layout(shapes)


@cache
def _stream_names(depth: int) -> tuple[tuple[int, int, str], ...]:
    return tuple(
        (layer, half, f"block{layer:02d}/{name}")
        for layer in range(depth)
        for half, name in enumerate(("+attn", "+mlp"))
    )


def _at_a_time(sequences: int, tokens: int, tower: Tower) -> int:
    """How many sequences a thread takes at once; 0: the tower is wide, or has no block that a kernel could begin at."""
    rows = NEAR // tower.mlp if tower.depth else 0
    return min(sequences, rows // tokens) if rows >= max(FEWEST, tokens) else 0


def _settings(seen: Array | None, stem: Array, tower: Tower, gelu: GeluForm, eps: float) -> Settings:
    batch, tokens, _ = stem.shape
    mask = seen_by_head(seen, batch, tower.heads, tokens, tokens)
    return Settings(mask, tower.heads, root_of(stem, tower.heads), eps, FORMS[gelu], NOTHING[stem.dtype])


def _encoder_kept(stem: Array, tower: Tower) -> tuple[Array, ...]:
    """Room for what `encoder_kernels.encode` keeps."""
    batch, tokens, width = stem.shape
    rows, depth = batch * tokens, tower.depth
    shapes = (
        (depth, 2, rows, 2), (depth, 4, batch, tokens, width), (depth, batch * tower.heads, tokens, 2),
        (depth, 2, rows, width), (depth, rows, tower.mlp), (rows, 2),
    )  # fmt: skip
    return tuple([empty(shape, stem) for shape in shapes])


def _head_kept(stem: Array, tower: Tower) -> tuple[Array, ...]:
    """Room for what `map_head.pool` keeps."""
    batch, inside, one, read = len(stem), stem.shape, (len(stem), 1, tower.width), (len(stem), tower.width)
    shapes = (one, inside, inside, (batch * tower.heads, 1, 2), one, read, (batch, 2), (batch, tower.mlp))
    return tuple([empty(shape, stem) for shape in shapes])


def _encoder_work(stem: Array, tower: Tower) -> int:
    """Multiplications of its forward."""
    products: int = 2 * stem.size * (tower.mlp + 2 * tower.width)
    return tower.depth * (products + len(stem) * tower.heads * HEAD)


def _by_half(stream: Array, batch: int) -> dict[str, Array]:
    """The stream after each half of each block, (B, N, C), under the specification's names."""
    depth, _, rows, width = stream.shape
    halves = stream.reshape(depth, 2, batch, rows // batch, width)
    return {name: halves[layer, half] for layer, half, name in _stream_names(depth)}


def _run(alone: Any, together: Any, work: int, sequences: int, *arguments: Any) -> None:
    """One kernel where a second thread would bring nothing, another where it does."""
    with parts_for(work) as most:
        threads = min(most, sequences)
        if threads == 1:
            alone(*arguments, 0, sequences)
        else:
            together(*arguments, threads)


def _lines(images: Array) -> Array:
    return images.reshape(*images.shape[:2], -1)


def image_tower_forward(
    images: Array, weights: Mapping[str, Array], cfg: Config, conventions: Conventions, *, ops: Ops
) -> tuple[Array, Any, dict[str, Array]]:
    """Twin of `siglip_ref.model.image.image_tower_forward`."""
    tower, batch, tokens = cfg.image, len(images), cfg.patches
    few, laid = _at_a_time(batch, tokens, tower), _layout(cfg, "image/")
    arrays = [weights[name] for name in laid.places] if few else []
    fits = few and tower.width % tower.heads == 0 and images.shape[1:] == (*cfg.image_size, 3)
    if not fits or not same_precision(images, *arrays) or [array.shape for array in arrays] != laid.shapes:
        return plain_image.image_tower_forward(images, weights, cfg, conventions, ops=ops)
    images, flat, inside = rows_in_memory(images), np.concatenate(arrays, axis=None), (batch, tokens, tower.width)
    stem, out, pooled = empty(inside, flat), empty(inside, flat), empty((batch, tower.width), flat)
    settings = _settings(None, stem, tower, conventions.image_gelu, conventions.image_norm_eps)
    encoder = _encoder_kept(stem, tower)
    kept = (stem, out, *encoder, *_head_kept(stem, tower))
    work = _encoder_work(stem, tower) + stem.size * (3 * cfg.patch**2 + 2 * tower.width)
    _run(
        some_images, all_images, work, batch, gemm_address(flat.dtype), _lines(images), cfg.patch, cfg.grid[1], flat,
        tuple(settings), kept, few, pooled,
    )  # fmt: skip
    activations = {"stem": stem} | _by_half(encoder[3], batch) | {"norm": out, "pool": pooled}
    return pooled, TowerCache(cfg, images, flat, None, None, settings, kept, few, work), activations


def image_tower_backward(d_pooled: Array, cache: Any, *, ops: Ops) -> tuple[Gradients, Gradients]:
    """Twin of `siglip_ref.model.image.image_tower_backward`."""
    if not isinstance(cache, TowerCache):
        return plain_image.image_tower_backward(d_pooled, cache, ops=_without_pixels(ops))
    cfg, images, flat, _, _, settings, kept, few, work = cache
    stem, stream = kept[0], kept[5]
    d_pooled = gradient_of(d_pooled, (len(stem), cfg.embed), flat)
    d_flat, d_tokens, d_stream, d_stem = (empty(x.shape, x) for x in (flat, stem, stream, stem))
    _run(
        d_some_images, d_all_images, 2 * work, len(stem), gemm_address(flat.dtype), rows_in_memory(d_pooled),
        _lines(images), cfg.patch, cfg.grid[1], flat, tuple(settings), kept, few, d_flat, d_tokens, d_stream, d_stem,
    )  # fmt: skip
    d_activations = {"stem": d_stem} | _by_half(d_stream, len(stem)) | {"norm": d_tokens, "pool": d_pooled}
    return pieces(d_flat, _layout(cfg, "image/")), d_activations


def text_tower_forward(
    tokens: Array,
    weights: Mapping[str, Array],
    cfg: Config,
    conventions: Conventions,
    mask: Array | None = None,
    *,
    ops: Ops,
) -> tuple[Array, Any, dict[str, Array]]:
    """Twin of `siglip_ref.model.text.text_tower_forward`."""
    tower, (batch, length), pooling = cfg.text, tokens.shape, conventions.text_pooling
    tables = [weights[name] for name in ("token", "widen/kernel") if name in weights]
    few, laid = _at_a_time(batch, length, tower), _layout(cfg, "text/")
    arrays = [weights[name] for name in laid.places] if few and cfg.text_head else []
    fits = arrays and tower.width % tower.heads == 0 and pooling != "mean" and length <= cfg.text_length
    same = same_precision(*tables, *arrays) and tables[-1].shape[1:] == (tower.width,)
    if not fits or not same or [array.shape for array in arrays] != laid.shapes:
        return plain_text.text_tower_forward(tokens, weights, cfg, conventions, mask, ops=ops)
    stem, token_cache = plain_text.token_vectors(tokens, weights, cfg, ops)
    flat, stem = np.concatenate(arrays, axis=None), np.ascontiguousarray(stem)
    out, taken, head = empty(stem.shape, flat), empty((batch, tower.width), flat), empty((batch, cfg.embed), flat)
    seen = plain_text.seen_tokens(tokens, mask, conventions)
    settings = _settings(seen, stem, tower, conventions.text_gelu, conventions.text_norm_eps)
    encoder, (_, (_, chosen)) = _encoder_kept(stem, tower), pool_forward(stem, tokens, pooling)
    kept = (stem, out, taken, *encoder)
    work = _encoder_work(stem, tower) + taken.size * cfg.embed
    _run(
        some_texts, all_texts, work, batch, gemm_address(flat.dtype), cfg.text_length, flat, chosen, tuple(settings),
        kept, few, head,
    )  # fmt: skip
    activations = {"stem": stem} | _by_half(encoder[3], batch) | {"norm": out, "pool": taken, "head": head}
    return head, TowerCache(cfg, tokens, flat, token_cache, chosen, settings, kept, few, work), activations


def text_tower_backward(d_pooled: Array, cache: Any, *, ops: Ops) -> tuple[Gradients, Gradients]:
    """Twin of `siglip_ref.model.text.text_tower_backward`."""
    if not isinstance(cache, TowerCache):
        return plain_text.text_tower_backward(d_pooled, cache, ops=ops)
    cfg, _, flat, token_cache, chosen, settings, kept, few, work = cache
    stem, taken, stream = kept[0], kept[2], kept[6]
    d_pooled = gradient_of(d_pooled, (len(stem), cfg.embed), flat)
    likes = (flat, taken, stem, stream, stem)
    d_flat, d_taken, d_out, d_stream, d_stem = (empty(like.shape, like) for like in likes)
    _run(
        d_some_texts, d_all_texts, 2 * work, len(stem), gemm_address(flat.dtype), rows_in_memory(d_pooled),
        cfg.text_length, flat, chosen, tuple(settings), kept, few, d_flat, d_taken, d_out, d_stream, d_stem,
    )  # fmt: skip
    d_tokens = plain_text.d_token_vectors(d_stem, token_cache, cfg.bottleneck > 0, ops)
    d_activations = {"stem": d_stem} | _by_half(d_stream, len(stem))
    d_activations |= {"norm": d_out, "pool": d_taken, "head": d_pooled}
    return pieces(d_flat, _layout(cfg, "text/")) | d_tokens, d_activations
