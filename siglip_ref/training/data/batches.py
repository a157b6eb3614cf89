"""Which pairs make a batch, and what of them goes into the towers: a function of the seed and the batch's number alone.

So a training that was killed goes on with the right pictures because it knows its step, and any number of ranks sees
the same batches: each reads its rows.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from siglip_ref.ops.elementary import Array
from siglip_ref.training.data.captioned import NOISE, Captioned, Unreadable, none_readable
from siglip_ref.use.preprocess import Preprocess, levels, resize

RESIZED = 1 << 29  # bytes of pictures that are kept in the model's size
Tokenize = Callable[[Sequence[str]], Array]  # texts: what the text tower is given
Seen = Callable[[int, Array], Array]  # number and noise of a picture: what the image tower is given


def pixels_of(part: Captioned, size: tuple[int, int], how: Preprocess) -> Seen:
    """Pictures as numbers in [-1, 1], in the model's size; raises Unreadable. Still ones are resized once, as far as
    they fit into RESIZED bytes."""
    table, kept = levels(how), dict[int, Array]()
    most = RESIZED // (3 * size[0] * size[1]) if part.still else 0

    def see(number: int, noise: Array) -> Array:
        picture = kept.get(number)
        if picture is None:
            picture = part.picture(number, noise)
            if picture.shape[:2] != size:
                picture = resize(Image.fromarray(picture), size, how)
            if len(kept) < most:
                kept[number] = picture
        return table[picture, np.arange(3)]

    return see


class Batches:
    """The batches of a training, by number.

    skipped : numbers of pictures that could not be read, and why; the next readable one stands in
    """

    def __init__(self, part: Captioned, see: Seen, tokenize: Tokenize, size: int, seed: int, shuffled: float) -> None:
        self.part, self.see, self.tokenize, self.size, self.seed = part, see, tokenize, size, seed
        self.skipped: dict[int, str] = {}
        rng = np.random.default_rng([seed, 1])
        self.captioned_as = np.arange(part.count)  # whose caption each picture has
        moved = rng.permutation(part.count)[: round(shuffled * part.count)]
        self.captioned_as[moved] = rng.permutation(moved)
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def rows(self, batch: int) -> tuple[Array, Array]:
        """Numbers (B,) and noise (B, NOISE) of a whole batch."""
        place = batch * self.size + np.arange(self.size)
        rounds, places = np.divmod(place, self.part.count)
        numbers = np.array([self._order(int(r))[p] for r, p in zip(rounds, places, strict=True)])
        return numbers, np.random.default_rng([self.seed, 2, batch]).random((self.size, NOISE))

    def read(self, batch: int, mine: slice) -> tuple[Array, Array, Array]:
        """What the image tower is given, token ids, and labels (or -1), of these rows of a batch."""
        numbers, noise = self.rows(batch)
        images, captions, labels = [], [], []
        for number, vary in zip(numbers[mine], noise[mine], strict=True):
            image, number = self._readable(int(number), vary)
            images.append(image)
            captions.append(self.part.caption(int(self.captioned_as[number]), vary))
            labels.append(self.part.labels[number] if self.part.labels is not None else -1)
        return np.stack(images), self.tokenize(captions), np.array(labels)

    def _readable(self, number: int, noise: Array) -> tuple[Array, int]:
        for _ in range(self.part.count):
            try:
                return self.see(number, noise), number
            except Unreadable as reason:
                self.skipped[number] = str(reason)
                number = (number + 1) % self.part.count
        raise none_readable("images", self.part.count, f"{self.part.names(number)}: {self.skipped[number]}")

    def _draw_order(self, round_: int) -> Array:
        return np.random.default_rng([self.seed, 3, round_]).permutation(self.part.count)
