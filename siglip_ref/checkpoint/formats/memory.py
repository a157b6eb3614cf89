"""How much memory a load will take: added up from names and shapes, and held against all limits before any reading."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.checkpoint.formats import files
from siglip_ref.checkpoint.formats.files import FLOATS, Store, unreadable
from siglip_ref.checkpoint.tables.names import Shape
from siglip_ref.process.memory import free_memory

# A file of weights may be packed, but hardly: numbers that are worth learning do not shrink to a twentieth.
RATIO = 20
SMALL = 64 * 2**20  # below this nobody minds
EXTENTS = 10_000  # parts of a file with holes that are looked at


def require_room(
    places: Iterable[Path], store: Store, theirs: Iterable[str], ours: Mapping[str, Shape], dtype: np.dtype[Any]
) -> None:
    """UsageError if the planned parameters are more than the cap, than the files can hold, or than memory is free.

    Parameters
    ----------
    places : the files they come from
    store, theirs : the tensors that will be read
    ours, dtype : the parameters that they become; weights stored in this type may be mapped, and then take nothing
    """
    file, *others = places
    read = [store.tensors[name] for name in set(theirs)]
    elements = [math.prod(tensor.shape) for tensor in read]
    planned = sum(math.prod(shape) for shape in ours.values()) * dtype.itemsize
    # one tensor at a time is there twice: as read, and as asked for
    most = planned + max(elements, default=0) * 8
    if most > files.CAP:
        got = f"{most:,} bytes for {sum(elements):,} numbers as {dtype}"
        raise unreadable(file, f"at most {files.CAP:,} bytes", got, "not a SigLIP model", "check the path")
    stored = sum(n * FLOATS[tensor.kind].itemsize for n, tensor in zip(elements, read, strict=True))
    if stored > SMALL:
        held = sum(held_bytes(place) for place in (file, *others))
        if stored > RATIO * held:
            got = f"numbers of {stored:,} bytes in {held:,}"
            cause = "a file with holes, whose download never came, or one packed to burst"
            raise unreadable(file, "weights", got, cause, files.AGAIN)
    copied = [n for n, tensor in zip(elements, read, strict=True) if not (tensor.mapped and tensor.kind == dtype.name)]
    need, free = sum(copied) * dtype.itemsize + max(copied, default=0) * 8, free_memory()
    if free is not None and need > free:
        raise unreadable(
            file,
            f"{need / 1e9:.1f} GB of free memory for the weights",
            f"{free / 1e9:.1f} GB",
            "a model larger than what is left of this machine's memory",
            "end other programs, or ask for the type that the file stores: that of safetensors and .pt is mapped",
        )


def held_bytes(path: Path) -> int:
    """The length of a file without its holes."""
    size, at, held = path.stat().st_size, 0, 0
    if not hasattr(os, "SEEK_DATA"):
        return size
    with path.open("rb") as file:
        for _ in range(EXTENTS):
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            except OSError:  # no data from here on
                return held
            held += at - begin
            if at >= size:
                return held
    return size
