"""Kernels of a narrow tower: each thread takes its sequences from pixels or tokens to one vector each, and back.

Threads meet once a tower, not at every product. The weights of a tower lie one after another in one array, in network
order; their gradients in one for each thread.
"""

from typing import Any

import numpy as np
from numba import prange

from siglip_ref.fast.embedding import sum_images
from siglip_ref.fast.kernels.encoder import block, block_size, d_encode, encode, linear
from siglip_ref.fast.linear import NONE_TURNED, affine, d_affine_inputs, d_affine_weights
from siglip_ref.fast.machine.blas import NO
from siglip_ref.fast.machine.compile import ONE, inner, kernel
from siglip_ref.fast.map_head import d_pool, pool
from siglip_ref.fast.patches import d_embed_some, embed_some, patches_at_once


@inner()
def _add_position(stem: Any, table: Any, begin: int, end: int) -> None:
    """The table may have more places than are taken."""
    for b in range(begin, end):
        for n in range(stem.shape[1]):
            for j in range(stem.shape[2]):
                stem[b, n, j] += table[n, j]


@inner()
def _of_thread(sequences: int, t: int, threads: int) -> Any:
    """Where a thread's sequences begin and end."""
    return sequences * t // threads, sequences * (t + 1) // threads


@inner()
def _collect(shares: Any, total: Any) -> None:
    """total = sum of the threads' shares."""
    for i in range(len(total)):
        total[i] = shares[0, i]
    for t in range(1, len(shares)):
        for i in range(len(total)):
            total[i] += shares[t, i]


@inner()
def _image_pieces(flat: Any, patches: int, patch: int, width: int, mlp: int) -> Any:
    """Patch kernel, patch bias, position, encoder, probe; and the MAP head's other weights in the orders of `block`.

    The MAP head lies as a block does whose first norm is the probe alone: what would be gamma is the last norm's beta.
    """
    numbers = patch * patch * 3
    bias = numbers * width
    position = bias + width
    encoder = position + patches * width
    head = flat.size - block_size(width, mlp)
    probe = head + width
    w, d = block(flat, head, width, mlp)
    return (
        flat[:bias].reshape(numbers, width), flat[bias:position], flat[position:encoder].reshape(patches, width),
        flat[encoder:probe], flat[probe : probe + width].reshape(1, width), w[2:], d[1:],
    )  # fmt: skip


@inner()
def _of_sequences(kept: Any, heads: int, begin: int, end: int) -> Any:
    """What the MAP head keeps of some sequences."""
    query, key, value, head_stats, mixed, read, stats, hidden = kept
    return (
        query[begin:end], key[begin:end], value[begin:end], head_stats[begin * heads : end * heads], mixed[begin:end],
        read[begin:end], stats[begin:end], hidden[begin:end],
    )  # fmt: skip


@kernel()
def some_images(
    routine: int, lines: Any, patch: int, columns: int, flat: Any, settings: Any, kept: Any, few: int, out: Any,
    begin: int, end: int,
) -> None:  # fmt: skip
    """From images to one vector each, for those from number `begin` to `end`.

    Parameters
    ----------
    lines : images, shape (B, height, width * 3), with `columns` patches in a line
    settings : as `towers.Settings`
    kept : stem and tokens (B, N, C), what `encode` keeps, what `map_head.pool` keeps
    out : array, shape (B, C)
    """
    mask, heads, root, eps, form, nothing = settings
    stem, tokens, inner, head = kept[0], kept[1], kept[2:8], kept[8:]
    (_, patches, width), mlp = stem.shape, inner[4].shape[2]
    rows, top, bottom = stem.shape[0] * patches, begin * patches, end * patches
    kernel, bias, position, encoder, probe, w, _ = _image_pieces(flat, patches, patch, width, mlp)
    flat_stem, flat_tokens = stem.reshape(rows, width), tokens.reshape(rows, width)
    cut = np.empty((patches_at_once(bottom - top, width), len(kernel)), flat.dtype)
    embed_some(routine, NO, lines, patch, columns, kernel, bias, nothing, cut, flat_stem, top, bottom)
    _add_position(stem, position, begin, end)
    encode(routine, flat_stem, encoder, settings, inner, few, flat_tokens, begin, end)
    scores, active = np.empty((1, 1, 1, patches), flat.dtype), np.empty((end - begin, mlp), flat.dtype)
    normed, mine = np.empty((end - begin, width), flat.dtype), _of_sequences(head, heads, begin, end)
    pool(routine, NONE_TURNED[2:], flat_tokens[top:bottom], probe, w, mask, heads, root, eps, form, nothing, mine,
         scores, normed, active, out[begin:end], ONE)  # fmt: skip


