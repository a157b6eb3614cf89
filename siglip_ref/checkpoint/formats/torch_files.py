"""torch.save's files, .pt and .bin, without torch: a pickle read as data (`torch_pickle`), and the numbers, mapped."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.checkpoint.formats.files import (
    BFLOAT16,
    CONVERT,
    FLOATS,
    SETTINGS_CAP,
    Store,
    Stored,
    unreadable,
    what_it_is,
    widened,
)
from siglip_ref.checkpoint.formats.torch_pickle import Call, Elsewhere, Name, NotTensors, read_pickle
from siglip_ref.checkpoint.tables.names import Shape, Tensor
from siglip_ref.process.data import read_toml

_KINDS = read_toml(__file__, "kinds")
STORAGES: dict[str, str] = _KINDS["torch"]
UNUSABLE: dict[str, str] = _KINDS["unusable"]
ITEMSIZE: dict[str, int] = _KINDS["bytes"]
MAGIC = 0x1950A86A20F9469CFC6C  # begins files from before torch 1.6
NAMES = 200_000  # more tensors than this no model has


class Place(NamedTuple):
    """Where a storage lies in the file."""

    start: int
    size: int


class Rows(NamedTuple):
    """A tensor in a storage; offset and strides in numbers, not bytes."""

    storage: str
    kind: str
    offset: int
    shape: Shape
    strides: Shape


def open_torch(path: Path) -> Store:
    """Every tensor of a file, dicts in dicts with their keys joined by dots. Nothing that the file names is called."""
    try:
        content, places, order = _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
    except NotTensors as error:
        cause = "a pickle that holds more than tensors; what it names could run any code, and is never executed"
        raise unreadable(path, "a state dict of tensors", f"the name {error}", cause, CONVERT) from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        cause = what_it_is(path) or "not a file of torch.save, or a broken one; pickles of other kinds are never opened"
        raise unreadable(path, "a state dict of tensors", str(error)[:300], cause, CONVERT) from error
    if not isinstance(content, dict):
        got = content.function if isinstance(content, Call) else content
        got = ".".join(got) if isinstance(got, Name) else type(got).__name__
        repair = "save its dict of tensors: torch.save(model.state_dict(), 'weights.pt')"
        raise unreadable(path, "a state dict of tensors", got[:200], "one object, not a dict of tensors", repair)
    rows, tensors = {}, {}
    for name, value in _flat(content):
        found = _tensor(value)
        if found and name in tensors:
            raise unreadable(path, "every name once", name[:200], "two tensors of one name in dicts of dicts", CONVERT)
        if isinstance(found, Rows):
            rows[name] = found
            tensors[name] = Stored(found.shape, found.kind, True, _why_not(found, places))
        elif found:
            tensors[name] = Stored((), "unreadable", False, found)
    data = np.memmap(path, np.uint8, "r")

    def read(name: str) -> Tensor:
        found = rows[name]
        kind = np.dtype(np.uint16) if found.kind == "bfloat16" else FLOATS[found.kind]
        begin = places[found.storage].start + found.offset * kind.itemsize
        strides = tuple(stride * kind.itemsize for stride in found.strides)
        view: Tensor = np.ndarray(found.shape, kind.newbyteorder(order), data, begin, strides)
        view = view.astype(kind, copy=bool(begin % kind.itemsize))
        return widened(view.view(BFLOAT16)) if found.kind == "bfloat16" else view

    return Store(tensors, read)


Content = tuple[Any, dict[str, Place], Any]


def _zipped(path: Path) -> Content:
    """Since torch 1.6: an archive with data.pkl, and each storage as a member that is not packed."""
    size, places = path.stat().st_size, {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        members = archive.infolist()
        pickles = [member for member in members if member.filename.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > SETTINGS_CAP:
            raise ValueError(f"{len(pickles)} members data.pkl of at most {SETTINGS_CAP:,} bytes, not one")
        root = pickles[0].filename.removesuffix("data.pkl")
        order: Any = "<"
        for member in members:
            if member.compress_type or member.flag_bits & 1 or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename[:200]!r} is packed or encrypted, which torch.save never does")
            raw.seek(member.header_offset)
            head = raw.read(30)
            start = (
                member.header_offset
                + 30
                + int.from_bytes(head[26:28], "little")
                + int.from_bytes(head[28:30], "little")
            )
            if head[:4] != b"PK\x03\x04" or start + member.file_size > size or member.filename in places:
                raise ValueError(f"{member.filename[:200]!r} stands twice, or lies outside the file")
            places[member.filename] = Place(start, member.file_size)
        if f"{root}byteorder" in places and archive.read(f"{root}byteorder")[:3] == b"big":
            order = ">"
        read = read_pickle(archive.read(pickles[0]))
    inside = f"{root}data/"
    storages = {name.removeprefix(inside): place for name, place in places.items() if name.startswith(inside)}
    for storage in read.elsewhere:
        key, size = _said(storage)
        if key in storages and storages[key].size != size:
            raise ValueError(f"{storages[key].size:,} bytes of numbers where {size:,} are said to be")
    return read.content, storages, order


def _legacy(path: Path) -> Content:
    """Before torch 1.6: five pickles, then each storage: its length in numbers, and they."""
    with path.open("rb") as raw:
        head = raw.read(SETTINGS_CAP)
    at, parts = 0, []
    for _ in range(5):
        parts.append(read_pickle(head, at))
        at = parts[-1].end
        if parts[0].content != MAGIC:
            raise ValueError("a pickle that torch.save did not write")
    _, _, system, content, keys = (part.content for part in parts)
    sizes = dict(map(_said, parts[3].elsewhere))
    places, length = {}, path.stat().st_size
    with path.open("rb") as raw:
        for key in map(str, keys):
            raw.seek(at)
            numbers = int.from_bytes(raw.read(8), "little")
            places[key] = Place(at + 8, sizes[key])
            at += 8 + sizes[key]
            if at > length or numbers > sizes[key] or sizes[key] % max(1, numbers):
                raise ValueError("numbers that lie beyond the end of the file, or are fewer than it says")
    little = not isinstance(system, dict) or system.get("little_endian", True)
    return content, places, "<" if little else ">"


def _said(storage: Elsewhere) -> tuple[str, int]:
    """The key of a storage, and its bytes, as the pickle says them."""
    _, type_, key, _, count, *view = storage.key
    if any(part is not None for part in view):
        raise ValueError("a view of another storage, as torch 0.3 saved them")
    kind = type_.name.removesuffix("Storage")
    itemsize = 1 if kind in ("Untyped", "_Untyped") else ITEMSIZE.get(STORAGES.get(kind, kind), 1)
    if type(count) is not int or count < 0:
        raise ValueError("a storage of impossible length")
    return str(key), count * itemsize


def _flat(content: Any) -> Iterator[tuple[str, Any]]:
    """Values of dicts in dicts, under their keys joined by dots; no dict is entered twice, for one may hold itself."""
    seen, waiting, told = set(), [("", content)], 0
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            if id(value) not in seen:
                seen.add(id(value))
                waiting += [(f"{name}.{key}" if name else str(key), part) for key, part in list(value.items())[::-1]]
        else:
            told += 1
            if told > NAMES:
                raise ValueError(f"more than {NAMES:,} values")
            yield name, value


def _tensor(value: Any) -> Rows | str | None:
    """A tensor, or why it cannot be used, or None for anything else."""
    while isinstance(value, Call) and isinstance(value.function, Name):
        name, arguments = value.function.name, value.arguments
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            value = arguments[0]
        elif name == "_rebuild_from_type_v2":
            value = Call(arguments[0], arguments[2])
        elif name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            kind = arguments[6].name if name == "_rebuild_tensor_v3" and isinstance(arguments[6], Name) else ""
            negated = len(arguments) > 6 and isinstance(arguments[6], dict) and bool(arguments[6])
            return (
                "saved as a negated or conjugated view: give .resolve_neg().resolve_conj()"
                if negated
                else _rows(kind, *arguments[:4])
            )
        elif name in UNUSABLE:
            return UNUSABLE[name]
        elif name.startswith("_rebuild"):
            return f"rebuilt by {name[:100]}, which is no plain tensor"
        else:
            return None
    return None


def _rows(kind: str, storage: Any, offset: Any, shape: Any, strides: Any) -> Rows:
    if not isinstance(storage, Elsewhere) or storage.key[0] != "storage":
        raise ValueError("a tensor without numbers")
    _, type_, key, *_ = storage.key
    shape, strides = (tuple(x.arguments[0]) if isinstance(x, Call) else tuple(x) for x in (shape, strides))
    if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError("a tensor of impossible shape")
    kind = kind or STORAGES.get(type_.name.removesuffix("Storage"), type_.name)
    return Rows(str(key), kind, offset, shape, strides)


def _why_not(found: Rows, places: dict[str, Place]) -> str:
    """Does a tensor lie within its storage, each number in a place of its own?"""
    place, size, itemsize = places.get(found.storage), math.prod(found.shape), ITEMSIZE.get(found.kind, 1)
    if place is None:
        return f"its numbers ({found.storage[:100]!r}) are not in the file"
    last = found.offset + sum((n - 1) * stride for n, stride in zip(found.shape, found.strides, strict=True))
    if size and (last + 1) * itemsize > place.size:
        return "it is larger than its numbers in the file"
    if size * itemsize > place.size:
        return "it repeats its numbers (expand): give .contiguous() before saving"
    return ""
