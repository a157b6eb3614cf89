""".npz: a zip of arrays. Headers first: what they claim is held against the file before anything is unpacked."""

import io
import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.checkpoint.formats import files
from siglip_ref.checkpoint.formats.files import BFLOAT16, Store, Stored, unreadable, widened
from siglip_ref.checkpoint.tables.names import Shape, Tensor

HEADER_CAP = 10_000  # bytes of one array's header: NumPy's own limit
PIECE = 1 << 20  # unpacked at a time
# What numpy.savez writes. The others unpack without bound, whatever the archive's list says.
PACKED = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class Header(NamedTuple):
    """What an array says of itself; start: bytes before its numbers."""

    shape: Shape
    kind: np.dtype[Any]
    turned: bool
    start: int


def open_npz(path: Path) -> Store:
    """Its arrays, which must be numbers: a pickled one is refused."""
    archive = zipfile.ZipFile(path)
    try:
        listed = list_members(archive)
    except ValueError as error:
        cause = "an archive that another program put together, or that was changed"
        raise unreadable(path, "an archive as numpy.savez writes it", str(error), cause, "save it anew") from error
    members = {entry.filename.removesuffix(".npy"): entry for entry in listed}
    headers = {name: _numbers(path, archive, entry) for name, entry in members.items()}
    claimed = sum(math.prod(header.shape) * header.kind.itemsize for header in headers.values())
    if claimed > files.CAP:
        raise unreadable(path, f"at most {files.CAP:,} bytes", f"{claimed:,}", "not a SigLIP model", "check the path")

    def read(name: str) -> Tensor:
        out = unpacked(archive, members[name], headers[name])
        return widened(out if out.dtype.kind == "V" else out.astype(out.dtype.newbyteorder("="), copy=False))

    return Store({name: Stored(header.shape, _name(header.kind)) for name, header in headers.items()}, read)


def list_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of an archive of arrays; ValueError if one stands twice, is encrypted, or packed as NumPy never does.

    "x" and "x.npy" are the same array.
    """
    members = archive.infolist()
    twice = [name for name, n in Counter(m.filename.removesuffix(".npy") for m in members).items() if n > 1]
    if twice:
        raise ValueError(f"{twice[0][:200]!r} stands twice in it")
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in PACKED:
            how = "encrypted" if member.flag_bits & 1 else f"packed by method {member.compress_type}"
            raise ValueError(f"{member.filename[:200]!r} is {how}, which numpy.savez never does")
    return members


def read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """The header of one array; no more than `HEADER_CAP` bytes are unpacked."""
    with archive.open(member) as file:
        begin = file.read(12)
        if begin[:6] != b"\x93NUMPY" or begin[6:8] not in (b"\x01\x00", b"\x02\x00"):
            raise ValueError(f"{member.filename[:200]!r} is no array of NumPy, version 1 or 2")
        long = begin[6] == 2
        length = int.from_bytes(begin[8 : 12 if long else 10], "little")
        if length > HEADER_CAP:
            raise ValueError(f"a header of {length:,} bytes in {member.filename[:200]!r}")
        start = (12 if long else 10) + length
        whole = io.BytesIO(begin + file.read(max(0, start - 12)))
    whole.seek(8)
    reader = np.lib.format.read_array_header_2_0 if long else np.lib.format.read_array_header_1_0
    shape, turned, kind = reader(whole)
    if kind.hasobject:
        return Header(shape, kind, turned, start)
    if len(shape) > 16 or min(shape, default=0) < 0 or start + math.prod(shape) * kind.itemsize != member.file_size:
        raise ValueError(f"{member.filename[:200]!r} claims {kind} {shape} in {member.file_size:,} bytes")
    return Header(shape, kind, turned, start)


def unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: Header) -> Tensor:
    """A member's array, filled a piece at a time; the archive's own checksum is compared at the end."""
    out = np.empty(math.prod(header.shape), header.kind)
    place = out.view(np.uint8)
    with archive.open(member) as file:
        file.read(header.start)
        for begin in range(0, len(place), PIECE):
            piece = file.read(min(PIECE, len(place) - begin))
            place[begin : begin + len(piece)] = np.frombuffer(piece, np.uint8)
            if len(piece) < min(PIECE, len(place) - begin):
                raise EOFError(f"{member.filename[:200]} ends early")
        if file.read(1):
            raise ValueError(f"{member.filename[:200]!r} is longer than it says")
    return out.reshape(header.shape, order="F" if header.turned else "C")


def _numbers(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    header = read_header(archive, member)
    if header.kind.hasobject:
        cause = "it holds Python objects, which only a pickle can restore, and pickles can run any code"
        repair = "save plain arrays with numpy.savez"
        raise unreadable(path, f"numbers in {member.filename[:200]}", "a pickle", cause, repair)
    return header


def _name(kind: np.dtype[Any]) -> str:
    """As NumPy calls it; bfloat16 by its name."""
    return "bfloat16" if kind == BFLOAT16 else kind.name if kind.names is None else "a record"
