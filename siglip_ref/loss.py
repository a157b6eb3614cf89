"""The whole loss, tiled from blocks; what a fresh model's loss should be."""

import math
from types import ModuleType
from typing import NamedTuple

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import pair_block
from siglip_ref.validate import require_embeddings

__all__ = ["LossAndGrads", "expected_loss", "pair_block", "sigmoid_loss"]


class LossAndGrads(NamedTuple):
    """A loss and its gradients, each in the shape and arithmetic of what it belongs to."""

    loss: Array
    d_image_embed: Array
    d_text_embed: Array
    d_log_scale: Array
    d_bias: Array


def sigmoid_loss(
    image_embed: Array,
    text_embed: Array,
    log_scale: Array,
    bias: Array,
    *,
    tile: int | None = None,
    deterministic: bool = False,
    ops: ModuleType | None = None,
) -> LossAndGrads:
    """The sigmoid loss of B pairs and all its gradients: the sum over all pairs, divided by B.

    Parameters
    ----------
    image_embed, text_embed : array, shape (B, D), unit rows; row i of both belong together
    log_scale, bias : numbers; logits = exp(log_scale) * image_embed @ text_embed.T + bias
    tile : rows and columns of a block (None: one block); changes memory and the order of summation, nothing else
    deterministic : bits that do not depend on tiles, threads and ranks; see `siglip_ref.reproducible`, which is slower
    ops : the operations: `siglip_ref.ops`, the specification (default), or a twin

    Returns
    -------
    LossAndGrads, in the arithmetic of the embeddings

    Source: arXiv 2303.15343, algorithm 1.

    Examples
    --------
    >>> eye = np.eye(3)
    >>> round(float(sigmoid_loss(eye, eye, math.log(10.0), -10.0).loss), 6)
    0.693238
    """
    require_embeddings(image_embed, text_embed)
    log_scale, bias = _scalar(log_scale, image_embed), _scalar(bias, image_embed)
    ops = ops or specification
    if deterministic:
        from siglip_ref.reproducible import sigmoid_loss as reproducible_loss

        return reproducible_loss(image_embed, text_embed, log_scale, bias, ops)
    if hasattr(ops, "sigmoid_loss"):  # a twin of this whole function, with a sweep over tiles of its own
        return ops.sigmoid_loss(image_embed, text_embed, log_scale, bias, tile=tile)  # type: ignore[no-any-return]
    block = ops.pair_block
    pairs = len(image_embed)
    tile = tile or pairs
    starts = range(0, pairs, tile)
    loss = d_log_scale = d_bias = 0
    d_image = {i: 0 for i in starts}
    d_text = {j: 0 for j in starts}
    for i in starts:
        for j in starts:
            x, y = image_embed[i : i + tile], text_embed[j : j + tile]
            match = np.eye(len(x), len(y), dtype=bool) if i == j else np.zeros((len(x), len(y)), bool)
            part = LossAndGrads(*block(x, y, log_scale, bias, match))
            loss, d_log_scale, d_bias = loss + part.loss, d_log_scale + part.d_log_scale, d_bias + part.d_bias
            d_image[i], d_text[j] = d_image[i] + part.d_image_embed, d_text[j] + part.d_text_embed
    d_image_embed, d_text_embed = np.concatenate(list(d_image.values())), np.concatenate(list(d_text.values()))
    return LossAndGrads(*(x / pairs for x in (loss, d_image_embed, d_text_embed, d_log_scale, d_bias)))


def expected_loss(pairs: int, log_scale: float, bias: float, similarity: float = 0.0) -> float:
    """The loss of a model that gives every pair the same similarity: what a fresh model shows.

    Parameters
    ----------
    pairs : B, over all ranks
    log_scale, bias : the parameters, as stored
    similarity : of every pair; fresh towers give nearly 0, and then the scale does not matter

    Examples
    --------
    >>> round(expected_loss(32768, math.log(10), -10.0), 4)
    11.4876
    """
    if pairs < 1:
        raise UsageError("at least one pair", str(pairs), "an empty batch has no loss", "give the global batch size")
    logit = math.exp(log_scale) * similarity + bias
    return _softplus(-logit) + (pairs - 1) * _softplus(logit)


def _softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def _scalar(value: Array, like: Array) -> Array:
    """A 0-d array of the embeddings' arithmetic; shape (1,), as some models store it, is welcome."""
    if like.dtype == object:
        return value
    return np.asanyarray(value).astype(like.dtype if not np.iscomplexobj(value) else np.complex128).reshape(())
