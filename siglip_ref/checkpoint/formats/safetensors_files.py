"""safetensors: the header is held against the file, then the file is mapped, so that weights are its pages, no copy."""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from siglip_ref.checkpoint.formats.files import (
    AGAIN,
    FLOATS,
    Store,
    Stored,
    last_resort,
    read_json,
    unique,
    unreadable,
    what_it_is,
    widened,
)
from siglip_ref.checkpoint.tables.names import Tensor
from siglip_ref.process.data import read_toml

HEADER_CAP = 100 * 10**6  # the safetensors library's own
# Kinds of whole bytes: the library's name, ours, bytes.
KINDS: dict[str, tuple[str, int]] = read_toml(__file__, "kinds")["safetensors"]


def open_safetensors(path: Path) -> Store:
    """One file."""
    try:
        with path.open("rb") as file:
            start, header, _ = read_header(file, path.stat().st_size)
    except ValueError as error:
        cause = what_it_is(path) or "a download that broke off, or not safetensors at all"
        raise unreadable(path, "safetensors", str(error), cause, AGAIN) from error
    data = np.memmap(path, np.uint8, "r") if header else np.zeros(0, np.uint8)

    def read(name: str) -> Tensor:
        entry = header[name]
        begin, end = entry["data_offsets"]
        kind = FLOATS[KINDS[entry["dtype"]][0]]
        flat: Tensor = data[start + begin : start + end].view(np.ndarray)
        if (start + begin) % kind.itemsize:
            flat = flat.copy()  # unaligned: BLAS could not take it
        return widened(flat.view(kind)).reshape(entry["shape"])

    return Store(
        {
            name: Stored(tuple(entry["shape"]), KINDS.get(entry["dtype"], (entry["dtype"], 0))[0], True)
            for name, entry in header.items()
        },
        read,
    )


def read_header(file: BinaryIO, size: int) -> tuple[int, dict[str, dict[str, Any]], dict[str, str]]:
    """Where the numbers begin; name -> dtype, shape, data_offsets; metadata. ValueError if it is not what it says.

    No name twice, no holes, no overlaps, nothing left over, every tensor as long as its shape.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, HEADER_CAP):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("a header of brackets") from error
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name[:200]!r} is described by other words than dtype, shape, data_offsets")
        numbers = [entry["shape"], entry["data_offsets"]]
        if not all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in numbers):
            raise ValueError(f"{name[:200]!r} has a size that is no whole number")
        if len(entry["data_offsets"]) != 2 or len(entry["shape"]) > 16 or not isinstance(entry["dtype"], str):
            raise ValueError(f"{name[:200]!r} has no shape, kind or place")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        itemsize = KINDS.get(entry["dtype"], ("", 0))[1]
        if begin != end or stop < begin or (itemsize and stop - begin != math.prod(entry["shape"]) * itemsize):
            raise ValueError(f"the place of {name[:200]!r} leaves a hole, overlaps another, or does not fit its shape")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"tensors of {end:,} bytes in a file that has room for {size - 8 - length:,}")
    return 8 + length, header, metadata


def open_shards(path: Path) -> Store:
    """Files named by an index; each must lie beside it."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        got = "none" if places is None else "another thing by this name"
        raise unreadable(path, "weight_map, tensor -> file", got, "another kind of index", "check the path")
    away = sorted({file for file in places.values() if not file or Path(file).name != file or "\0" in file})
    if away:
        got = repr(away[0][:200])
        raise unreadable(path, "files beside the index", got, "an index that points elsewhere", "do not trust it")
    stores = {file: _beside(path, file) for file in sorted(set(places.values()))}
    lost = sorted(name for name, file in places.items() if name not in stores[file].tensors)
    if lost:
        raise unreadable(
            path, lost[0][:200], "a shard without it", "shards of different versions", "download all again"
        )
    return Store(
        {name: stores[file].tensors[name] for name, file in places.items()},
        lambda name: stores[places[name]].read(name),
    )


def _beside(index: Path, file: str) -> Store:
    path = index.with_name(file)
    with last_resort(index, f"the shard {file[:200]!r}"):
        if not path.is_file():
            got = "no such file"
            raise unreadable(index, f"the shard {file} beside it", got, "an incomplete download", "download it")
        return open_safetensors(path)
