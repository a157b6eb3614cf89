"""The MAP head, forward and backward each one kernel. The probe is one for all sequences: so is its query."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from siglip_ref import ops as specification
from siglip_ref.fast.attention import root_of, seen_by_head
from siglip_ref.fast.gelu import FORMS
from siglip_ref.fast.kernels.block import add_mlp, d_add_mlp
from siglip_ref.fast.kernels.heads import d_mix, mix
from siglip_ref.fast.linear import affine, d_affine_inputs, d_affine_weights
from siglip_ref.fast.machine.blas import gemm_address
from siglip_ref.fast.machine.compile import ONE, kernel
from siglip_ref.fast.machine.fit import (
    NOTHING,
    as_rows,
    as_stored,
    empty,
    gradient_of,
    layer_shapes,
    rows_in_memory,
    same_precision,
    shapes_of,
)
from siglip_ref.fast.machine.pool import parts_for
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm

ORDER = (
    "attn/q/kernel", "attn/q/bias", "attn/k/kernel", "attn/k/bias", "attn/v/kernel", "attn/v/bias",
    "attn/out/kernel", "attn/out/bias",
    "norm/gamma", "norm/beta", "mlp/in/kernel", "mlp/in/bias", "mlp/out/kernel", "mlp/out/bias",
)  # fmt: skip


class Kept(NamedTuple):
    """What the forward leaves for the backward."""

    query: Array  # (B, 1, C), as mixed
    key: Array  # (B, N, C), as value
    value: Array
    head_stats: Array
    mixed: Array
    read: Array  # (B, C)
    stats: Array
    hidden: Array  # (B, M)


class MapCache(NamedTuple):
    """What the backward needs."""

    x: Array  # (B N, C)
    probe: Array  # (1, C)
    turned: tuple[int, ...]
    w: tuple[Array, ...]
    mask: Array
    heads: int
    form: int
    eps: float
    kept: Kept


@kernel()
def pool(
    routine: int, turned: Any, x: Any, probe: Any, w: Any, mask: Any, heads: int, root: Any, eps: float, form: int,
    nothing: Any, kept: Any, scores: Any, normed: Any, active: Any, out: Any, parts: int,
) -> None:  # fmt: skip
    query, key, value, head_stats, mixed, read, stats, hidden = kept
    affine(routine, turned[0], probe, w[0], w[1], nothing, query[0], ONE)
    for b in range(1, len(query)):
        for c in range(query.shape[2]):
            query[b, 0, c] = query[0, 0, c]  # number by number: an assignment of slices compiles for seconds
    affine(routine, turned[2], x, w[2], w[3], nothing, key.reshape(x.shape), parts)
    affine(routine, turned[4], x, w[4], w[5], nothing, value.reshape(x.shape), parts)
    mix(routine, query, key, value, mask, heads, root, scores, mixed, head_stats)
    affine(routine, turned[6], mixed.reshape(read.shape), w[6], w[7], nothing, read, parts)
    add_mlp(routine, turned[8:], read, w[8:], eps, form, nothing, stats, hidden, normed, active, out, parts)


@kernel()
def d_pool(
    routine: int, turned: Any, d_out: Any, x: Any, probe: Any, w: Any, mask: Any, heads: int, root: Any, form: int,
    eps: float, kept: Any, scores: Any, active: Any, d_hidden: Any, normed: Any, d_normed: Any, d_heads: Any, d: Any,
    d_read: Any, d_probe: Any, d_x: Any, parts: int,
) -> None:  # fmt: skip
    query, key, value, head_stats, mixed, read, stats, hidden = kept
    one, zero = root / root, root - root
    d_query, d_mixed, d_key, d_value = d_heads
    # out = read + mlp(norm(read))
    d_add_mlp(routine, turned[8:], d_out, read, w[8:], eps, form, stats, hidden, zero, d[8:], active, d_hidden, normed,
              d_normed, d_read, parts)  # fmt: skip
    # read = attention(probe, x)
    d_affine_inputs(routine, turned[6], d_read, w[6], zero, d_mixed.reshape(read.shape), parts)
    d_affine_weights(routine, d_read, mixed.reshape(read.shape), zero, d[6], d[7], parts)
    d_mix(routine, d_mixed, query, key, value, mask, heads, root, scores, head_stats, d_query, d_key, d_value)
    d_affine_inputs(routine, turned[2], d_key.reshape(x.shape), w[2], zero, d_x, parts)
    d_affine_weights(routine, d_key.reshape(x.shape), x, zero, d[2], d[3], parts)
    d_affine_inputs(routine, turned[4], d_value.reshape(x.shape), w[4], one, d_x, parts)
    d_affine_weights(routine, d_value.reshape(x.shape), x, zero, d[4], d[5], parts)
    # query[b] = probe @ w[0] + w[1] for every b
    for b in range(1, len(d_query)):
        for c in range(d_query.shape[2]):
            d_query[0, 0, c] += d_query[b, 0, c]
    d_affine_weights(routine, d_query[0], probe, zero, d[0], d[1], ONE)
    d_affine_inputs(routine, turned[0], d_query[0], w[0], zero, d_probe, ONE)


def map_head_forward(
    x: Array, weights: Mapping[str, Array], heads: int, gelu: GeluForm, eps: float, mask: Array | None = None
) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.map_head_forward`."""
    width, wanted = x.shape[-1], layer_shapes(x.shape[-1], len(weights["mlp/in/bias"]))
    fits = x.ndim == 3 and width % heads == 0 and weights["probe"].shape == (width,)
    if not fits or [weights[name].shape for name in ORDER] != wanted or not same_precision(x, *weights.values()):
        return specification.map_head_forward(x, weights, heads, gelu, eps, mask)
    batch, tokens, _ = x.shape
    times = [1 if "q/" in name else batch * tokens if "k/" in name or "v/" in name else batch for name in ORDER]
    turned, w = as_stored([weights[name] for name in ORDER], times)
    mlp, one, flat = w[11].size, (batch, 1, width), (batch, width)
    shapes = (one, x.shape, x.shape, (batch * heads, 1, 2), one, flat, (batch, 2), (batch, mlp))
    kept = Kept(*[empty(shape, x) for shape in shapes])
    rows, probe = as_rows(x), as_rows(weights["probe"])
    seen, active = seen_by_head(mask, batch, heads, 1, tokens), empty((batch, mlp), x)
    normed, out = empty(flat, x), empty(flat, x)
    with parts_for(x.size * width) as parts:
        pool(
            gemm_address(x.dtype), turned, rows, probe, w, seen, heads, root_of(x, heads), eps, FORMS[gelu],
            NOTHING[x.dtype], tuple(kept), empty((parts, 1, 1, tokens), x), normed, active, out, parts,
        )  # fmt: skip
    return out, MapCache(rows, probe, turned, w, seen, heads, FORMS[gelu], eps, kept)


