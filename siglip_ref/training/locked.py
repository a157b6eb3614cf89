"""A locked image tower (LiT, SigLiT): its embeddings never change, so they are computed once and kept on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.training.batches import Seen
from siglip_ref.training.data.captioned import STILL, Captioned, Unreadable
from siglip_ref.training.parallel import Parallel, share
from siglip_ref.training.saved.store import digest, newest, save
from siglip_ref.use.inference import image_embeddings

PIECE = 8  # pictures computed at once


def locked(
    part: Captioned,
    see: Seen,
    params: Mapping[str, Array],
    cfg: Config,
    ops: Ops,
    parallel: Parallel,
    folder: Path,
    data: str,
    say: Callable[[str], None],
) -> Seen:
    """What stands in for a picture: its embedding (D,), computed by all ranks together, or read from the folder.

    data : digest of all pictures, by which kept embeddings are known to be theirs

    Source: Zhai et al. 2022 (LiT), arXiv 2111.07991; arXiv 2303.15343, section 4.1.
    """
    weights = {name: value for name, value in params.items() if name.startswith("image/")}
    about = {
        "weights": digest(0, weights, ""),
        "data": data,
        "pictures": [part.names(number) for number in range(part.count)],
    }
    saved, _ = newest(folder)
    table = saved.tensors["embeddings"] if saved and saved.about == about else None
    if table is None:
        table = parallel.sum(_own_rows(part, see, params, cfg, ops, parallel, say))
        if parallel.rank == 0:
            save(folder, 0, {"embeddings": table}, about)

    def embedding(number: int, noise: Array) -> Array:
        if not table[number, -1]:
            raise Unreadable("it could not be read when the embeddings were computed")
        row: Array = table[number, :-1]
        return row

    return embedding


def _own_rows(
    part: Captioned,
    see: Seen,
    params: Mapping[str, Array],
    cfg: Config,
    ops: Ops,
    parallel: Parallel,
    say: Callable[[str], None],
) -> Array:
    """(count, D + 1): embeddings of this rank's pictures, and 1 if they could be read; all other rows are zero."""
    table = np.zeros((part.count, cfg.embed + 1), params["bias"].dtype)
    mine = share(part.count, parallel.rank, parallel.size)
    for start in range(mine.start, mine.stop, PIECE):
        seen, numbers = still(part, see, start, min(start + PIECE, mine.stop))
        if numbers:
            table[numbers, :-1] = image_embeddings(params, seen.astype(table.dtype), cfg, ops)
            table[numbers, -1] = 1
        parallel.at(0, "embedding the locked images")
        done, of = min(start + PIECE, mine.stop) - mine.start, mine.stop - mine.start
        if done * 10 // of > (start - mine.start) * 10 // of:
            say(f"images of the locked tower, embedded once: {done} of {of}")
    return table


def still(part: Captioned, see: Seen, start: int, stop: int) -> tuple[Array, list[int]]:
    """Pictures as they are, unvaried, and the numbers of those that can be read."""
    images, numbers = [], []
    for number in range(start, min(stop, part.count)):
        try:
            images.append(see(number, np.array(STILL)))
            numbers.append(number)
        except Unreadable:
            continue
    return np.array(images), numbers
