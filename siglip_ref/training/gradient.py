"""The gradient of one batch, spread over ranks and over micro-batches, with all its negatives.

Embeddings are small, the activations behind them are not. So a batch too large for memory goes through the towers in
pieces: first the embeddings of all pieces alone; then the loss of the whole batch, and its gradient by the embeddings;
then each piece once more, this time with activations, to carry its rows of that gradient back.

Source: Gao et al. 2021 (GradCache), arXiv 2101.06983.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import Ops, Pair
from siglip_ref.use.inference import image_embeddings, text_embeddings

Backward = Callable[[Array], dict[str, Array]]


@lru_cache(maxsize=4)
def of_parameters(ops: Ops) -> Ops:
    """The same operations for who wants gradients by parameters alone: the encoder names no activations, so that each
    can go, and its gradient, as soon as a block's backward is done with it.

    Of a B/16 with 8 pairs they are 380 MB, half as much as all its gradients.
    """

    def forward(*given: Any) -> Any:
        out, cache, _ = ops.encoder.forward(*given)
        return out, cache, {}

    def backward(d_out: Array, cache: Any) -> Any:
        # as `siglip_ref.model.encoder.encoder_backward`, which keeps all gradients by activations
        d_x, d_gamma, d_beta = ops.layer_norm.backward(d_out, cache.norm_cache)
        d = {"norm/gamma": d_gamma, "norm/beta": d_beta}
        for layer in reversed(range(len(cache.block_caches))):
            d_x, _, d_block = ops.block.backward(d_x, cache.block_caches[layer])
            d |= prefixed(f"block{layer:02d}", d_block)
        return d_x, d, {}

    return replace(ops, encoder=Pair(forward, backward))


def image_side(params: Mapping[str, Array], images: Array, cfg: Config, ops: Ops) -> tuple[Array, Backward]:
    """Unit embeddings, and the function from their gradients to the parameters'."""
    how = cfg.conventions
    pooled, cache, _ = ops.image_tower.forward(images, subtree(params, "image"), cfg, how)
    embed, norm_cache = ops.normalize.forward(pooled, how.embed_norm, how.embed_norm_eps)

    def backward(d_embed: Array) -> dict[str, Array]:
        d_pooled = ops.normalize.backward(d_embed, norm_cache)
        return prefixed("image", ops.image_tower.backward(d_pooled, cache)[0])

    return embed, backward


def text_side(params: Mapping[str, Array], tokens: Array, cfg: Config, ops: Ops) -> tuple[Array, Backward]:
    """The same for texts; those that occur several times, as captions of classes do, are computed once."""
    how = cfg.conventions
    different, place = np.unique(tokens, axis=0, return_inverse=True)
    pooled, cache, _ = ops.text_tower.forward(different, subtree(params, "text"), cfg, how)
    embed, norm_cache = ops.normalize.forward(pooled, how.embed_norm, how.embed_norm_eps)

    def backward(d_embed: Array) -> dict[str, Array]:
        # embeddings = embed[place]
        d_different = np.zeros_like(embed)
        np.add.at(d_different, place, d_embed)
        return prefixed("text", ops.text_tower.backward(ops.normalize.backward(d_different, norm_cache), cache)[0])

    return embed[place], backward


def locked_side(params: Mapping[str, Array], embeddings: Array, cfg: Config, ops: Ops) -> tuple[Array, Backward]:
    """A locked tower: its embeddings were computed beforehand, nothing is learnt."""
    return embeddings, lambda d_embed: {}


def locked(params: Mapping[str, Array], embeddings: Array, cfg: Config, ops: Ops) -> Array:
    return embeddings


def head_side(params: Mapping[str, Array], features: Array, cfg: Config, ops: Ops) -> tuple[Array, Backward]:
    """A text tower that is locked up to its head: what the head is given was computed beforehand."""
    embed, head_cache = ops.linear.forward(features, params["text/head/kernel"], params["text/head/bias"])
    unit, norm_cache = ops.normalize.forward(embed, cfg.conventions.embed_norm, cfg.conventions.embed_norm_eps)

    def backward(d_unit: Array) -> dict[str, Array]:
        # unit = normalize(features @ head/kernel + head/bias)
        _, d_kernel, d_bias = ops.linear.backward(ops.normalize.backward(d_unit, norm_cache), head_cache)
        return {"text/head/kernel": d_kernel, "text/head/bias": d_bias}

    return unit, backward


def headed(params: Mapping[str, Array], features: Array, cfg: Config, ops: Ops) -> Array:
    embed: Array = head_side(params, features, cfg, ops)[0]
    return embed


# a tower: with a way back, and without activations
SIDES: dict[str, tuple[Any, Any]] = {
    "image": (image_side, partial(image_embeddings, whole=True)),
    "text": (text_side, partial(text_embeddings, whole=True)),
    "locked": (locked_side, locked),
    "head": (head_side, headed),
}
Loss = Callable[[Array, Array], LossAndGrads]


def gradient(
    params: Mapping[str, Array],
    images: Array,
    tokens: Array,
    loss: Loss,
    cfg: Config,
    ops: Ops,
    micro: int = 0,
    image_side: str = "image",
    text_side: str = "text",
) -> tuple[LossAndGrads, dict[str, Array]]:
    """Loss and gradients of this rank's pairs.

    Parameters
    ----------
    images, tokens : this rank's rows of the batch; may be none
    loss : of the embeddings, with its gradients by them; over ranks: of all ranks' pairs
    micro : pairs whose activations are held at once (0: all)
    image_side, text_side : names in `SIDES`

    Returns
    -------
    loss : as `loss` gave it
    grads : what this rank's pairs add to the gradients of the towers' parameters
    """
    ops = of_parameters(ops)
    sides = [(images, *SIDES[image_side]), (tokens, *SIDES[text_side])]
    rows = len(images)
    if rows <= (micro or rows):
        (x, x_back), (y, y_back) = (forward(params, inputs, cfg, ops) for inputs, forward, _ in sides)
        found = loss(x, y)
        return found, x_back(found.d_image_embed) | y_back(found.d_text_embed)
    pieces = [slice(start, start + micro) for start in range(0, rows, micro)]
    x, y = (np.concatenate([embed(params, inputs[p], cfg, ops) for p in pieces]) for inputs, _, embed in sides)
    found = loss(x, y)
    grads: dict[str, Array] = {}
    for (inputs, forward, _), d_embed in zip(sides, (found.d_image_embed, found.d_text_embed), strict=True):
        for p in pieces:
            part = forward(params, inputs[p], cfg, ops)[1](d_embed[p])
            grads |= {name: grads[name] + g if name in grads else g for name, g in part.items()}
    return found, grads
