"""The loss with `deterministic=True`: equal bits for any number of ranks and threads, and any order of work.

Two things let the bits of a sum over pairs depend on who computed what; both are taken away here.

- The bits of a matrix product change with its shape. So pairs are met in granules: blocks of 128 images and 128 texts
  that begin at multiples of 128 of the whole batch, each with products of its own, on one thread. Only the batch's last
  granule may be shorter, and is so wherever it is computed.
- Adding rounds. So what the granules give is added in tallies, which know no order.

Bits still depend on the processor, on the versions of the libraries, and on `ops`.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.ops.record import Ops
from siglip_ref.ops.reproducible.tally import MOST_TERMS, merge, put, tally, total
from siglip_ref.process.blas_threads import blas_on_one_thread

GRANULE = 128


def meet(
    image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, first: int | None,
    d_image: Array, d_text: Array, sums: Array, *, ops: Ops,
) -> None:  # fmt: skip
    """Bring images and texts together, granule by granule.

    Parameters
    ----------
    image_embed, text_embed : array, shape (Bi, D) and (Bt, D); both begin at a multiple of `GRANULE` of their batch
    log_scale, bias : 0-d arrays
    first : which text belongs to the first image, the next to the next, as a row of text_embed (it may lie outside);
        None if none belongs to any
    d_image, d_text : tallies of the gradients, which are added to
    sums : tally of loss, d_log_scale and d_bias, three rows of one number for each granule of images
    ops : the operations; of them only `pair_block` is used
    """
    with blas_on_one_thread():
        for number, i in enumerate(range(0, len(image_embed), GRANULE)):
            # A copy, for NumPy has another product for a matrix and itself.
            x = image_embed[i : i + GRANULE].copy()
            for j in range(0, len(text_embed), GRANULE):
                y = text_embed[j : j + GRANULE]
                match = np.zeros((len(x), len(y)), bool)
                if first is not None:
                    match = np.eye(len(x), len(y), first + i - j, dtype=bool)
                loss, d_x, d_y, d_log_scale, d_bias = ops.pair_block(x, y, log_scale, bias, match)
                put(d_image[i : i + GRANULE], d_x)
                put(d_text[j : j + GRANULE], d_y)
                put(sums[3 * number : 3 * number + 3], np.stack([loss, d_log_scale, d_bias])[:, None])


class Granules:
    """One rank's images, and the tallies of what the texts that pass by leave behind; `mpi.loss.Home`, reproducible.

    Parameters
    ----------
    rank, sizes : whose images, and every rank's number of pairs (in one process: 0 and [B])
    image_embed : array, shape (sizes[rank], D)
    log_scale, bias : 0-d arrays
    ops : the operations; of them `meet` and `total` are used
    """

    tile = granule = GRANULE
    combine = staticmethod(merge)

    def __init__(
        self, rank: int, sizes: Sequence[int], image_embed: Array, log_scale: Array, bias: Array, ops: Ops
    ) -> None:
        pairs = sum(sizes)
        if pairs > MOST_TERMS * GRANULE:
            raise UsageError(
                f"at most {MOST_TERMS * GRANULE:,} pairs with deterministic=True",
                f"{pairs:,}",
                "int64 sums of more terms could wrap around",
                "a smaller batch, or deterministic=False",
            )
        self.rank, self.image_embed, self.log_scale, self.bias = rank, np.array(image_embed, order="C"), log_scale, bias
        self.ops, self.kind = ops, image_embed.dtype
        self.number, self.before = -(-pairs // GRANULE), sum(sizes[:rank]) // GRANULE  # granules: all, and before mine
        self.d_image = self.zeros(image_embed)
        self.of_granules = tally(3 * -(-len(image_embed) // GRANULE), 1, self.kind)

    def zeros(self, embed: Array) -> Array:
        """A tally of gradients of these embeddings."""
        return tally(len(embed), embed.shape[1], self.kind)

    def visit(self, owner: int, text_embed: Array) -> Array:
        """Meet a rank's texts with the images; return the tally of d_text_embed."""
        d_text = self.zeros(text_embed)
        self._meet(owner, text_embed, d_text, 0, len(self.image_embed), 0, len(text_embed))
        return d_text

    def tiles(self, owner: int, text_embed: Array, d_text: Array) -> Iterator[None]:
        """The same in small steps, with a pause after each."""
        for i in range(0, len(self.image_embed), GRANULE):
            for j in range(0, len(text_embed), GRANULE):
                self._meet(owner, text_embed, d_text, i, i + GRANULE, j, j + GRANULE)
                yield

    def _meet(self, owner: int, text_embed: Array, d_text: Array, top: int, bottom: int, left: int, right: int) -> None:
        """These rows of the images with these of the texts."""
        first = top - left if owner == self.rank else None
        together = (self.image_embed[top:bottom], text_embed[left:right], self.log_scale, self.bias, first)
        granules = self.of_granules[3 * (top // GRANULE) : 3 * -(-bottom // GRANULE)]
        tallies = (self.d_image[top:bottom], d_text[left:right], granules)
        self.ops.meet(*together, *tallies)

    def value(self, tallied: Array) -> Array:
        """A gradient's tally as numbers."""
        result: Array = self.ops.total(tallied, self.kind)
        return result

    @property
    def d_image_embed(self) -> Array:
        """Gradient of the images, not yet divided by the number of pairs."""
        return self.value(self.d_image)

    @property
    def sums(self) -> Array:
        """loss, d_log_scale, d_bias of every granule of the batch's images (granules, 3); zero where not mine.

        So adding up the ranks' tables changes no bit.
        """
        table = np.zeros((self.number, 3))
        mine = total(self.of_granules, table.dtype).reshape(-1, 3)
        table[self.before : self.before + len(mine)] = mine
        return table


def sigmoid_loss(image_embed: Array, text_embed: Array, log_scale: Array, bias: Array, ops: Ops) -> LossAndGrads:
    """`siglip_ref.model.loss.sigmoid_loss` with deterministic=True."""
    kinds = (np.dtype(np.float32), np.dtype(np.float64))
    if any(type(x) is not np.ndarray or x.dtype not in kinds or x.dtype != image_embed.dtype
           for x in (image_embed, text_embed)):  # fmt: skip
        raise UsageError(
            "two plain arrays of float32, or two of float64, with deterministic=True",
            f"image_embed {image_embed.dtype}, text_embed {text_embed.dtype}",
            "bits are kept for these two precisions only",
            "convert both, or deterministic=False",
        )
    pairs = len(image_embed)
    home = Granules(0, [pairs], image_embed, log_scale, bias, ops)
    d_text_embed = home.value(home.visit(0, np.ascontiguousarray(text_embed)))
    loss, d_log_scale, d_bias = (home.sums.sum(0) / pairs).astype(home.kind)
    return LossAndGrads(loss, home.d_image_embed / pairs, d_text_embed / pairs, d_log_scale, d_bias)
