"""Probes of a loss that is given several captions of each image."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.repeated import Repeated
from siglip_ref.ops.elementary import Array


@lru_cache(maxsize=512)
def with_captions(probe: Probe, per_image: int) -> Probe:
    """The probe with so many texts of each image, side by side: its own one, and that with its columns moved on by one,
    by two, ..., which keeps lengths, mantissas and which of them are equal."""
    if per_image == 1:
        return probe
    if isinstance(probe, Repeated):
        distinct = probe.rows[0], side_by_side(probe.rows[1], per_image)
        return replace(probe, text_embed=side_by_side(probe.text_embed, per_image), rows=distinct)
    return replace(probe, text_embed=side_by_side(probe.text_embed, per_image))


def side_by_side(texts: Array, per_image: int) -> Array:
    """(per_image * B, D), read-only.

    >>> side_by_side(np.array([[1, 2, 3], [4, 5, 6]]), 2).tolist()
    [[1, 2, 3], [3, 1, 2], [4, 5, 6], [6, 4, 5]]
    """
    moved = np.stack([np.roll(texts, caption, 1) for caption in range(per_image)], 1).reshape(-1, texts.shape[1])
    moved.flags.writeable = False
    return moved
