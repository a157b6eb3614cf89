"""Files of weights: shapes at once, arrays one by one; mapped where the format allows it; nothing is ever executed."""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.checkpoint.names import Shape, Tensor
from siglip_ref.errors import UsageError

# What zipfile and NumPy raise on broken archives.
BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, OSError)
# No reader allocates more than this, whatever a file claims: twice the largest released model in float32.
CAP = 16 * 2**30
HEADER_CAP = 100 * 10**6  # of a safetensors header; the library's own
SETTINGS_CAP = 64 * 10**6  # of a JSON file
BFLOAT16: np.dtype[Any] = np.dtype("V2")  # a name for what NumPy has no type for
SAFETENSORS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
}


@dataclass(frozen=True)
class Store:
    """The tensors of a file, or of several: name -> shape, and a function that gives one of them.

    read : gives float16, float32 or float64; bfloat16 becomes float32, exactly
    """

    shapes: dict[str, Shape]
    read: Callable[[str], Tensor]


def open_store(path: Path) -> Store:
    """The tensors of a .safetensors, .npz, .pt, .bin or .pth file, or of a safetensors index of shards."""
    if not path.is_file():
        raise unreadable(path, "a file of weights", "nothing of this name", "a spelling mistake", "check the path")
    if path.stat().st_size == 0:
        raise unreadable(path, "weights", "an empty file", "a download that never began", "download it again")
    if path.name.endswith(".safetensors.index.json"):
        return _shards(path)
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pt": _torch, ".pth": _torch, ".bin": _torch}
    if path.suffix not in readers:
        cause = (
            "pickles can run any code, so they are never opened"
            if path.suffix in (".pkl", ".pickle")
            else "another format"
        )
        raise unreadable(path, "a file of " + ", ".join(readers), path.suffix or "no ending", cause, CONVERT)
    return readers[path.suffix](path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    if path.stat().st_size > SETTINGS_CAP:
        raise unreadable(path, "settings", f"{path.stat().st_size:,} bytes", "not a file of settings", "check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "JSON", str(error), "a broken download", "download it again") from error
    if not isinstance(content, dict):
        raise unreadable(path, "a JSON object", type(content).__name__, "another file", "check the path")
    return content


def unreadable(path: Path, expected: str, got: str, cause: str, repair: str) -> UsageError:
    """The error for a file that cannot be used."""
    return UsageError(f"{expected} in {path}", got, cause, repair)


CONVERT = (
    'convert it where torch is installed: python -c "import torch, safetensors.torch as s; '
    "w = torch.load('x.pt', map_location='cpu', weights_only=True); "
    "s.save_file(w.get('state_dict', w), 'x.safetensors')\""
)


def _safetensors(path: Path) -> Store:
    """The library judges the file; then it is mapped, so that weights are pages of the file and not a copy of it."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            file.keys()
    except (safetensors.SafetensorError, OSError) as error:
        cause = "a download that broke off, a git-lfs pointer, or not safetensors at all"
        raise unreadable(path, "safetensors", str(error), cause, "download it again") from error
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(min(length, HEADER_CAP)))
    header.pop("__metadata__", None)
    odd = sorted({entry["dtype"] for entry in header.values()} - SAFETENSORS.keys() - {"I64", "I32", "BOOL"})
    if odd:
        supported = ", ".join(SAFETENSORS)
        raise unreadable(path, f"tensors of {supported}", ", ".join(odd), "quantised weights", "use the float weights")
    data = np.memmap(path, np.uint8, "r", offset=8 + length)

    def read(name: str) -> Tensor:
        entry = header[name]
        begin, end = entry["data_offsets"]
        kind: np.dtype[Any] = SAFETENSORS[entry["dtype"]]
        flat: Tensor = data[begin:end].view(np.ndarray)
        if begin % kind.itemsize or (8 + length) % kind.itemsize:
            flat = flat.copy()  # unaligned: BLAS could not take it
        return _floats(flat.view(kind)).reshape(entry["shape"])

    return Store({name: tuple(entry["shape"]) for name, entry in header.items()}, read)


def _shards(path: Path) -> Store:
    """Files named by an index; each must lie beside it."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise unreadable(path, "weight_map, tensor -> file", "none", "another kind of index", "check the path")
    away = sorted({file for file in places.values() if Path(file).name != file})
    if away:
        raise unreadable(path, "files beside the index", away[0], "an index that points elsewhere", "do not trust it")
    stores = {file: _safetensors_beside(path, file) for file in sorted(set(places.values()))}
    lost = sorted(name for name, file in places.items() if name not in stores[file].shapes)
    if lost:
        raise unreadable(path, lost[0], "a shard without it", "shards of different versions", "download all again")
    return Store(
        {name: stores[file].shapes[name] for name, file in places.items()},
        lambda name: stores[places[name]].read(name),
    )


def _safetensors_beside(index: Path, file: str) -> Store:
    path = index.with_name(file)
    if not path.is_file():
        raise unreadable(index, f"the shard {file} beside it", "no such file", "an incomplete download", "download it")
    return _safetensors(path)


def _npz(path: Path) -> Store:
    """Headers first: what they claim is held against the file and the cap before anything is allocated."""
    try:
        archive = zipfile.ZipFile(path)
        members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        headers = {name: _npy_header(path, archive, entry) for name, entry in members.items()}
    except BROKEN as error:
        raise _broken_npz(path, error) from error
    claimed = sum(math.prod(shape) * kind.itemsize for shape, kind, _ in headers.values())
    if claimed > CAP:
        raise unreadable(path, f"at most {CAP:,} bytes", f"{claimed:,}", "not a SigLIP model", "check the path")

    def read(name: str) -> Tensor:
        shape, kind, turned = headers[name]
        out = np.empty(math.prod(shape), kind)
        try:
            with archive.open(members[name]) as file:
                _npy_start(file)
                if file.readinto(out.view(np.uint8).data) != out.nbytes:  # type: ignore[attr-defined]
                    raise EOFError(f"{name} ends early")
        except BROKEN as error:
            raise _broken_npz(path, error) from error
        return _floats(out).reshape(shape, order="F" if turned else "C")

    return Store({name: shape for name, (shape, _, _) in headers.items()}, read)


def _broken_npz(path: Path, error: Exception) -> UsageError:
    return unreadable(path, "an .npz", str(error), "a download that broke off", "download it again")


def _npy_start(file: Any) -> tuple[Shape, bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, turned, kind = reader(file)
    return shape, turned, kind


def _npy_header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[Shape, np.dtype[Any], bool]:
    with archive.open(entry) as file:
        shape, turned, kind = _npy_start(file)
    if kind.hasobject:
        cause = "it holds Python objects, which only a pickle can restore, and pickles can run any code"
        raise unreadable(path, f"numbers in {entry.filename}", "a pickle", cause, "save plain arrays with numpy.savez")
    if kind.kind not in "fVi" or kind.itemsize > 8 or math.prod(shape) * kind.itemsize > entry.file_size:
        got = f"shape {shape} of {kind} in {entry.file_size:,} bytes"
        raise unreadable(path, f"an array in {entry.filename}", got, "a broken file", "download it again")
    return shape, kind, turned


def _torch(path: Path) -> Store:
    """Torch's own format through torch, which then builds tensors and nothing else; without torch: how to convert."""
    try:
        import torch
    except ImportError as error:
        cause = "this is a pickle, which only torch can read without running code"
        raise unreadable(path, "safetensors, or torch installed", "no torch", cause, CONVERT) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a hostile pickle makes torch raise
        cause = "a pickle that holds more than tensors, which is never executed, or a broken file"
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise unreadable(path, "a state dict of tensors", got, cause, CONVERT) from error
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, Mapping) else {}
    named = {str(name).removeprefix("module."): value for name, value in tensors.items() if torch.is_tensor(value)}

    def read(name: str) -> Tensor:
        tensor = named[name].detach()
        if tensor.dtype == torch.bfloat16:
            return _floats(tensor.view(torch.int16).numpy().view(BFLOAT16))
        return _floats(tensor.numpy())

    return Store({name: tuple(value.shape) for name, value in named.items()}, read)


def _floats(array: Tensor) -> Tensor:
    """bfloat16, which NumPy knows as two bytes of nothing, is the upper half of a float32."""
    if array.dtype.kind != "V":
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
