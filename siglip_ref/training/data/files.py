"""Your own images: a folder with captions beside them or class folders in it, or a list of files and captions."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from siglip_ref.architecture.sizes import config
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.process.tables import read_typed
from siglip_ref.process.typed import read_lines, visible
from siglip_ref.training.data.captioned import Captioned, Data, Item, Unreadable
from siglip_ref.use.pictures import open_image
from siglip_ref.use.walk import images_below

COLUMNS = ("image", "caption")
PROMPT = "a photo of {}"
SAMPLE = 1 << 14  # bytes at each of three places in a file, by which another of the same size is known
LARGEST = 512  # pixels; larger images are halved until they fit: they are kept in memory
MEMORY = 1 << 30  # bytes of decoded images that are kept
MODEL = replace(config("mu/16"), text_length=64)  # own captions are sentences: 63 bytes and the end


def from_files(place: Path) -> Data:
    """Captioned images.

    Parameters
    ----------
    place : a folder with cat.jpg and cat.txt (one caption a line); or a folder of folders, one a class, named as the
        class; or a CSV with the columns image (a path, from the CSV's folder) and caption

    Every tenth image is held out.
    """
    pairs, notes = _from_csv(place) if place.is_file() else _from_folder(place)
    captioned = any(captions for _, captions in pairs)  # then a class folder's name is a caption like any other
    classes = [] if captioned else sorted({file.parent.name for file, _ in pairs})
    if len(pairs) < 10 or len(classes) == 1:
        raise UsageError(
            expected="at least ten images with captions, or class folders with at least ten images in all",
            got=f"{len(pairs)} images with captions, {len(classes)} class folders in {place}"
            + "".join(f"; {note}" for note in notes),
            cause="captions are missing, or the images lie elsewhere",
            repair="cat.jpg needs a cat.txt beside it; or one folder for each class; or a CSV with image,caption",
        )
    order = np.random.default_rng(0).permutation(len(pairs))  # neighbours in a folder may be alike
    held_out = len(pairs) // 10
    train, test = ([pairs[i] for i in part] for part in (order[held_out:], order[:held_out]))
    settings = {"steps": 1000, "batch": 64, "lr": 1e-3}
    prompt = PROMPT if classes else ""
    items = _items(place if place.is_dir() else place.parent, pairs)
    parts = (_part(train, classes), _part(test, classes))
    return Data(str(place), *parts, MODEL, classes, prompt, settings, items, tuple(notes))


Pairs = list[tuple[Path, list[str]]]


def _from_csv(file: Path) -> tuple[Pairs, list[str]]:
    """Pairs, and a note on rows that hold none."""
    rows, count = read_typed(file, COLUMNS)
    empty = count - len(rows)
    left = (
        "has no image or no caption, and is left out" if empty == 1 else "have no image or no caption, and are left out"
    )
    notes = [f"{empty} of {count} rows of {file.name} {left}"]
    return [(file.parent / image, [caption]) for image, caption in rows], notes[: bool(empty)]


def _from_folder(folder: Path) -> tuple[Pairs, list[str]]:
    """Pairs, and a note on images that have no caption and lie in no class folder."""
    pairs: Pairs = []
    bare: list[str] = []
    for file in images_below(folder):
        words = file.with_suffix(".txt")
        captions = read_lines(words) if words.is_file() else []
        if captions or (file.parent != folder and not words.is_file()):
            pairs.append((file, captions))
        else:
            bare.append(file.name)
    some = ", ".join(map(visible, bare[:3]))
    left = "1 image has no caption, and is" if len(bare) == 1 else f"{len(bare)} images have no caption, and are"
    return pairs, [f"{left} left out: {some}{' ...' * (len(bare) > 3)}"] * bool(bare)


def _items(root: Path, pairs: Pairs) -> tuple[Item, ...]:
    """What a training is begun with, so that it can tell whether it goes on with the same."""

    def name(file: Path) -> str:
        return str(file.relative_to(root) if file.is_relative_to(root) else file)

    return tuple(Item.of(name(file), *_content(file), captions) for file, captions in pairs)


def _content(file: Path) -> tuple[int, str]:
    """Bytes of a file, and a digest of its beginning, middle and end: the whole of a small one."""
    try:
        size, digest = file.stat().st_size, hashlib.sha256()
        if not file.is_file():
            return -1, ""
        with file.open("rb") as content:
            for start in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
                content.seek(start)
                digest.update(content.read(SAMPLE))
    except OSError:
        return -1, ""
    return size, digest.hexdigest()[:16]


def _part(pairs: Pairs, classes: Sequence[str]) -> Captioned:
    kept: dict[int, Array] = {}
    room = MEMORY

    def picture(number: int, noise: Array) -> Array:
        nonlocal room
        if number not in kept:
            try:
                image = open_image(pairs[number][0], (LARGEST, LARGEST))
            except UsageError as error:
                raise Unreadable(f"{error.got} ({error.cause})") from error
            image.thumbnail((LARGEST, LARGEST))
            pixels = np.asarray(image)
            if room < pixels.nbytes:
                return pixels
            kept[number], room = pixels, room - pixels.nbytes
        return kept[number]

    def caption(number: int, noise: Array) -> str:
        file, captions = pairs[number]
        return captions[int(noise[0] * len(captions))] if captions else PROMPT.format(file.parent.name)

    def captions(number: int) -> list[str]:
        return pairs[number][1] or [PROMPT.format(pairs[number][0].parent.name)]

    labels = [classes.index(file.parent.name) for file, _ in pairs] if classes else None
    names = [str(file) for file, _ in pairs]
    return Captioned(len(pairs), picture, caption, names.__getitem__, labels, captions, still=True)
