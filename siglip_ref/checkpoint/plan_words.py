"""What is said of the SigLIP that was found in a file, or was not."""

from collections.abc import Mapping
from pathlib import Path

from siglip_ref.checkpoint.formats.files import Store, unreadable
from siglip_ref.checkpoint.tables.lora import is_adapter
from siglip_ref.checkpoint.tables.mismatch import MERGE
from siglip_ref.checkpoint.tables.wrapped import BEGIN, BOTH, BUFFERS, WRAPPERS, Found
from siglip_ref.errors import UsageError, few


def notes_on(found: Found, store: Store, names: Mapping[str, str], prefix: str) -> list[str]:
    """What was taken off the names, and what was not read."""
    notes = []
    words = [word for word in WRAPPERS if any(f".{word}." in f".{old}" for old in found.names.values())]
    if prefix or found.prefix:
        what = f"{prefix + found.prefix!r} stands before every name, and was taken off"
        notes.append(what if found.sides == BOTH else f"the {found.sides[0]} tower under {prefix + found.prefix!r}")
    if words:
        notes.append(f"{', '.join(word + '.' for word in words)} taken out of the names: a wrapper's")
    if found.sides != BOTH:
        notes.append(f"the {found.sides[0]} tower alone: nothing else of a SigLIP is in the file")
    used = set(found.names.values())
    others = [name for name in store.tensors if name not in used and not name.endswith(BUFFERS)]
    if others:
        notes.append(f"{len(others)} other tensors were not read: {few(others, 2)}")
    return notes


def several_found(file: Path, found: list[Found]) -> UsageError:
    """The error that lists them, and says how to choose."""
    first = next((one.prefix for one in found if one.prefix), "")
    cause = "copies of a model, as an average of its weights (EMA), a teacher, or another step"
    if sorted(one.sides for one in found) == [("image",), ("text",)]:
        cause = "one tower for each side, whose names do not begin alike: they may be of one model or of two"
    return unreadable(
        file,
        "one SigLIP",
        f"{len(found)}: " + ", ".join(map(str, found[:6])),
        cause,
        f'choose one by how its names begin: siglip_ref.load(path, prefix="{first}")',
    )


def nothing_found(store: Store, file: Path) -> UsageError:
    """The error that says what is there instead."""
    names = sorted(store.tensors)
    begins = " or ".join(begin["image"] for begin in BEGIN.values())
    if any(is_adapter(name) for name in names):
        cause, repair = MERGE
    elif any(name.endswith(("visual.conv1.weight", "visual.proj", "visual_projection.weight")) for name in names):
        cause, repair = "a CLIP model, which has no attention pooling and no bias", "take a SigLIP model"
    elif not names:
        cause, repair = "a file without a single tensor", "save the model's state dict"
    else:
        cause, repair = "another model: no tower of a SigLIP is among its names", "save a SigLIP model"
    return unreadable(
        file,
        f"tensors of a SigLIP, or of one of its towers ({begins})",
        few(names) if names else "no tensors",
        cause,
        repair,
    )
