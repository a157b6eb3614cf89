"""Bad input gets a clear error before any arithmetic: expected, got, likely cause, repair."""

from collections.abc import Mapping

import numpy as np

from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError, few
from siglip_ref.ops.elementary import Array


def require_embeddings(image_embed: Array, text_embed: Array) -> None:
    """Two (B, D) arrays of the same shape, B at least 1."""
    if image_embed.ndim != 2 or image_embed.shape != text_embed.shape or image_embed.size == 0:
        raise UsageError(
            expected="image_embed and text_embed of one shape (B, D), B and D at least 1",
            got=f"image_embed {image_embed.shape}, text_embed {text_embed.shape}",
            cause="the batch is empty, or images and texts were not paired row by row",
            repair="give row i of both arrays to pair i",
        )


def require_inputs(params: Mapping[str, Array], images: Array, tokens: Array, cfg: Config, mask: Array | None) -> None:
    """Parameters, images, tokens and mask that fit the model."""
    wanted = shapes(cfg)
    if params.keys() != wanted.keys():
        missing, unknown = wanted.keys() - params.keys(), params.keys() - wanted.keys()
        raise UsageError(
            expected=f"the {len(wanted)} parameters of {cfg.name}",
            got=f"missing: {few(sorted(missing))}; unknown: {few(sorted(unknown))}",
            cause="the parameters belong to another model size",
            repair=f'sr.init(sr.config("{cfg.name}")) has the right names',
        )
    found = {name: params[name].shape for name in wanted}
    if found != wanted:
        wrong = [f"{name} {found[name]}, not {shape}" for name, shape in wanted.items() if found[name] != shape]
        raise UsageError(
            expected=f"the shapes of {cfg.name}",
            got=few(sorted(wrong)),
            cause="the parameters belong to another model size, or a kernel is transposed",
            repair="kernels are (in, out); siglip_ref.architecture.params.shapes(cfg) lists every shape",
        )
    height, width = cfg.image_size
    if cfg.naflex:
        _require_patches(images, cfg)
    elif images.ndim != 4 or images.shape[1:] != (height, width, 3) or len(images) == 0:
        raise UsageError(
            expected=f"images (B, {height}, {width}, 3)",
            got=f"images {images.shape}",
            cause="channels first, or another resolution",
            repair="images.transpose(0, 2, 3, 1) brings channels last",
        )
    if tokens.ndim != 2 or len(tokens) != len(images) or not 1 <= tokens.shape[1] <= cfg.text_length:
        raise UsageError(
            expected=f"tokens ({len(images)}, at most {cfg.text_length}), one row per image",
            got=f"tokens {tokens.shape}",
            cause="a batch of another size, or texts longer than the position table",
            repair=f"pad or cut every text to {cfg.text_length} tokens",
        )
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= cfg.vocabulary:
        raise UsageError(
            expected=f"integer tokens from 0 to {cfg.vocabulary - 1}",
            got=f"dtype {tokens.dtype}, from {tokens.min()} to {tokens.max()}",
            cause="a tokeniser with another vocabulary",
            repair="use the tokeniser the model was made with",
        )
    if mask is not None and (mask.shape != tokens.shape or not mask.any(-1).all()):
        raise UsageError(
            expected=f"a mask {tokens.shape} with at least one visible token per row",
            got=f"mask {mask.shape}" + ("" if mask.shape != tokens.shape else ", a row with nothing to see"),
            cause="a mask of another batch, or the inverse of a mask",
            repair="True (or 1) marks the tokens that may be seen",
        )


def _require_patches(images: Array, cfg: Config) -> None:
    """Patches of one batch, each grid at least one patch and no more than there is room for."""
    values: Array = getattr(images, "values", np.zeros(0))
    grids: Array = getattr(images, "grids", np.zeros(0))
    numbers = cfg.patch * cfg.patch * 3
    fits = values.ndim == 3 and values.shape[2] == numbers and len(values) > 0
    if not fits or grids.shape != (len(values), 2) or grids.min() < 1 or grids.prod(-1).max() > values.shape[1]:
        raise UsageError(
            expected=f"Patches: values (B, N, {numbers}) and grids (B, 2), each grid of at most N patches",
            got=f"{type(images).__name__}" + (f", values {values.shape}, grids {grids.tolist()}" if fits else ""),
            cause="whole images given to a NaFlex model, or grids of another batch",
            repair="siglip_ref.use.preprocess.patches cuts an image; stack them, with their grids",
        )
