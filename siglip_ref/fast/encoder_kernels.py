"""Kernels of a narrow encoder: each thread takes sequences of its own through all blocks, a few at a time.

What passes between the steps stays in its cache, and threads meet once a tower, not at every product. The weights of
all blocks lie one after another in one array, their gradients in one for each thread.
"""

from typing import Any

from numba import prange

from siglip_ref.fast.block_kernels import backward, forward
from siglip_ref.fast.compile import kernel
from siglip_ref.fast.layer_norm import d_norm, norm


@kernel()
def _block_size(width: int, mlp: int) -> Any:
    """How many numbers a block has."""
    return 4 * (width * width + width) + 4 * width + 2 * width * mlp + mlp + width


@kernel()
def _linear(flat: Any, at: int, width: int, columns: int) -> Any:
    """Kernel and bias of a linear layer that begin at `at`."""
    end = at + width * columns
    return flat[at:end].reshape(width, columns), flat[end : end + columns]


@kernel()
def _weights(flat: Any, layer: int, width: int, mlp: int) -> Any:
    """Those of a block, in the order of `block.ORDER`; and both norms, gamma and beta together, as (1, 2, C)."""
    norm1 = layer * _block_size(width, mlp)
    q = norm1 + 2 * width
    one = width * width + width
    norm2 = q + 4 * one
    first = norm2 + 2 * width
    (wq, bq), (wk, bk) = _linear(flat, q, width, width), _linear(flat, q + one, width, width)
    (wv, bv), (wo, bo) = _linear(flat, q + 2 * one, width, width), _linear(flat, q + 3 * one, width, width)
    (wi, bi), (wm, bm) = _linear(flat, first, width, mlp), _linear(flat, first + width * mlp + mlp, mlp, width)
    both1, both2 = flat[norm1:q].reshape(1, 2, width), flat[norm2:first].reshape(1, 2, width)
    w = both1[0, 0], both1[0, 1], wq, bq, wk, bk, wv, bv, wo, bo, both2[0, 0], both2[0, 1], wi, bi, wm, bm
    return w, (both1, wq, bq, wk, bk, wv, bv, wo, bo, both2, wi, bi, wm, bm)


@kernel()
def _kept(kept: Any, layer: int, heads: int, a: int, b: int) -> Any:
    """What a block keeps of the sequences from `a` to `b`, in the order of `block_kernels.Kept`."""
    stats, inside, head_stats, stream, hidden = kept
    tokens = inside.shape[3]
    top, bottom = a * tokens, b * tokens
    return (
        stats[layer, 0, top:bottom], inside[layer, 0, a:b], inside[layer, 1, a:b], inside[layer, 2, a:b],
        head_stats[layer, a * heads : b * heads], inside[layer, 3, a:b], stream[layer, 0, top:bottom],
        stats[layer, 1, top:bottom], hidden[layer, top:bottom],
    )  # fmt: skip


@kernel()
def _forward_of(
    routine: int, x: Any, flat: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    last_stats: Any, scores: Any, normed: Any, active: Any, out: Any, t: int, begin: int, end: int,
) -> None:  # fmt: skip
    stream, hidden, tokens = kept[3], kept[4], kept[1].shape[3]
    depth, width, mlp, few = len(stream), x.shape[1], hidden.shape[2], normed.shape[1] // tokens
    for a in range(begin, end, few):
        b = min(a + few, end)
        top, bottom, some = a * tokens, b * tokens, (b - a) * tokens
        rows = x[top:bottom]
        for layer in range(depth):
            w, _ = _weights(flat, layer, width, mlp)
            forward(
                routine, rows, w, mask[a * heads : b * heads], heads, root, eps, form, nothing,
                _kept(kept, layer, heads, a, b), scores[t], normed[t, :some], active[t, :some],
                stream[layer, 1, top:bottom], 1,
            )  # fmt: skip
            rows = stream[layer, 1, top:bottom]
        norm(rows, flat[-2 * width : -width], flat[-width:], eps, out[top:bottom], last_stats[top:bottom], 1)


