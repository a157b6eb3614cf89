"""Your own images: a folder with captions beside them or class folders in it, or a list of files and captions."""

import csv
from pathlib import Path

import numpy as np

from siglip_ref.data.captioned import Captioned, Data, Unreadable
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.preprocess import SUFFIXES, open_image
from siglip_ref.sizes import config

PROMPT = "a photo of {}"
LARGEST = 512  # pixels; larger images are halved until they fit: they are kept in memory
MEMORY = 1 << 30  # bytes of decoded images that are kept


def from_files(place: Path) -> Data:
    """Captioned images.

    Parameters
    ----------
    place : a folder with cat.jpg and cat.txt (one caption a line); or a folder of folders, one a class, named as the
        class; or a CSV with the columns image (a path, from the CSV's folder) and caption

    Every tenth image is held out.
    """
    pairs = _from_csv(place) if place.is_file() else _from_folder(place)
    captioned = any(captions for _, captions in pairs)  # then a class folder's name is a caption like any other
    classes = [] if captioned else sorted({file.parent.name for file, _ in pairs})
    if len(pairs) < 10 or len(classes) == 1:
        raise UsageError(
            expected="at least ten images with captions, or class folders with at least ten images in all",
            got=f"{len(pairs)} images with captions, {len(classes)} class folders in {place}",
            cause="captions are missing, or the images lie elsewhere",
            repair="cat.jpg needs a cat.txt beside it; or one folder for each class; or a CSV with image,caption",
        )
    order = np.random.default_rng(0).permutation(len(pairs))  # neighbours in a folder may be alike
    held_out = len(pairs) // 10
    train, test = ([pairs[i] for i in part] for part in (order[held_out:], order[:held_out]))
    settings = {"steps": 1000, "batch": 64, "lr": 1e-3}
    prompt = PROMPT if classes else ""
    return Data(str(place), _part(train, classes), _part(test, classes), config("mu/16"), classes, prompt, settings)


Pairs = list[tuple[Path, list[str]]]


def _from_csv(file: Path) -> Pairs:
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        return [(file.parent / row["image"], [row["caption"]]) for row in rows]
    except (KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            expected=f"a CSV in {file}, in UTF-8, its first line naming the columns image and caption",
            got=f"{type(error).__name__}: {error}",
            cause="another list, or columns of other names",
            repair="make the first line: image,caption",
        ) from error


def _from_folder(folder: Path) -> Pairs:
    pairs: Pairs = []
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        words = file.with_suffix(".txt")
        if words.is_file():
            captions = [line.strip() for line in words.read_text(encoding="utf-8").splitlines() if line.strip()]
            pairs += [(file, captions)] if captions else []
        elif file.parent != folder:
            pairs.append((file, []))
    return pairs


def _part(pairs: Pairs, classes: list[str]) -> Captioned:
    kept: dict[int, Array] = {}
    room = MEMORY

    def picture(number: int, noise: Array) -> Array:
        nonlocal room
        if number not in kept:
            try:
                image = open_image(pairs[number][0], upright=True)
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

    labels = [classes.index(file.parent.name) for file, _ in pairs] if classes else None
    return Captioned(len(pairs), picture, caption, lambda number: str(pairs[number][0]), labels)
