"""Images read ahead of the computation: decoded by threads, stacked into batches, in their order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError
from siglip_ref.model.naflex import Patches
from siglip_ref.use.pictures import SUFFIXES, is_see_through, open_image
from siglip_ref.use.preprocess import Preprocess, patches_of, pixels_of
from siglip_ref.use.walk import images_below

FINER = 1.4  # a JPEG that is decoded small has at least so many pixels a side for each that the model sees


class Prepared(NamedTuple):
    """What the image tower takes of one image, and whether the image had transparency."""

    values: Any
    clear: bool


Read = Callable[[Any], Prepared | UsageError]


def image_files(images: Sequence[Any] | str | Path) -> list[Any]:
    """The images of a folder and of all folders in it, in the order of their names; a list is returned as it is."""
    if not isinstance(images, str | Path):
        return list(images)
    place = Path(images)
    found = images_below(place) if place.is_dir() else [place]
    if not found or not place.exists():
        raise UsageError(
            expected="an image, or a folder of images",
            got=f"nothing at {place}"
            if not place.exists()
            else f"no file of {', '.join(SUFFIXES)} in or below {place}",
            cause="images of another format, or elsewhere" if place.exists() else "a spelling mistake",
            repair="check the path",
        )
    return found


def reader(cfg: Config, how: Preprocess, small: bool = False) -> Read:
    """The function that reads an image for this model, and returns why it cannot be read if it cannot.

    small : large JPEGs are decoded at 1/2, 1/4 or 1/8, as long as `FINER` times what the model sees is left: a fifth
        of the time, and vectors that differ in the third decimal
    """
    least = (round(FINER * max(cfg.image_size)),) * 2 if small and not cfg.naflex else None

    def read(source: Any) -> Prepared | UsageError:
        try:
            image = open_image(source, least)
            if cfg.naflex:
                return Prepared(patches_of(image, cfg.patch, how), is_see_through(image))
            return Prepared(pixels_of(image, cfg.image_size, how), is_see_through(image))
        except UsageError as error:
            return error

    return read


def stacked(images: Sequence[Any], cfg: Config, dtype: DTypeLike, size: int = 0) -> Any:
    """A batch as the image tower takes it; filled up with black images to `size`."""
    missing = max(0, size - len(images))
    if cfg.naflex:
        values, grids = zip(*images, strict=True)
        empty = [np.zeros_like(values[0])] * missing
        return Patches(np.stack([*values, *empty]).astype(dtype, copy=False), np.array([*grids, *[(1, 1)] * missing]))
    return np.stack([*images, *[np.zeros_like(images[0])] * missing]).astype(dtype, copy=False)


def batches_ahead(
    sources: Sequence[Any], read: Read, batch: int, threads: int
) -> Iterator[list[tuple[str, Prepared | UsageError]]]:
    """Name and content of `batch` images at a time, while the next ones are being read."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        rest = _ahead(pool, read, sources, 2 * batch)
        while group := list(islice(rest, batch)):
            yield group


def _ahead(
    pool: ThreadPoolExecutor, work: Read, sources: Iterable[Any], ahead: int
) -> Iterator[tuple[str, Prepared | UsageError]]:
    """Results in order, never more than `ahead` of them waiting in memory."""
    waiting: list[tuple[str, Any]] = []
    rest = iter(enumerate(sources))
    while True:
        for number, source in islice(rest, ahead - len(waiting)):
            name = str(source) if isinstance(source, str | Path) else f"image {number}"
            waiting.append((name, pool.submit(work, source)))
        if not waiting:
            return
        name, future = waiting.pop(0)
        yield name, future.result()
