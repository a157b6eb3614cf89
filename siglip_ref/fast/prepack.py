"""Weights packed once, for a model that stays in memory: quicker for few rows, for as much memory again."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from siglip_ref.fast.block import block_with
from siglip_ref.fast.machine.fit import KINDS, as_stored
from siglip_ref.fast.machine.product import LEAST, PACKED, pack
from siglip_ref.fast.machine.tile import STRIP, VECTOR
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops

EVER = 10**9  # rows that a kernel will be multiplied by


def prepacked(params: Mapping[str, Array], ops: Ops) -> Ops:
    """The same operations, but encoder blocks read the kernels among `params` from strips that are packed here.

    The arrays themselves are meant: others, and these after a change, are not. Results have the same bits.
    """
    packed = {}
    for name, weight in params.items():
        if "/block" in name and weight.dtype in KINDS:
            if name.endswith("/kernel") and min(weight.shape) > LEAST:
                packed[id(weight)] = weight, PACKED, _strips(weight)
            elif weight.ndim == 1:
                (form,), (stored,) = as_stored((weight,), (EVER,))
                packed[id(weight)] = weight, form, stored
    return replace(ops, block=ops.block._replace(forward=partial(block_with, packed)))


def _strips(kernel: Array) -> Array:
    """See `product.pack`; beyond the last column zero."""
    width, columns = kernel.shape
    side = STRIP * VECTOR // kernel.itemsize
    (turned,), (stored,) = as_stored((kernel,), (EVER,))
    strips = np.zeros((-(-columns // side) * width, side), kernel.dtype)
    step = stored.shape[1] * kernel.itemsize
    pack(turned, stored.ctypes.data, step, width, columns, strips, kernel.dtype.type(1))
    return strips
