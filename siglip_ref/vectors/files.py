"""Files of tensors and JSON, read with distrust: nothing is executed, nothing larger than a cap is allocated.

safetensors is eight bytes of header length, a JSON header (name: dtype, shape, offsets) and the numbers themselves.
This reader knows the kinds that vectors use, allows what `read_header` of checkpoints does, and copies nothing.
"""

import hashlib
import io
import json
import math
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.checkpoint.formats import npz
from siglip_ref.checkpoint.formats.files import unique
from siglip_ref.checkpoint.formats.safetensors_files import read_header
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

CAP = 64 * 2**20  # bytes of a file, and of what it claims to hold
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "|b1"}
NAMES = {np.dtype(code): kind for kind, code in KINDS.items() if kind != "BF16"}


class VectorError(UsageError):
    """An unreadable or changed file; names the file and its defect."""

    def __init__(self, path: Path, defect: str, expected: str = "a file as it was written") -> None:
        self.path, self.defect = path, defect
        super().__init__(
            expected, f"{path.name}: {defect}", "a broken download, or another kind of file", "write it anew"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return VectorError, (self.path, self.defect, self.expected)


def read_bytes(path: Path) -> bytes:
    """A whole file, if it is no longer than the cap."""
    try:
        with path.open("rb") as file:
            return file.read(_size(path))
    except OSError as error:
        raise VectorError(path, error.strerror or "cannot be read") from error


def _size(path: Path) -> int:
    """The length of a file that may be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise VectorError(path, error.strerror or "cannot be read") from error
    if not stat.S_ISREG(status.st_mode):
        raise VectorError(path, "no file")
    if status.st_size > CAP:
        raise VectorError(path, f"longer than {CAP:,} bytes")
    return status.st_size


def read_json(path: Path, content: bytes | None = None) -> dict[str, Any]:
    """A JSON object; duplicate names and numbers that are not finite are refused."""

    def finite(word: str) -> float:
        if not math.isfinite(float(word)):
            raise ValueError(f"{word} is not a finite number")
        return float(word)

    try:
        text = (read_bytes(path) if content is None else content).decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise VectorError(path, f"not JSON: {error}"[:200]) from error
    if not isinstance(parsed, dict):
        raise VectorError(path, "not a JSON object")
    return parsed


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a JSON object but its own "sha256", whatever the spacing."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_json(content: Mapping[str, Any]) -> bytes:
    """Sealed, with one line per entry of the second level: readable, and small."""
    lines = []
    for name, value in (dict(content) | {"sha256": seal(content)}).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = ",\n".join(json.dumps(item, ensure_ascii=False) for item in value)
            lines.append(f"{json.dumps(name)}: [\n{body}\n]")
        elif isinstance(value, dict) and value:
            body = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
            lines.append(f"{json.dumps(name)}: {{\n{body}\n}}")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def write_safetensors(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file, the same on every machine: names in the given order, no padding between."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, end = [], 0
    for name, tensor in tensors.items():
        plain = np.asarray(tensor)  # a 0-d array stays one
        kind = NAMES[plain.dtype]
        data = plain.astype(KINDS[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(plain.shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
        parts.append(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])


def read_safetensors(path: Path, content: bytes | None = None) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors by name, as views of the file's bytes, and the metadata. bfloat16 comes as float32,
    and then the metadata "dtype" says so, if it says nothing else."""
    content = read_bytes(path) if content is None else content
    try:
        start, header, metadata = read_header(io.BytesIO(content), len(content))
        tensors = {name: _tensor(content, start + entry["data_offsets"][0], entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise VectorError(path, f"a broken safetensors header: {error!r}"[:200]) from error
    narrow = {"dtype": "bfloat16"} if any(entry["dtype"] == "BF16" for entry in header.values()) else {}
    return tensors, narrow | metadata


def _tensor(content: bytes, begin: int, entry: Mapping[str, Any]) -> Array:
    kind, shape = entry["dtype"], entry["shape"]
    tensor = np.frombuffer(content, KINDS[kind], math.prod(shape), begin).reshape(shape)
    if kind == "BOOL" and (tensor.view(np.uint8) > 1).any():
        raise ValueError("a truth value that is neither 0 nor 1")
    return (tensor.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else tensor


def read_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a .safetensors or .npz file; an .npz has no metadata.

    Raises
    ------
    UsageError (VectorError for an unreadable file)
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix == ".npz":
        return read_npz(path), {}
    cause, repair = "the ending chooses the format", "numpy.savez, or safetensors' save_file"
    raise UsageError("a .safetensors or .npz file", path.name, cause, repair)


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays of an .npz without pickles; what headers claim is added up before anything is unpacked."""
    _size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = npz.list_members(archive)
            if sum(member.file_size for member in members) > CAP:
                raise VectorError(path, f"claims to unpack to more than {CAP:,} bytes")
            return {member.filename.removesuffix(".npy"): _npy(path, archive, member) for member in members}
    except VectorError:
        raise
    except Exception as error:  # zipfile, its methods of packing and NumPy's headers raise whatever they like
        raise VectorError(path, f"a broken npz: {type(error).__name__}: {error}"[:200]) from error


def _npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    header = npz.read_header(archive, member)
    if header.kind.kind not in "fiub" or header.kind.itemsize > 8:
        raise VectorError(path, f"{member.filename[:100]} claims {header.kind} {header.shape}"[:200])
    return npz.unpacked(archive, member, header)