@kernel(parallel=True)
def encode(
    routine: int, x: Any, flat: Any, mask: Any, heads: int, root: Any, eps: float, form: int, nothing: Any, kept: Any,
    last_stats: Any, scores: Any, normed: Any, active: Any, out: Any,
) -> None:  # fmt: skip
    """out = norm of the stream after all blocks.

    Parameters
    ----------
    x, out : array, shape (R, C)
    flat : weights of all blocks, then gamma and beta of the last norm
    kept : stats (depth, 2, R, 2), query, key, value, mixed (depth, 4, B, N, C), head_stats (depth, B H, N, 2), the
        stream after each half (depth, 2, R, C), hidden (depth, R, M)
    last_stats : array, shape (R, 2)
    scores, normed, active : room for each thread and for so many sequences as are taken at a time
    """
    threads, sequences = len(normed), kept[1].shape[2]
    if threads == 1:
        _forward_of(routine, x, flat, mask, heads, root, eps, form, nothing, kept, last_stats, scores, normed, active,
                    out, 0, 0, sequences)  # fmt: skip
    else:
        for t in prange(threads):
            _forward_of(routine, x, flat, mask, heads, root, eps, form, nothing, kept, last_stats, scores, normed,
                        active, out, t, sequences * t // threads, sequences * (t + 1) // threads)  # fmt: skip


@kernel()
def _backward_of(
    routine: int, d_out: Any, x: Any, flat: Any, mask: Any, heads: int, root: Any, form: int, eps: float, nothing: Any,
    kept: Any, last_stats: Any, room: Any, d_flat: Any, d_stream: Any, d_x: Any, t: int, begin: int, end: int,
) -> None:  # fmt: skip
    scores, active, d_hidden, d_heads, normed, d_normed = room
    stream, hidden, tokens, keep = kept[3], kept[4], kept[1].shape[3], root - root
    depth, width, mlp, few = len(stream), x.shape[1], hidden.shape[2], normed.shape[1] // tokens
    gamma, d_last = flat[-2 * width : -width], d_flat[t, -2 * width :].reshape(1, 2, width)
    for a in range(begin, end, few):
        b = min(a + few, end)
        top, bottom, some = a * tokens, b * tokens, (b - a) * tokens
        mine = scores[t], active[t, :some], d_hidden[t, :some], d_heads[t], normed[t, :some], d_normed[t, :some]
        rows, d_rows = stream[depth - 1, 1, top:bottom], d_stream[depth - 1, 1, top:bottom]
        d_norm(d_out[top:bottom], rows, last_stats[top:bottom], gamma, nothing, keep, d_rows, d_last)
        for layer in range(depth - 1, -1, -1):
            w, _ = _weights(flat, layer, width, mlp)
            _, d = _weights(d_flat[t], layer, width, mlp)
            given, d_given = x[top:bottom], d_x[top:bottom]
            if layer > 0:
                given, d_given = stream[layer - 1, 1, top:bottom], d_stream[layer - 1, 1, top:bottom]
            backward(
                routine, d_stream[layer, 1, top:bottom], given, w, mask[a * heads : b * heads], heads, root, form, eps,
                _kept(kept, layer, heads, a, b), keep, d, mine, d_stream[layer, 0, top:bottom], d_given, 1,
            )  # fmt: skip
        keep = root / root


@kernel(parallel=True)
def d_encode(
    routine: int, d_out: Any, x: Any, flat: Any, mask: Any, heads: int, root: Any, form: int, eps: float, nothing: Any,
    kept: Any, last_stats: Any, room: Any, d_flat: Any, d_stream: Any, d_x: Any,
) -> None:  # fmt: skip
    """Gradients of `encode`; every thread must have a sequence.

    room : as `block_kernels.Room`, of each thread
    d_flat : array, shape (threads, numbers of `flat`); the first row takes the sum
    d_stream : array, shape (depth, 2, R, C)
    """
    threads, sequences = len(d_flat), kept[1].shape[2]
    if threads == 1:
        _backward_of(routine, d_out, x, flat, mask, heads, root, form, eps, nothing, kept, last_stats, room, d_flat,
                     d_stream, d_x, 0, 0, sequences)  # fmt: skip
    else:
        for t in prange(threads):
            _backward_of(routine, d_out, x, flat, mask, heads, root, form, eps, nothing, kept, last_stats, room, d_flat,
                         d_stream, d_x, t, sequences * t // threads, sequences * (t + 1) // threads)  # fmt: skip
        for t in range(1, threads):
            d_flat[0] += d_flat[t]
