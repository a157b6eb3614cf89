"""What the decoder is asked: its inputs from the labels, one by one or all at once, and the loss of one task."""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.siglip2.choices import Captioning
from siglip_ref.siglip2.record import Recipe

CaptionCache = namedtuple("CaptionCache", "decoder token_loss average")


class Target(NamedTuple):
    """What one task asks of each image: labels int (B, T); counted bool (B, T), the labels that are judged; parallel
    bool (B,), the examples that are predicted all at once."""

    labels: Array
    counted: Array
    parallel: Array


def caption_inputs(labels: Array, parallel: Array, start: int, mask_id: int) -> Array:
    """inputs_t = label_(t-1), the start for t = 0; in parallel examples the mask for all t.

    Labels are never shifted: from inputs_0 to inputs_t the decoder is to predict label_t, in both modes.

    Parameters
    ----------
    labels : int array, shape (B, T)
    parallel : array of bool, shape (B,)
    start : the id that stands before the first label
    mask_id : the id of the mask, the last row of the token table

    Returns
    -------
    inputs : int array, shape (B, T)

    Source: big_vision models/proj/cappa/cappa.py, shift_right and the masked prediction with ratio 1.

    Examples
    --------
    >>> caption_inputs(np.array([[5, 6, 1], [7, 1, 0]]), np.array([False, True]), 0, 29).tolist()
    [[0, 5, 6], [29, 29, 29]]
    """
    before = np.concatenate([np.full_like(labels[:, :1], start), labels[:, :-1]], 1)
    return np.where(parallel[:, None], mask_id, before)


def places_seen(labels: Array, parallel: Array, choices: Captioning) -> Array:
    """seen[t, s] = s <= t, and everything in parallel examples: which places s each place t sees, bool (B, 1, T, T).

    Places of padding are seen like any other, unless `choices.pad_keys` is "hidden"; the first place always is.
    """
    length = labels.shape[1]
    seen = parallel[:, None, None] | np.tri(length, dtype=bool)  # (B, T, T)
    if choices.pad_keys == "hidden":
        seen = seen & ((labels != choices.pad) | (np.arange(length) == 0))[:, None]
    return seen[:, None]


def caption_loss_forward(
    target: Target, context: Array, weights: Mapping[str, Array], choices: Captioning, seen: Array | None = None,
    *, ops: Recipe,
) -> tuple[Array, CaptionCache]:  # fmt: skip
    """The loss of one task: out = mean over examples, and in each over its counted words, of -log p(label).

    Parameters
    ----------
    target : labels, what counts of them, and which examples are predicted in parallel
    context : array, shape (B, N, C), the image's tokens after the encoder's final norm
    weights : token, position, blockII/..., norm/..., out/kernel (E, V), out/bias (V,)
    seen : array of bool, broadcast to (B, H, T, N), or None: which of the image's tokens are no padding

    Returns
    -------
    out : 0-d
    """
    mask_id = len(weights["token"]) - 1
    inputs = ops.caption_inputs(target.labels, target.parallel, choices.start, mask_id)
    mask = places_seen(target.labels, target.parallel, choices)
    own = {name: value for name, value in weights.items() if not name.startswith("out/")}
    settings = choices.decoder.heads, choices.gelu, choices.eps
    states, decoder_cache = ops.decoder.forward(inputs, context, own, *settings, mask, seen)
    output, chunk = (weights["out/kernel"], weights["out/bias"]), (choices.rows, choices.columns)
    losses, loss_cache = ops.token_loss.forward(states, *output, target.labels, choices.smoothing, *chunk)
    out, average_cache = ops.average.forward(losses, target.counted, choices.mean)
    return out, CaptionCache(decoder_cache, loss_cache, average_cache)


def caption_loss_backward(d_out: Array, cache: CaptionCache, *, ops: Recipe) -> tuple[Array, dict[str, Array]]:
    """Gradients of `caption_loss_forward`: d_context (B, N, C), a dict with the keys of `weights`."""
    # out = average of losses
    d_losses = ops.average.backward(d_out, cache.average)
    # losses = -log softmax(states @ out/kernel + out/bias) at the labels
    d_states, d_kernel, d_bias = ops.token_loss.backward(d_losses, cache.token_loss)
    # states = decoder(inputs, context)
    d_context, d = ops.decoder.backward(d_states, cache.decoder)
    return d_context, d | {"out/kernel": d_kernel, "out/bias": d_bias}


def target_of(
    prefix: Sequence[int], words: Sequence[int], end: int, pad: int, length: int
) -> tuple[list[int], list[bool]]:
    """Labels of one example and which of them count: not the task's prefix, the words and the end, no padding.

    Too many words are cut so that the end stays, as big_vision's "sticky" end does.

    Examples
    --------
    >>> target_of([7], [4, 5], 1, 0, 6)
    ([7, 4, 5, 1, 0, 0], [False, True, True, True, False, False])
    >>> target_of([7], [4, 5, 6], 1, 0, 3)[0]
    [7, 4, 1]
    """
    room = length - len(prefix) - 1
    if room < 0:
        raise UsageError(
            expected=f"a prefix of at most {length - 1} ids",
            got=f"{len(prefix)} ids",
            cause=f"the end has to fit behind it into {length} places",
            repair="shorten the prefix, or make the decoder longer",
        )
    used = [*prefix, *words[:room], end]
    rest = length - len(used)
    return used + [pad] * rest, [False] * len(prefix) + [True] * (len(used) - len(prefix)) + [False] * rest


def box_numbers(box: Sequence[float], bins: int, order: Literal["y1 x1 y2 x2", "x1 y1 x2 y2"]) -> list[int]:
    """A box as four whole numbers, to be written as words: round(fraction * (bins - 1)), cut to what there is.

    Parameters
    ----------
    box : x1, y1, x2, y2 as fractions of width and height
    bins, order : not published for SigLIP 2; PaliGemma's are 1024 and "y1 x1 y2 x2"

    Source: big_vision pp/proj/paligemma/segmentation.py.

    Examples
    --------
    >>> box_numbers([0.0, 0.25, 0.5, 1.5], 1024, "y1 x1 y2 x2")
    [256, 0, 1023, 512]
    """
    numbers = {name: min(max(round(at * (bins - 1)), 0), bins - 1) for name, at in zip(SIDES, box, strict=True)}
    return [numbers[name] for name in order.split()]


SIDES = ("x1", "y1", "x2", "y2")
