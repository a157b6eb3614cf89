"""Cross-entropy of each token over a large vocabulary, in chunks: all logits at once are never there."""

from collections import namedtuple
from collections.abc import Iterable, Iterator

import numpy as np

from siglip_ref.ops.elementary import Array

TokenLossCache = namedtuple("TokenLossCache", "states kernel bias labels smoothing rows columns log_total")


def token_loss_forward(
    states: Array, kernel: Array, bias: Array, labels: Array, smoothing: float, rows: int | None, columns: int | None
) -> tuple[Array, TokenLossCache]:
    """out = log sum_v exp(a_v) - sum_v s_v a_v, with logits a = states @ kernel + bias and s the smoothed label.

    Parameters
    ----------
    states : array, shape (B, T, E)
    kernel : array, shape (E, V)
    bias : array, shape (V,)
    labels : int array, shape (B, T)
    smoothing : eps; s is 1 - eps at the label and eps / (V - 1) elsewhere
    rows, columns : tokens and words of a chunk, None: all. They change memory and rounding, nothing else

    Returns
    -------
    out : array, shape (B, T)

    A chunk of words has no loss of its own: the sum of exponentials runs over all chunks.

    Source: big_vision utils.py, weighted_softmax_xent; docs: derivations, captioning.
    """
    width, words = kernel.shape
    flat, wanted = states.reshape(-1, width), labels.reshape(-1)
    elsewhere = smoothing / (words - 1)
    losses, totals = [], []
    for part in _slices(len(flat), rows):
        x = flat[part]
        log_total = log_sum_exp(x @ kernel[:, block] + bias[block] for block in _slices(words, columns))
        picked = (x * kernel[:, wanted[part]].T).sum(-1) + bias[wanted[part]]
        everything = (x @ kernel.sum(1, keepdims=True))[:, 0] + bias.sum()
        losses.append(log_total - (1 - smoothing - elsewhere) * picked - elsewhere * everything)
        totals.append(log_total)
    out = np.concatenate(losses).reshape(labels.shape)
    return out, TokenLossCache(states, kernel, bias, labels, smoothing, rows, columns, np.concatenate(totals))


def token_loss_backward(d_out: Array, cache: TokenLossCache) -> tuple[Array, Array, Array]:
    """Gradients of `token_loss_forward`: d_states (B, T, E), d_kernel (E, V), d_bias (V,); each chunk is made anew."""
    states, kernel, bias, labels, smoothing, rows, columns, log_total = cache
    width, words = kernel.shape
    flat, wanted, d_flat = states.reshape(-1, width), labels.reshape(-1), d_out.reshape(-1)
    parts, elsewhere = list(_slices(len(flat), rows)), smoothing / (words - 1)
    d_states, d_kernel, d_bias = [0 * flat[part] for part in parts], [], []
    for block in _slices(words, columns):
        d_block = d_shift = 0
        for i, part in enumerate(parts):
            x = flat[part]
            logits = x @ kernel[:, block] + bias[block]
            # out = log_total - sum_v s_v a_v, and log_total's derivative is the softmax over all words
            own = wanted[part, None] == np.arange(words)[block]
            target = np.where(own, 1 - smoothing, elsewhere).astype(x.dtype)
            d_logits = d_flat[part, None] * (np.exp(logits - log_total[part, None]) - target)
            # a = states @ kernel + bias
            d_states[i] = d_states[i] + d_logits @ kernel[:, block].T
            d_block, d_shift = d_block + x.T @ d_logits, d_shift + d_logits.sum(0)
        d_kernel.append(d_block)
        d_bias.append(d_shift)
    return np.concatenate(d_states).reshape(states.shape), np.concatenate(d_kernel, 1), np.concatenate(d_bias)


def log_sum_exp(blocks: Iterable[Array]) -> Array:
    """log of the sum of exp over the last axis of arrays that stand side by side, without overflow.

    >>> float(log_sum_exp(np.array([0.0, 800.0, 800.0]).reshape(3, 1)).round(6))
    800.693147
    """
    blocks = iter(blocks)
    block = next(blocks)
    top = block.max(-1)
    total = np.exp(block - top[..., None]).sum(-1)
    for block in blocks:
        highest = block.max(-1)
        higher = np.where(highest > top, highest, top)
        total = total * np.exp(top - higher) + np.exp(block - higher[..., None]).sum(-1)
        top = higher
    return top + np.log(total)


def _slices(length: int, size: int | None) -> Iterator[slice]:
    size = size or length
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
