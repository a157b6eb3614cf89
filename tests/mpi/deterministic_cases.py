"""What the tests of deterministic=True share: batches whose sums round, shards at multiples of a granule, all bits."""

import hashlib

import numpy as np
from ring_cases import batch

from siglip_ref.ops.reproducible.blocks import GRANULE

PAIRS = 4 * GRANULE + 37  # the last granule is short
SHARDS = {
    1: [[PAIRS]],
    2: [[2 * GRANULE, 2 * GRANULE + 37], [4 * GRANULE, 37]],
    3: [[GRANULE, 2 * GRANULE, GRANULE + 37], [3 * GRANULE, 0, GRANULE + 37]],
    4: [[GRANULE, GRANULE, GRANULE, GRANULE + 37], [2 * GRANULE, GRANULE, GRANULE, 37]],
}
KINDS = [np.float32, np.float64]


def shards(sizes, kind, dim=24):
    """The same batch, cut in other places."""
    assert sum(sizes) == PAIRS
    whole = [np.concatenate(side) for side in batch([PAIRS], dim, dtype=kind)]
    return [np.split(side, np.cumsum(sizes)[:-1]) for side in whole]


def bits(parts):
    """A fingerprint of what all ranks together found; their copies of global numbers must be the same already."""
    for name in ("loss", "d_log_scale", "d_bias"):
        assert len({getattr(part, name).tobytes() for part in parts}) == 1, name
    tensors = [np.concatenate([getattr(part, name) for part in parts]) for name in ("d_image_embed", "d_text_embed")]
    numbers = [np.asarray(getattr(parts[0], name)) for name in ("loss", "d_log_scale", "d_bias")]
    return hashlib.sha256(b"".join(x.tobytes() for x in (*tensors, *numbers))).hexdigest()
