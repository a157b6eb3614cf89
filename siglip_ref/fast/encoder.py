"""The encoder as one kernel each way, where it is narrow: small models spend their time on calls, not on numbers."""

import math
from collections.abc import Mapping
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.fast.attention import HEAD, root_of, seen_by_head
from siglip_ref.fast.blas import gemm_address
from siglip_ref.fast.block import ORDER, block_backward, block_forward
from siglip_ref.fast.encoder_kernels import d_encode, encode
from siglip_ref.fast.fit import NOTHING, as_rows, empty, same_precision
from siglip_ref.fast.gelu import FORMS
from siglip_ref.fast.layer_norm import layer_norm_backward, layer_norm_forward
from siglip_ref.fast.pool import parts_for
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.sizes import Tower
from siglip_ref.towers import encoder as plain

# What goes block by block instead: the specification's loop, with these.
BY_BLOCK: Any = SimpleNamespace(
    block_forward=block_forward,
    block_backward=block_backward,
    layer_norm_forward=layer_norm_forward,
    layer_norm_backward=layer_norm_backward,
)
# Narrow is where the hidden layers of at least FEWEST rows, and of a whole sequence, are NEAR numbers together.
NEAR, FEWEST = 1 << 16, 128
LAST = ("norm/gamma", "norm/beta")


class EncoderCache(NamedTuple):
    """What the backward needs."""

    x: Array
    flat: Array
    mask: Array
    heads: int
    form: int
    eps: float
    kept: tuple[Array, ...]
    last_stats: Array
    few: int


@cache
def _names(depth: int) -> tuple[str, ...]:
    return (*(f"block{layer:02d}/{name}" for layer in range(depth) for name in ORDER), *LAST)


@cache
def _shapes(depth: int, width: int, mlp: int) -> list[tuple[int, ...]]:
    """Those of the weights, in the order of their names."""
    vector, projection = (width,), ((width, width), (width,))
    block = (vector, vector, *(4 * projection), vector, vector, (width, mlp), (mlp,), (mlp, width), vector)
    return [*(depth * block), vector, vector]


@cache
def _stream_names(depth: int) -> tuple[tuple[int, int, str], ...]:
    return tuple(
        (layer, half, f"block{layer:02d}/{name}")
        for layer in range(depth)
        for half, name in enumerate(("+attn", "+mlp"))
    )


def _at_a_time(sequences: int, tokens: int, mlp: int) -> int:
    """How many sequences a thread takes at once; 0: the encoder is wide."""
    rows = NEAR // mlp
    return min(sequences, rows // tokens) if rows >= max(FEWEST, tokens) else 0


def encoder_forward(
    x: Array,
    weights: Mapping[str, Array],
    tower: Tower,
    gelu: GeluForm,
    eps: float,
    mask: Array | None,
    ops: ModuleType,
) -> tuple[Array, Any, dict[str, Array]]:
    """Twin of `siglip_ref.towers.encoder.encoder_forward`; a wide one goes block by block."""
    depth, mlp, heads, names = tower.depth, tower.mlp, tower.heads, _names(tower.depth)
    batch, tokens, width = x.shape
    few, arrays = _at_a_time(batch, tokens, mlp), [weights[name] for name in names]
    if not few or not same_precision(x, *arrays) or [a.shape for a in arrays] != _shapes(depth, width, mlp):
        return plain.encoder_forward(x, weights, tower, gelu, eps, mask, BY_BLOCK)
    rows, seen = batch * tokens, seen_by_head(mask, batch, heads, tokens, tokens)
    flat = np.concatenate(arrays, axis=None)
    shapes = (
        (depth, 2, rows, 2), (depth, 4, batch, tokens, width), (depth, batch * heads, tokens, 2),
        (depth, 2, rows, width), (depth, rows, mlp),
    )  # fmt: skip
    kept = tuple([empty(shape, x) for shape in shapes])
    x_rows, out, last_stats = as_rows(x), empty(x.shape, x), empty((rows, 2), x)
    if not x_rows.flags.writeable:  # kernels take it in turns with the stream, which is of another type then
        x_rows = x_rows.copy()
    with parts_for(depth * (2 * rows * width * (mlp + 2 * width) + batch * heads * HEAD)) as threads:
        threads = min(threads, batch)
        encode(
            gemm_address(x.dtype), x_rows, flat, seen, heads, root_of(x, heads), eps, FORMS[gelu], NOTHING[x.dtype],
            kept, last_stats, empty((threads, 1, 1, tokens, tokens), x), empty((threads, few * tokens, width), x),
            empty((threads, few * tokens, mlp), x), out.reshape(rows, width),
        )  # fmt: skip
    stream = kept[3].reshape(depth, 2, batch, tokens, width)
    activations = {name: stream[layer, half] for layer, half, name in _stream_names(depth)} | {"norm": out}
    cache = EncoderCache(x_rows, flat, seen, heads, FORMS[gelu], eps, kept, last_stats, few)
    return out, cache, activations


def encoder_backward(d_out: Array, cache: Any, ops: ModuleType) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Twin of `siglip_ref.towers.encoder.encoder_backward`."""
    if not isinstance(cache, EncoderCache):
        return plain.encoder_backward(d_out, cache, BY_BLOCK)
    x, flat, mask, heads, form, eps, kept, last_stats, few = cache
    depth, _, batch, tokens, width = kept[1].shape
    rows, mlp, d_stream, d_x = batch * tokens, kept[4].shape[2], empty(kept[3].shape, x), empty(x.shape, x)
    with parts_for(depth * (4 * rows * width * (mlp + 2 * width) + 2 * batch * heads * HEAD)) as threads:
        threads = min(threads, batch)
        hidden, normed = (threads, few * tokens, mlp), (threads, few * tokens, width)
        room = (
            empty((threads, 1, 2, tokens, tokens), x), empty(hidden, x), empty(hidden, x),
            empty((threads, 4, few, tokens, width), x), empty(normed, x), empty(normed, x),
        )  # fmt: skip
        d_flat = empty((threads, flat.size), x)
        d_encode(
            gemm_address(x.dtype), np.ascontiguousarray(d_out).reshape(x.shape), x, flat, mask, heads,
            root_of(x, heads), form, eps, NOTHING[x.dtype], kept, last_stats, room, d_flat, d_stream, d_x,
        )  # fmt: skip
    grads, end, whole = {}, 0, d_flat[0]
    for name, shape in zip(_names(depth), _shapes(depth, width, mlp), strict=True):
        begin, end = end, end + math.prod(shape)
        grads[name] = whole[begin:end].reshape(shape)
    by_half = d_stream.reshape(depth, 2, batch, tokens, width)
    d_activations = {"norm": d_out} | {name: by_half[layer, half] for layer, half, name in _stream_names(depth)}
    return d_x.reshape(batch, tokens, width), grads, d_activations
