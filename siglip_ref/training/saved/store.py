"""Checkpoints: whole or not there at all, and checked before they are believed."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.process.atomic import sweep, write_atomically
from siglip_ref.training.saved.standing import checkpoints
from siglip_ref.training.settings import TrainingStopped

NOTE = "siglip-ref training"  # the entry of a file's header that tells what its tensors do not
KEPT = 2  # a checkpoint that turns out broken has one before it


class Saved(NamedTuple):
    """One checkpoint."""

    step: int
    tensors: dict[str, Array]
    about: dict[str, Any]


def save(folder: Path, step: int, tensors: dict[str, Array], about: dict[str, Any]) -> Path:
    """Write the checkpoint of a step and forget the oldest.

    Raises
    ------
    TrainingStopped : it cannot be written; the ones before are as they were
    """
    from safetensors.numpy import save as to_bytes

    path = folder / f"step-{step:08d}.safetensors"
    words = json.dumps(about, sort_keys=True)
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        note = json.dumps({"step": step, "about": words, "sha256": digest(step, tensors, words)})
        content = to_bytes(tensors, {NOTE: note})  # one entry: the library writes several in random order
        write_atomically(path, content)
    except OSError as error:
        last = checkpoints(folder)
        good = f"the last good checkpoint is {last[-1].name}" if last else "there is no checkpoint yet"
        raise TrainingStopped(
            step, f"the checkpoint cannot be written: {error}; {good}", "make room, then give the same command again"
        ) from error
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()
    return path


def load(path: Path) -> Saved:
    """Read a checkpoint; ValueError if anything in it is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            note = json.loads((file.metadata() or {})[NOTE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        step, words, wanted = int(note["step"]), str(note["about"]), note["sha256"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if digest(step, tensors, words) != wanted:
        raise ValueError(f"{path.name}: its checksum does not fit its content")
    return Saved(step, tensors, json.loads(words))


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with newer ones."""
    broken: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return load(path), broken
        except ValueError as error:
            broken.append(str(error))
    return None, broken


def digest(step: int, tensors: dict[str, Array], words: str) -> str:
    """SHA-256 over everything a checkpoint says."""
    total = hashlib.sha256(f"{step}\n{words}\n".encode())
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