def map_head_backward(d_pooled: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
    """Twin of `siglip_ref.ops.map_head_backward`."""
    if not isinstance(cache, MapCache):
        return specification.map_head_backward(d_pooled, cache)
    x, probe, turned, w, mask, heads, form, eps, kept = cache
    _, tokens, width = kept.key.shape
    d_pooled = gradient_of(d_pooled, kept.read.shape, x)
    of_w = shapes_of(turned, w)
    attn, mlp = ([empty(shape, x) for shape in shapes] for shapes in (of_w[:8], of_w[10:]))
    d_heads = tuple([empty(like.shape, x) for like in (kept.query, kept.mixed, kept.key, kept.value)])
    d_x, d_probe = empty(x.shape, x), empty(probe.shape, x)
    active, d_hidden = empty(kept.hidden.shape, x), empty(kept.hidden.shape, x)
    normed, d_normed, d_read = (empty(kept.read.shape, x) for _ in range(3))
    with parts_for(x.size * width) as parts:
        scores, norms = empty((parts, 2, 1, tokens), x), empty((parts, 2, width), x)
        d_pool(
            gemm_address(x.dtype), turned, rows_in_memory(d_pooled), x, probe, w, mask, heads,
            root_of(x, heads), form, eps, tuple(kept), scores, active, d_hidden, normed, d_normed, d_heads,
            (*attn, norms, *mlp), d_read, d_probe, d_x, parts,
        )  # fmt: skip
    grads = dict(zip(ORDER, (*attn, *norms.sum(0), *mlp), strict=True))
    return d_x.reshape(kept.key.shape), grads | {"probe": d_probe[0]}
