"""The chunked sigmoid loss: value and all gradients in one trip round the ring.

Images stay at home, texts travel. The sigmoid loss has no global normaliser, so a block of pairs knows its
gradients as soon as it is computed: the texts' share of them travels behind the texts and comes home with
them. Nothing global remains but one sum of three numbers.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from mpi.agree import agree
from mpi.comm import Array, Communicator
from mpi.schemes import REPRODUCIBLE, SCHEMES
from siglip_ref.model.specification import chosen
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops
from siglip_ref.ops.reproducible.blocks import GRANULE, Granules

TILE = 128  # rows and columns of a block: its temporaries stay in the cache, and below what malloc gives back at once


class Home:
    """What stays on its rank: the images, and what the texts that pass by leave behind."""

    granule, combine, zeros, value = 1, np.add, staticmethod(np.zeros_like), staticmethod(np.asarray)

    def __init__(self, rank: int, image_embed: Array, log_scale: Array, bias: Array, ops: Ops, tile: int) -> None:
        self.rank, self.image_embed, self.log_scale, self.bias = rank, image_embed, log_scale, bias
        self.ops, self.tile = ops, tile
        self.sums = np.zeros(3, image_embed.dtype)  # loss, d_log_scale, d_bias
        self.d_image_embed = np.zeros_like(image_embed)

    def visit(self, owner: int, text_embed: Array) -> Array:
        """Meet a rank's texts with the images: everything adds up here, but d_text_embed goes with the texts."""
        d_text_embed = np.zeros_like(text_embed)
        for _ in self.tiles(owner, text_embed, d_text_embed):
            pass
        return d_text_embed

    def tiles(self, owner: int, text_embed: Array, d_text_embed: Array) -> Iterator[None]:
        """The same in small steps, with a pause after each."""
        for i in range(0, len(self.image_embed), self.tile):
            for j in range(0, len(text_embed), self.tile):
                x, y = self.image_embed[i : i + self.tile], text_embed[j : j + self.tile]
                match = np.zeros((len(x), len(y)), bool)
                if owner == self.rank:  # only at home do an image and a text of one number belong together
                    match = np.eye(len(x), len(y), i - j, dtype=bool)
                loss, d_x, d_y, d_log_scale, d_bias = self.ops.pair_block(x, y, self.log_scale, self.bias, match)
                self.sums += np.stack([loss, d_log_scale, d_bias])
                self.d_image_embed[i : i + self.tile] += d_x
                d_text_embed[j : j + self.tile] += d_y
                yield


def ring_sigmoid_loss(
    comm: Communicator,
    image_embed: Array,
    text_embed: Array,
    log_scale: Array | float,
    bias: Array | float,
    *,
    scheme: str = "blocking",
    deterministic: bool = False,
    tile: int = TILE,
    ops: Ops | ModuleType | None = None,
) -> LossAndGrads:
    """The sigmoid loss of the global batch; every rank gives its own pairs, and gets their gradients.

    Parameters
    ----------
    comm : communicator of W ranks (mpi4py's, or `mpi.comm.ThreadComm`)
    image_embed, text_embed : array, shape (b, D), float32 or float64, unit rows; row i of both belong
        together. b may differ from rank to rank, and be 0
    log_scale, bias : numbers, the same on every rank; logits = exp(log_scale) * similarity + bias
    scheme : a name in `mpi.schemes.SCHEMES`; all give the same result
    deterministic : bits that do not depend on the number of ranks and threads, on tiles and on the order of arrival
        (`siglip_ref.ops.reproducible.blocks`); every shard must begin at a multiple of 128 pairs; schemes:
        `REPRODUCIBLE`
    tile : rows and columns of a block of pairs
    ops : the operations: `siglip_ref.ops`, the specification (default), or a twin

    Returns
    -------
    LossAndGrads: `.loss`, `.d_log_scale`, `.d_bias` of the global batch, the same on every rank;
    `.d_image_embed`, `.d_text_embed` of the own pairs, as one process would give them (nothing is left to average)

    Raises
    ------
    UsageError : on every rank alike, before the first hop, if the ranks' inputs do not fit together

    Source: arXiv 2303.15343, section 3.3 and figure 1.
    """
    known, granule = (REPRODUCIBLE, GRANULE) if deterministic else (list(SCHEMES), 1)
    sizes = agree(comm, image_embed, text_embed, log_scale, bias, scheme, known, granule)
    log_scale, bias = (np.asarray(x, image_embed.dtype).reshape(()) for x in (log_scale, bias))
    home: Any = Home(comm.rank, image_embed, log_scale, bias, chosen(ops), tile)
    if deterministic:
        home = Granules(comm.rank, sizes, image_embed, log_scale, bias, chosen(ops))

    d_text_embed = home.value(SCHEMES[scheme](comm, text_embed, sizes, home))

    totals = np.empty_like(sums := home.sums)
    comm.Allreduce(sums, totals)
    loss, d_log_scale, d_bias = (totals.reshape(-1, 3).sum(0) / sum(sizes)).astype(image_embed.dtype)
    return LossAndGrads(loss, home.d_image_embed / sum(sizes), d_text_embed / sum(sizes), d_log_scale, d_bias)