@kernel(parallel=True)
def all_images(
    routine: int, lines: Any, patch: int, columns: int, flat: Any, settings: Any, kept: Any, few: int, out: Any,
    threads: int,
) -> None:  # fmt: skip
    """`some_images` on several threads, at most as many as there are images."""
    for t in prange(threads):
        begin, end = _of_thread(len(out), t, threads)
        some_images(routine, lines, patch, columns, flat, settings, kept, few, out, begin, end)


@kernel()
def d_some_images(
    routine: int, d_out: Any, lines: Any, patch: int, columns: int, flat: Any, settings: Any, kept: Any, few: int,
    d_flat: Any, d_tokens: Any, d_stream: Any, d_stem: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """Gradients of `some_images`, with its arguments; d_flat is that of these images alone, the others are of all."""
    mask, heads, root, eps, form, _ = settings
    stem, tokens, inner, head = kept[0], kept[1], kept[2:8], kept[8:]
    (_, patches, width), mlp, images = stem.shape, inner[4].shape[2], end - begin
    rows, top, bottom = stem.shape[0] * patches, begin * patches, end * patches
    _, _, _, encoder, probe, w, _ = _image_pieces(flat, patches, patch, width, mlp)
    d_kernel, d_bias, d_position, d_encoder, d_probe, _, d = _image_pieces(d_flat, patches, patch, width, mlp)
    flat_stem, flat_tokens = stem.reshape(rows, width), tokens.reshape(rows, width)
    flat_d_stem, flat_d_tokens = d_stem.reshape(rows, width), d_tokens.reshape(rows, width)
    # out = MAP head of the tokens
    one, all_tokens, vectors = (images, 1, width), (images, patches, width), (images, width)
    d_heads = (
        np.empty(one, flat.dtype), np.empty(one, flat.dtype), np.empty(all_tokens, flat.dtype),
        np.empty(all_tokens, flat.dtype),
    )  # fmt: skip
    scores, active = np.empty((1, 2, 1, patches), flat.dtype), np.empty((images, mlp), flat.dtype)
    d_hidden, normed = np.empty((images, mlp), flat.dtype), np.empty(vectors, flat.dtype)
    d_normed, d_read = np.empty(vectors, flat.dtype), np.empty(vectors, flat.dtype)
    d_pool(routine, NONE_TURNED[2:], d_out[begin:end], flat_tokens[top:bottom], probe, w, mask, heads, root, form, eps,
           _of_sequences(head, heads, begin, end), scores, active, d_hidden, normed, d_normed, d_heads, d, d_read,
           d_probe, flat_d_tokens[top:bottom], ONE)  # fmt: skip
    # tokens = encoder of the stem
    d_encode(routine, flat_d_tokens, flat_stem, encoder, settings, inner, few, d_encoder, d_stream, flat_d_stem, begin,
             end)  # fmt: skip
    # stem = patches @ kernel + bias + position
    d_position[:] = 0
    sum_images(d_stem[begin:end], d_position)
    cut = np.empty((patches_at_once(bottom - top, width), len(d_kernel)), flat.dtype)
    d_embed_some(routine, flat_d_stem, lines, patch, columns, cut, d_kernel, d_bias, top, bottom)


@kernel(parallel=True)
def d_all_images(
    routine: int, d_out: Any, lines: Any, patch: int, columns: int, flat: Any, settings: Any, kept: Any, few: int,
    d_flat: Any, d_tokens: Any, d_stream: Any, d_stem: Any, threads: int,
) -> None:  # fmt: skip
    """`d_some_images` on several threads, whose shares of d_flat are added up."""
    shares = np.empty((threads, d_flat.size), d_flat.dtype)
    for t in prange(threads):
        begin, end = _of_thread(len(d_out), t, threads)
        d_some_images(routine, d_out, lines, patch, columns, flat, settings, kept, few, shares[t], d_tokens, d_stream,
                      d_stem, begin, end)  # fmt: skip
    _collect(shares, d_flat)


@inner()
def _text_pieces(flat: Any, places: int, width: int, columns: int) -> Any:
    """Position, encoder, kernel and bias of the head."""
    encoder, head = places * width, flat.size - (width + 1) * columns
    kernel, bias = linear(flat, head, width, columns)
    return flat[:encoder].reshape(places, width), flat[encoder:head], kernel, bias


@kernel()
def some_texts(
    routine: int, places: int, flat: Any, speaker: Any, settings: Any, kept: Any, few: int, out: Any, begin: int,
    end: int,
) -> None:  # fmt: skip
    """From looked-up tokens to one vector each, for texts from number `begin` to `end`.

    Parameters
    ----------
    places : how many the position table has
    speaker : array, shape (B,): the place of the token that speaks for its text
    settings : as `towers.Settings`
    kept : stem, which comes without positions, and states (B, N, C), the states taken (B, C), what `encode` keeps
    out : array, shape (B, D)
    """
    stem, states, taken, inner = kept[0], kept[1], kept[2], kept[3:]
    rows, width = stem.shape[0] * stem.shape[1], stem.shape[2]
    position, encoder, kernel, bias = _text_pieces(flat, places, width, out.shape[1])
    _add_position(stem, position, begin, end)
    encode(routine, stem.reshape(rows, width), encoder, settings, inner, few, states.reshape(rows, width), begin, end)
    for b in range(begin, end):
        for c in range(width):
            taken[b, c] = states[b, speaker[b], c]
    affine(routine, NO, taken[begin:end], kernel, bias, settings[5], out[begin:end], ONE)


@kernel(parallel=True)
def all_texts(
    routine: int, places: int, flat: Any, speaker: Any, settings: Any, kept: Any, few: int, out: Any, threads: int
) -> None:
    """`some_texts` on several threads, at most as many as there are texts."""
    for t in prange(threads):
        begin, end = _of_thread(len(out), t, threads)
        some_texts(routine, places, flat, speaker, settings, kept, few, out, begin, end)


@kernel()
def d_some_texts(
    routine: int, d_out: Any, places: int, flat: Any, speaker: Any, settings: Any, kept: Any, few: int, d_flat: Any,
    d_taken: Any, d_states: Any, d_stream: Any, d_stem: Any, begin: int, end: int,
) -> None:  # fmt: skip
    """Gradients of `some_texts`, with its arguments; d_flat is that of these texts alone, the others are of all."""
    stem, taken, inner = kept[0], kept[2], kept[3:]
    rows, width, zero = stem.shape[0] * stem.shape[1], stem.shape[2], settings[2] - settings[2]
    _, encoder, kernel, _ = _text_pieces(flat, places, width, d_out.shape[1])
    d_position, d_encoder, d_kernel, d_bias = _text_pieces(d_flat, places, width, d_out.shape[1])
    # out = taken @ kernel + bias
    d_affine_inputs(routine, NO, d_out[begin:end], kernel, zero, d_taken[begin:end], ONE)
    d_affine_weights(routine, d_out[begin:end], taken[begin:end], zero, d_kernel, d_bias, ONE)
    # taken[b] = states[b, speaker[b]]
    d_states[begin:end] = 0
    for b in range(begin, end):
        for c in range(width):
            d_states[b, speaker[b], c] = d_taken[b, c]
    # states = encoder of the stem
    d_encode(routine, d_states.reshape(rows, width), stem.reshape(rows, width), encoder, settings, inner, few,
             d_encoder, d_stream, d_stem.reshape(rows, width), begin, end)  # fmt: skip
    # stem = table[tokens] + position
    d_position[:] = 0
    sum_images(d_stem[begin:end], d_position)


@kernel(parallel=True)
def d_all_texts(
    routine: int, d_out: Any, places: int, flat: Any, speaker: Any, settings: Any, kept: Any, few: int, d_flat: Any,
    d_taken: Any, d_states: Any, d_stream: Any, d_stem: Any, threads: int,
) -> None:  # fmt: skip
    """`d_some_texts` on several threads, whose shares of d_flat are added up."""
    shares = np.empty((threads, d_flat.size), d_flat.dtype)
    for t in prange(threads):
        begin, end = _of_thread(len(d_out), t, threads)
        d_some_texts(routine, d_out, places, flat, speaker, settings, kept, few, shares[t], d_taken, d_states, d_stream,
                     d_stem, begin, end)  # fmt: skip
    _collect(shares, d_flat)
