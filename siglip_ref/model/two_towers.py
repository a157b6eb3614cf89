"""The two-tower model: embeddings, logits, the loss and the gradient of every parameter."""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.architecture.validate import require_inputs
from siglip_ref.model.loss import sigmoid_loss
from siglip_ref.model.specification import chosen
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.record import Ops

Named = tuple[dict[str, Array], dict[str, Array]]  # activations of the image tower, of the text tower
ModelCache = namedtuple("ModelCache", "image text image_norm text_norm")


@dataclass(frozen=True)
class Output:
    """What `forward` returns: unit embeddings (B, D), logits (images, texts), activations by name if asked for."""

    image_embed: Array
    text_embed: Array
    logits: Array
    activations: dict[str, Array] = field(default_factory=dict)


def forward(
    params: Mapping[str, Array],
    images: Array,
    tokens: Array,
    cfg: Config,
    conventions: Conventions | None = None,
    ops: Ops | ModuleType | None = None,
    mask: Array | None = None,
    activations: bool = False,
) -> Output:
    """Embeddings and logits of every image with every text.

    Parameters
    ----------
    params : dict, name -> array, see `siglip_ref.architecture.params.shapes`
    images : array, shape (B, height, width, 3), in [-1, 1]; for a NaFlex model `siglip_ref.model.naflex.Patches`
    tokens : int array, shape (B, N)
    cfg : the model, from `config`
    conventions : default those of `cfg`
    ops : the operations: `siglip_ref.ops`, the specification (default), or a twin
    mask : array of bool, shape (B, N), or None: tokens that may be seen
    activations : also return every named intermediate result

    Returns
    -------
    Output, in the arithmetic of `params`

    Examples
    --------
    >>> import siglip_ref as sr
    >>> cfg = sr.config("tiny")
    >>> images, tokens = np.zeros((2, 12, 28, 3)), np.ones((2, 9), int)
    >>> sr.forward(sr.init(cfg), images, tokens, cfg).logits.shape
    (2, 2)
    """
    image_embed, text_embed, named, _ = _forward(
        params, images, tokens, cfg, conventions or cfg.conventions, chosen(ops), mask
    )
    out = _output(params, image_embed, text_embed, named)
    return out if activations else Output(out.image_embed, out.text_embed, out.logits)


def loss_and_grads(
    params: Mapping[str, Array],
    images: Array,
    tokens: Array,
    cfg: Config,
    conventions: Conventions | None = None,
    ops: Ops | ModuleType | None = None,
    mask: Array | None = None,
    wrt: Sequence[str] = ("params",),
) -> tuple[Array, dict[str, Array]]:
    """The sigmoid loss of a batch of pairs, and the gradient of every parameter.

    Parameters
    ----------
    params, images, tokens, cfg, conventions, ops, mask : as in `forward`; image i and text i belong together
    wrt : what to differentiate by: "params", "images" (adds the key "images"), "activations" (adds "@" + the name that
        `forward` gives each)

    Returns
    -------
    loss : 0-d, in the arithmetic of `params`
    grads : dict; the parameters' gradients have the parameters' names and shapes

    Examples
    --------
    >>> import siglip_ref as sr
    >>> cfg = sr.config("tiny")
    >>> images, tokens = np.zeros((2, 12, 28, 3)), np.ones((2, 9), int)
    >>> loss, grads = sr.loss_and_grads(sr.init(cfg), images, tokens, cfg)
    >>> grads["text/token"].shape
    (29, 12)
    """
    ops = chosen(ops)
    image_embed, text_embed, _, cache = _forward(params, images, tokens, cfg, conventions or cfg.conventions, ops, mask)
    return _backward(params, image_embed, text_embed, cache, cfg, ops, wrt)


def values_and_grads(
    params: Mapping[str, Array],
    images: Array,
    tokens: Array,
    cfg: Config,
    conventions: Conventions | None = None,
    ops: Ops | ModuleType | None = None,
    mask: Array | None = None,
    wrt: Sequence[str] = ("params",),
) -> tuple[Output, Array, dict[str, Array]]:
    """What `forward` gives, activations too, and what `loss_and_grads` gives, in one pass."""
    ops = chosen(ops)
    image_embed, text_embed, named, cache = _forward(
        params, images, tokens, cfg, conventions or cfg.conventions, ops, mask
    )
    loss, grads = _backward(params, image_embed, text_embed, cache, cfg, ops, wrt)
    return _output(params, image_embed, text_embed, named), loss, grads


def _backward(
    params: Mapping[str, Array], image_embed: Array, text_embed: Array, cache: ModelCache, cfg: Config, ops: Ops,
    wrt: Sequence[str],
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    image_cache, text_cache, image_norm_cache, text_norm_cache = cache
    pairs = sigmoid_loss(image_embed, text_embed, params["log_scale"], params["bias"], ops=ops)
    # image_embed = normalize(image tower), text_embed = normalize(text tower)
    d_image_pooled = ops.normalize.backward(pairs.d_image_embed, image_norm_cache)
    d_text_pooled = ops.normalize.backward(pairs.d_text_embed, text_norm_cache)
    image_tower = ops.naflex_tower if cfg.naflex else ops.image_tower
    d_image, d_image_activations = image_tower.backward(d_image_pooled, image_cache)
    d_text, d_text_activations = ops.text_tower.backward(d_text_pooled, text_cache)
    by_name = prefixed("image", d_image) | prefixed("text", d_text)
    by_name |= {"log_scale": pairs.d_log_scale, "bias": pairs.d_bias}
    grads = {name: by_name[name] for name in params} if "params" in wrt else {}
    if "images" in wrt:  # stem = patches + positions: its gradient is that of the patches, too
        patches = ops.linear if cfg.naflex else ops.patch_embed
        grads["images"], *_ = patches.backward(d_image_activations["stem"], image_cache.patch)
    if "activations" in wrt:
        grads |= prefixed("@image", d_image_activations | {"embed": pairs.d_image_embed})
        grads |= prefixed("@text", d_text_activations | {"embed": pairs.d_text_embed})
    return pairs.loss, grads


def _forward(
    params: Mapping[str, Array], images: Array, tokens: Array, cfg: Config, conventions: Conventions, ops: Ops,
    mask: Array | None,
) -> tuple[Array, Array, Named, ModelCache]:  # fmt: skip
    require_inputs(params, images, tokens, cfg, mask)
    image_tower = ops.naflex_tower if cfg.naflex else ops.image_tower
    image_pooled, image_cache, of_image = image_tower.forward(images, subtree(params, "image"), cfg, conventions)
    text_pooled, text_cache, of_text = ops.text_tower.forward(tokens, subtree(params, "text"), cfg, conventions, mask)
    kind, eps = conventions.embed_norm, conventions.embed_norm_eps
    image_embed, image_norm_cache = ops.normalize.forward(image_pooled, kind, eps)
    text_embed, text_norm_cache = ops.normalize.forward(text_pooled, kind, eps)
    cache = ModelCache(image_cache, text_cache, image_norm_cache, text_norm_cache)
    return image_embed, text_embed, (of_image, of_text), cache


def _output(params: Mapping[str, Array], image_embed: Array, text_embed: Array, named: Named) -> Output:
    """With the logits, which the loss does without: it never holds all of them at once."""
    of_image, of_text = named[0] | {"embed": image_embed}, named[1] | {"embed": text_embed}
    logits = np.exp(params["log_scale"]) * (image_embed @ text_embed.T) + params["bias"]
    activations = prefixed("image", of_image) | prefixed("text", of_text) | {"logits": logits}
    return Output(image_embed, text_embed, logits, activations)
