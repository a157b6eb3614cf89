"""Files of weights: names, shapes and kinds at once, arrays one by one; nothing is ever executed.

Whatever a file does to its reader, what leaves this module is a UsageError that names the file: see `last_resort`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.checkpoint.tables.names import Shape, Tensor
from siglip_ref.errors import UsageError

# No load allocates more than this, whatever a file claims: twice the largest released model in float32.
CAP = 16 * 2**30
SETTINGS_CAP = 16 * 10**6  # of a JSON file
BFLOAT16: np.dtype[Any] = np.dtype("V2")  # a name for what NumPy has no type for
# What weights may be stored as. Everything else is quantised, or no weight.
FLOATS: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": BFLOAT16,
}
AGAIN = "download it again"
TORCH = (".pt", ".pth", ".bin", ".ckpt")  # of torch.save; the last as Lightning calls them
CONVERT = (
    'convert it where torch is installed: python -c "import torch, safetensors.torch as s; '
    "w = torch.load('x.pt', map_location='cpu', weights_only=True); "
    "s.save_file(w.get('state_dict', w), 'x.safetensors')\""
)


@dataclass(frozen=True)
class Stored:
    """A tensor as a file has it: kind is NumPy's name of its type ("bfloat16" too); mapped: reading it copies nothing.

    why_not : why it cannot be read, if so
    """

    shape: Shape
    kind: str
    mapped: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class Store:
    """The tensors of a file, or of several: by name, and a function that gives one of them.

    read : gives float16, float32 or float64; bfloat16 becomes float32, exactly
    """

    tensors: dict[str, Stored]
    read: Callable[[str], Tensor]

    @property
    def shapes(self) -> dict[str, Shape]:
        """By name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def renamed(self, names: Mapping[str, str]) -> "Store":
        """The same tensors, and no others, under other names: new name -> name in this store."""
        return Store({new: self.tensors[old] for new, old in names.items()}, lambda name: self.read(names[name]))


@contextmanager
def last_resort(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever a reader raises into the error that names the file: a broken file has no end of ways."""
    try:
        yield
    except UsageError:
        raise
    except MemoryError as error:
        repair = "free memory, or take a smaller model"
        raise unreadable(path, expected, "no memory for it", "less memory than the file needs", repair) from error
    except Exception as error:
        got = f"{type(error).__name__}: {first_line(error)}"
        raise unreadable(path, expected, got, what_it_is(path) or "a broken file", AGAIN) from error


def first_line(error: BaseException) -> str:
    """Of an error's message; its kind, if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300] or type(error).__name__


def what_it_is(path: Path) -> str:
    """What a file that is not what its name says turns out to be, by its first bytes; "" if they tell nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError):
        return ""
    kinds = {
        b"version https://git-lfs": "a git-lfs pointer: the file itself was never downloaded (git lfs pull)",
        b"<!DOCTYPE": "a page of HTML: a download that needed a login, or a wrong address",
        b"<html": "a page of HTML: a download that needed a login, or a wrong address",
        b"PK\x03\x04": ""
        if path.suffix in (".npz", *TORCH)
        else "a zip archive, as .npz and torch's .pt are, under another ending",
        b"\x80\x02": "a pickle",
        b"\x00" * 64: "a file of zeros: its place was taken, and the download never came",
    }
    return next((kind for start, kind in kinds.items() if head.startswith(start)), "")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object."""
    with last_resort(path, "a JSON object"):
        if not path.is_file():
            raise unreadable(path, "a JSON object", "no file", "a folder or a device of this name", "check the path")
        if path.stat().st_size > SETTINGS_CAP:
            got, cause = f"{path.stat().st_size:,} bytes", "not a file of settings"
            raise unreadable(path, f"at most {SETTINGS_CAP:,} bytes", got, cause, "check the path")
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            cause = what_it_is(path) or "a broken download"
            raise unreadable(path, "JSON", first_line(error), cause, AGAIN) from error
        if not isinstance(content, dict):
            raise unreadable(path, "a JSON object", type(content).__name__, "another file", "check the path")
    return content


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these; ValueError where a name occurs twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def unreadable(path: Path, expected: str, got: str, cause: str, repair: str) -> UsageError:
    """The error for a file that cannot be used."""
    return UsageError(f"{expected} in {path}", got, cause, repair)


def widened(array: Tensor) -> Tensor:
    """bfloat16, which NumPy knows as two bytes of nothing, is the upper half of a float32."""
    if array.dtype.kind != "V":
        return array
    wide = array.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
