"""Which images a folder holds: the same answer for training, embedding and zero-shot."""

import json
import os
from pathlib import Path

from siglip_ref.use.preprocess import SUFFIXES

MANIFEST, FORMAT = "training.json", "siglip-ref-training/1"  # what a training writes into its folder


def images_below(folder: Path, blocked: list[str] | None = None) -> list[Path]:
    """The image files of a folder and of all folders in it, in the order of their names.

    What a training wrote into a folder of its own (curves.png) is none of them. Folders that cannot be entered are
    added to `blocked`.
    """
    found: list[Path] = []

    def cannot_enter(error: OSError) -> None:
        if blocked is not None:
            blocked.append(str(error.filename))

    for place, folders, files in os.walk(folder, onerror=cannot_enter):
        folders[:] = [name for name in folders if not is_training(Path(place, name))]
        found += [Path(place, name) for name in files if Path(name).suffix.lower() in SUFFIXES]
    return sorted(found)


def is_training(folder: Path) -> bool:
    """Whether a training wrote its manifest there."""
    return is_of(folder / MANIFEST, FORMAT)


def is_of(file: Path, format: str) -> bool:
    """Whether a file of JSON says that it is of this format."""
    try:
        return bool(json.loads(file.read_text(encoding="utf-8"))["format"] == format)
    except (OSError, ValueError, KeyError, TypeError):
        return False
