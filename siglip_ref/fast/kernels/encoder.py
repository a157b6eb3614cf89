"""Kernels of a narrow encoder: one thread takes sequences through all blocks, a few at a time.

What passes between the steps stays in its cache. The weights of all blocks lie one after another in one array, and so
do their gradients.
"""

from typing import Any

import numpy as np

from siglip_ref.fast.kernels.block import backward, steps
from siglip_ref.fast.layer_norm import d_norm, norm
from siglip_ref.fast.linear import NONE_TURNED
from siglip_ref.fast.machine.compile import ONE, inner


@inner()
def block_size(width: int, mlp: int) -> Any:
    """How many numbers a block has."""
    return 4 * (width * width + width) + 4 * width + 2 * width * mlp + mlp + width


@inner()
def linear(flat: Any, at: int, width: int, columns: int) -> Any:
    """Kernel and bias of a linear layer that begin at `at`."""
    end = at + width * columns
    return flat[at:end].reshape(width, columns), flat[end : end + columns]


@inner()
def block(flat: Any, norm1: int, width: int, mlp: int) -> Any:
    """A block that begins at `norm1`, in the order of `block.ORDER`; and with gamma and beta as one (1, 2, C)."""
    q = norm1 + 2 * width
    one = width * width + width
    norm2 = q + 4 * one
    first = norm2 + 2 * width
    (wq, bq), (wk, bk) = linear(flat, q, width, width), linear(flat, q + one, width, width)
    (wv, bv), (wo, bo) = linear(flat, q + 2 * one, width, width), linear(flat, q + 3 * one, width, width)
    (wi, bi), (wm, bm) = linear(flat, first, width, mlp), linear(flat, first + width * mlp + mlp, mlp, width)
    both1, both2 = flat[norm1:q].reshape(1, 2, width), flat[norm2:first].reshape(1, 2, width)
    w = both1[0, 0], both1[0, 1], wq, bq, wk, bk, wv, bv, wo, bo, both2[0, 0], both2[0, 1], wi, bi, wm, bm
    return w, (both1, wq, bq, wk, bk, wv, bv, wo, bo, both2, wi, bi, wm, bm)


@inner()
def _kept(kept: Any, layer: int, heads: int, a: int, b: int) -> Any:
    """What a block keeps of the sequences from `a` to `b`, in the order of `block_kernels.Kept`."""
    stats, inside, head_stats, stream, hidden, _ = kept
    tokens = inside.shape[3]
    top, bottom = a * tokens, b * tokens
    return (
        stats[layer, 0, top:bottom], inside[layer, 0, a:b], inside[layer, 1, a:b], inside[layer, 2, a:b],
        head_stats[layer, a * heads : b * heads], inside[layer, 3, a:b], stream[layer, 0, top:bottom],
        stats[layer, 1, top:bottom], hidden[layer, top:bottom],
    )  # fmt: skip


@inner(apart=True)
def encode(
    routine: int, x: Any, flat: Any, settings: Any, kept: Any, few: int, out: Any, begin: int, end: int
) -> None:  # fmt: skip
    """out = norm of the stream after all blocks, for the sequences from `begin` to `end`.

    Parameters
    ----------
    x, out : array, shape (R, C), of all sequences
    flat : weights of all blocks, then gamma and beta of the last norm
    settings : as `towers.Settings`
    kept : stats (depth, 2, R, 2), query, key, value, mixed (depth, 4, B, N, C), head_stats (depth, B H, N, 2), the
        stream after each half (depth, 2, R, C), hidden (depth, R, M), the last norm's stats (R, 2)
    few : how many sequences to take at a time
    """
    mask, heads, root, eps, form, nothing = settings
    inside, stream, hidden, last_stats = kept[1], kept[3], kept[4], kept[5]
    depth, tokens, width, mlp = len(stream), inside.shape[3], x.shape[1], hidden.shape[2]
    scores = np.empty((1, 1, tokens, tokens), x.dtype)
    normed, active = np.empty((few * tokens, width), x.dtype), np.empty((few * tokens, mlp), x.dtype)
    for a in range(begin, end, few):
        b = min(a + few, end)
        top, bottom, some = a * tokens, b * tokens, (b - a) * tokens
        rows = x[top:bottom]
        for layer in range(depth):
            w, _ = block(flat, layer * block_size(width, mlp), width, mlp)
            steps(
                routine, NONE_TURNED, rows, w, mask[a * heads : b * heads], heads, root, eps, form, nothing,
                _kept(kept, layer, heads, a, b), scores, normed[:some], active[:some], stream[layer, 1, top:bottom],
                ONE,
            )  # fmt: skip
            rows = stream[layer, 1, top:bottom]
        norm(rows, flat[-2 * width : -width], flat[-width:], eps, out[top:bottom], last_stats[top:bottom], ONE)


@inner(apart=True)
def d_encode(
    routine: int, d_out: Any, x: Any, flat: Any, settings: Any, kept: Any, few: int, d_flat: Any, d_stream: Any,
    d_x: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """Gradients of `encode`, with its arguments; d_flat is that of these sequences alone, the others are of all."""
    mask, heads, root, eps, form, nothing = settings
    inside, stream, hidden, last_stats, keep = kept[1], kept[3], kept[4], kept[5], root - root
    depth, tokens, width, mlp = len(stream), inside.shape[3], x.shape[1], hidden.shape[2]
    scores, d_heads = np.empty((1, 2, tokens, tokens), x.dtype), np.empty((4, few, tokens, width), x.dtype)
    active, d_hidden = np.empty((few * tokens, mlp), x.dtype), np.empty((few * tokens, mlp), x.dtype)
    normed, d_normed = np.empty((few * tokens, width), x.dtype), np.empty((few * tokens, width), x.dtype)
    gamma, d_last = flat[-2 * width : -width], d_flat[-2 * width :].reshape(1, 2, width)
    for a in range(begin, end, few):
        b = min(a + few, end)
        top, bottom, some = a * tokens, b * tokens, (b - a) * tokens
        room = scores, active[:some], d_hidden[:some], d_heads, normed[:some], d_normed[:some]
        rows, d_rows = stream[depth - 1, 1, top:bottom], d_stream[depth - 1, 1, top:bottom]
        d_norm(d_out[top:bottom], rows, last_stats[top:bottom], gamma, nothing, keep, d_rows, d_last)
        for layer in range(depth - 1, -1, -1):
            begins = layer * block_size(width, mlp)
            w, _ = block(flat, begins, width, mlp)
            _, d = block(d_flat, begins, width, mlp)
            given, d_given = x[top:bottom], d_x[top:bottom]
            if layer > 0:
                given, d_given = stream[layer - 1, 1, top:bottom], d_stream[layer - 1, 1, top:bottom]
            backward(
                routine, NONE_TURNED, d_stream[layer, 1, top:bottom], given, w, mask[a * heads : b * heads], heads,
                root, form, eps, _kept(kept, layer, heads, a, b), keep, d, room, d_stream[layer, 0, top:bottom],
                d_given, ONE,
            )  # fmt: skip
        keep = root / root
