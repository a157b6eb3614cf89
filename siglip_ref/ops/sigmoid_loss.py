"""The whole loss, tiled from blocks: over ranks it is the same sum, each rank with its own rows of blocks."""

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops


def sigmoid_loss(
    image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, *, tile: int | None = None, ops: Ops
) -> LossAndGrads:
    """The loss of B pairs and all its gradients: the sum over all blocks of pairs, divided by B.

    Parameters
    ----------
    image_embed, text_embed : array, shape (B, D), unit rows; row i of both belong together; the others as in a block
    tile : rows and columns of a block (None: one block)

    Source: arXiv 2303.15343, algorithm 1.
    """
    block = ops.pair_block
    pairs = len(image_embed)
    tile = tile or pairs
    starts = range(0, pairs, tile)
    loss = d_log_scale = d_bias = 0
    d_image = {i: 0 for i in starts}
    d_text = {j: 0 for j in starts}
    for i in starts:
        for j in starts:
            x, y = image_embed[i : i + tile], text_embed[j : j + tile]
            match = np.eye(len(x), len(y), dtype=bool) if i == j else np.zeros((len(x), len(y)), bool)
            part = block(x, y, log_scale, bias, match)
            loss, d_log_scale, d_bias = loss + part.loss, d_log_scale + part.d_log_scale, d_bias + part.d_bias
            d_image[i], d_text[j] = d_image[i] + part.d_image_embed, d_text[j] + part.d_text_embed
    d_image_embed, d_text_embed = np.concatenate(list(d_image.values())), np.concatenate(list(d_text.values()))
    return LossAndGrads(*(x / pairs for x in (loss, d_image_embed, d_text_embed, d_log_scale, d_bias)))
