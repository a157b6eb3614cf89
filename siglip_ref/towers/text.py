"""The text tower: tokens, positions, encoder, one token taken, a linear head."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.sizes import Config
from siglip_ref.towers.encoder import Cache, Encode, encoder_backward, encoder_forward


def text_tower_forward(
    tokens: Array,
    weights: Mapping[str, Array],
    cfg: Config,
    conventions: Conventions,
    ops: ModuleType,
    mask: Array | None = None,
    encode: Encode = encoder_forward,
) -> tuple[Array, Cache, dict[str, Array]]:
    """From token ids to one vector per text, not yet of unit length.

    Parameters
    ----------
    tokens : int array, shape (B, N)
    weights : token, position, blockII/..., norm/..., head/... (no head: So400m i18n)
    mask : array of bool, shape (B, N), or None: which tokens may be seen. SigLIP was trained without any mask: it sees
        its padding
    encode : the encoder; `encoder_states` where no gradients are wanted

    Returns
    -------
    pooled : array, shape (B, D)
    cache : what `text_tower_backward` needs
    activations : stem, the encoder's, pool (the token taken), head

    Source: big_vision models/proj/image_text/text_transformer.py.
    """
    if encode is encoder_forward and hasattr(ops, "text_tower_forward"):  # a twin may fuse more than single operations
        fused: tuple[Array, Cache, dict[str, Array]] = ops.text_tower_forward(
            tokens, weights, cfg, conventions, ops, mask
        )
        return fused
    seen = seen_tokens(tokens, mask, conventions)
    embedded, token_cache = ops.token_embed_forward(tokens, weights["token"])
    stem, _ = ops.position_forward(embedded, weights["position"])
    gelu, eps = conventions.text_gelu, conventions.text_norm_eps
    states, encoder_cache, activations = encode(stem, weights, cfg.text, gelu, eps, seen, ops)
    pooled, pool_cache = ops.pool_forward(states, tokens, conventions.text_pooling)
    activations = {"stem": stem} | activations | {"pool": pooled}
    head_cache = None
    if cfg.text_head:
        pooled, head_cache = ops.linear_forward(pooled, weights["head/kernel"], weights["head/bias"])
        activations["head"] = pooled
    return pooled, (token_cache, weights["position"], encoder_cache, pool_cache, head_cache), activations


def seen_tokens(tokens: Array, mask: Array | None, conventions: Conventions) -> Array | None:
    """Which tokens each token sees, in a shape that broadcasts to (B, H, N, N); None: all."""
    length = tokens.shape[1]
    seen = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, N)
    if conventions.text_mask == "causal":
        causal = np.tril(np.ones((length, length), bool))  # (N, N)
        seen = causal if seen is None else causal & seen
    return seen


def text_tower_backward(d_pooled: Array, cache: Cache, ops: ModuleType) -> tuple[dict[str, Array], dict[str, Array]]:
    """Gradients of `text_tower_forward`: a dict with the keys of `weights`, one with those of `activations`."""
    if hasattr(ops, "text_tower_backward"):
        fused: tuple[dict[str, Array], dict[str, Array]] = ops.text_tower_backward(d_pooled, cache, ops)
        return fused
    token_cache, position, encoder_cache, pool_cache, head_cache = cache
    d_head, d_late = {}, {}
    if head_cache is not None:
        # head = pooled @ head/kernel + head/bias
        d_late["head"] = d_pooled
        d_pooled, d_head["head/kernel"], d_head["head/bias"] = ops.linear_backward(d_pooled, head_cache)
    # pooled = one token of states
    d_states = ops.pool_backward(d_pooled, pool_cache)
    # states = encoder(stem)
    d_stem, d, d_activations = encoder_backward(d_states, encoder_cache, ops)
    # stem = embedded + position
    d_embedded, d["position"] = ops.position_backward(d_stem, position)
    d["token"] = ops.token_embed_backward(d_embedded, token_cache)
    return d | d_head, {"stem": d_stem} | d_activations | {"pool": d_pooled} | d_late
