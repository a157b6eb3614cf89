"""A locked image tower (LiT, SigLiT): its embeddings never change, so they are computed once and kept on disk."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.process.clock import at, duration
from siglip_ref.training.data.batches import Seen, Tokenize
from siglip_ref.training.data.captioned import STILL, Captioned, Data, Unreadable
from siglip_ref.training.parallel import Parallel, share
from siglip_ref.training.saved.store import digest, newest, save
from siglip_ref.use.inference import image_embeddings, text_features
from siglip_ref.use.tokenizer import Tokenizer

PIECE = 8  # pictures computed at once
AHEAD = 3  # pieces that are read meanwhile


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
    table = _kept(folder, about, "embeddings", parallel, lambda: _own_rows(part, see, params, cfg, ops, parallel, say))

    def embedding(number: int, noise: Array) -> Array:
        if not table[number, -1]:
            raise Unreadable("it could not be read when the embeddings were computed")
        row: Array = table[number, :-1]
        return row

    return embedding


def locked_texts(
    data: Data,
    tokenizer: Tokenizer,
    params: Mapping[str, Array],
    cfg: Config,
    ops: Ops,
    parallel: Parallel,
    folder: Path,
    say: Callable[[str], None],
) -> Tokenize:
    """What stands in for the ids of texts: what the text head is given, of every caption once, or read from the folder.

    Every rank computes its share, as of the images.
    """
    texts = dict.fromkeys(data.prompt.format(name) for name in data.classes)
    for part in (data.train, data.test):
        texts |= dict.fromkeys(caption for number in range(part.count) for caption in part.captions(number))
    places = {text: number for number, text in enumerate(texts)}
    weights = {name: value for name, value in params.items() if name.startswith("text/")}
    about = {"weights": digest(0, weights, ""), "texts": list(places)}

    def own_rows() -> Array:
        own, kept = share(len(places), parallel.rank, parallel.size), list(places)
        table = np.zeros((len(kept), cfg.text.width), params["bias"].dtype)
        pace = Pace("texts of the locked tower", own.stop - own.start, say)
        for start in range(own.start, own.stop, PIECE):
            rows = slice(start, min(start + PIECE, own.stop))
            table[rows] = text_features(params, tokenizer(kept[rows]), cfg, ops)
            parallel.at(0, "computing what the text head is given")
            pace(rows.stop - own.start)
        return table

    features = _kept(folder, about, "features", parallel, own_rows)

    def given_to_the_head(asked: Sequence[str]) -> Array:
        if all(text in places for text in asked):
            return np.asarray(features[[places[text] for text in asked]])
        return text_features(params, tokenizer(asked), cfg, ops)  # of data that does not list its captions

    return given_to_the_head


def _kept(folder: Path, about: dict[str, Any], name: str, parallel: Parallel, own: Callable[[], Array]) -> Array:
    """The table in the folder, if it is of this; else what all ranks compute of it together, which is kept there."""
    saved, _ = newest(folder)
    if saved and saved.about == about:
        return saved.tensors[name]
    table = parallel.sum(own())
    if parallel.rank == 0:
        save(folder, 0, {name: table}, about)
    return table


class Pace:
    """Says, once the second piece tells how long one takes, when all will be done; and how far it is."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self.what, self.total, self.say = what, total, say
        self.begun: tuple[int, float] | None = None
        self.done = 0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if self.begun is None:
            self.begun = done, now  # kernels were compiled meanwhile
        elif self.done == self.begun[0] and done < self.total:
            left = (now - self.begun[1]) / (done - self.done) * (self.total - done)
            self.say(f"{self.what}, each once: {self.total:,}, about {duration(left)}, until {at(left)}")
        if done * 10 // self.total > self.done * 10 // self.total:
            self.say(f"{self.what}, each once: {done:,} of {self.total:,}")
        self.done = done


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
    pace = Pace("images of the locked tower", mine.stop - mine.start, say)
    starts = range(mine.start, mine.stop, PIECE)
    with ThreadPoolExecutor(1) as pool:  # reads the next pictures while these are embedded
        read = [pool.submit(still, part, see, start, min(start + PIECE, mine.stop)) for start in starts[:AHEAD]]
        for place, start in enumerate(starts):
            seen, numbers = read.pop(0).result()
            read += [
                pool.submit(still, part, see, ahead, min(ahead + PIECE, mine.stop))
                for ahead in starts[place + AHEAD : place + AHEAD + 1]
            ]
            if numbers:
                table[numbers, :-1] = image_embeddings(params, seen.astype(table.dtype), cfg, ops)
                table[numbers, -1] = 1
            parallel.at(0, "embedding the locked images")
            pace(min(start + PIECE, mine.stop) - mine.start)
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
