"""The text tower: tokens, positions, encoder, one token taken, a linear head."""

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

TextCache = namedtuple("TextCache", "widened token position encoder pool head")


def text_tower_forward(
    tokens: Array, weights: Mapping[str, Array], cfg: Config, conventions: Conventions, mask: Array | None = None,
    *, ops: Ops,
) -> tuple[Array, TextCache, dict[str, Array]]:  # fmt: skip
    """From token ids to one vector per text, not yet of unit length.

    Parameters
    ----------
    tokens : int array, shape (B, N)
    weights : token, position, blockII/..., norm/..., head/... (no head: So400m i18n), widen/kernel (with a bottleneck)
    mask : array of bool, shape (B, N), or None: which tokens may be seen. SigLIP was trained without any mask: it sees
        its padding

    Returns
    -------
    pooled : array, shape (B, D)
    activations : stem, the encoder's, pool (the token taken), head

    Source: big_vision models/proj/image_text/text_transformer.py.
    """
    seen = seen_tokens(tokens, mask, conventions)
    embedded, token_cache = token_vectors(tokens, weights, cfg, ops)
    stem, position_cache = ops.position.forward(embedded, weights["position"])
    gelu, eps = conventions.text_gelu, conventions.text_norm_eps
    states, encoder_cache, activations = ops.encoder.forward(stem, weights, cfg.text, gelu, eps, seen)
    pooled, pool_cache = ops.pool.forward(states, tokens, conventions.text_pooling)
    activations = {"stem": stem} | activations | {"pool": pooled}
    head_cache = None
    if cfg.text_head:
        pooled, head_cache = ops.linear.forward(pooled, weights["head/kernel"], weights["head/bias"])
        activations["head"] = pooled
    caches = token_cache, position_cache, encoder_cache, pool_cache, head_cache
    return pooled, TextCache(cfg.bottleneck > 0, *caches), activations


def token_vectors(tokens: Array, weights: Mapping[str, Array], cfg: Config, ops: Ops) -> tuple[Array, Any]:
    """A row of the table for each token, (B, N, C), widened where the table has a bottleneck; and the cache."""
    pair, names = (ops.bottleneck, ("token", "widen/kernel")) if cfg.bottleneck else (ops.token_embed, ("token",))
    out, cache = pair.forward(tokens, *(weights[name] for name in names))
    return out, cache


def d_token_vectors(d_out: Array, cache: Any, widened: bool, ops: Ops) -> dict[str, Array]:
    """Gradients of `token_vectors`, by name."""
    if widened:
        d_table, d_widen = ops.bottleneck.backward(d_out, cache)
        return {"token": d_table, "widen/kernel": d_widen}
    return {"token": ops.token_embed.backward(d_out, cache)}


def seen_tokens(tokens: Array, mask: Array | None, conventions: Conventions) -> Array | None:
    """Which tokens each token sees, in a shape that broadcasts to (B, H, N, N); None: all."""
    length = tokens.shape[1]
    seen = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, N)
    if conventions.text_mask == "causal":
        causal = np.tril(np.ones((length, length), bool))  # (N, N)
        seen = causal if seen is None else causal & seen
    return seen


def text_tower_backward(d_pooled: Array, cache: TextCache, *, ops: Ops) -> tuple[dict[str, Array], dict[str, Array]]:
    """Gradients of `text_tower_forward`: a dict with the keys of `weights`, one with those of `activations`."""
    widened, token_cache, position_cache, encoder_cache, pool_cache, head_cache = cache
    d_head, d_late = {}, {}
    if head_cache is not None:
        # head = pooled @ head/kernel + head/bias
        d_late["head"] = d_pooled
        d_pooled, d_head["head/kernel"], d_head["head/bias"] = ops.linear.backward(d_pooled, head_cache)
    # pooled = one token of states
    d_states = ops.pool.backward(d_pooled, pool_cache)
    # states = encoder(stem)
    d_stem, d, d_activations = ops.encoder.backward(d_states, encoder_cache)
    # stem = embedded + position
    d_embedded, d["position"] = ops.position.backward(d_stem, position_cache)
    d |= d_token_vectors(d_embedded, token_cache, widened, ops)
    return d | d_head, {"stem": d_stem} | d_activations | {"pool": d_pooled} | d_late
