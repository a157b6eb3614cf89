"""Any file of weights as a store of tensors, by the reader of its format."""

from dataclasses import replace
from pathlib import Path

from siglip_ref.checkpoint.formats.files import AGAIN, CONVERT, TORCH, Store, last_resort, unreadable
from siglip_ref.checkpoint.formats.npz import open_npz
from siglip_ref.checkpoint.formats.safetensors_files import open_safetensors, open_shards
from siglip_ref.checkpoint.formats.torch_files import open_torch
from siglip_ref.checkpoint.tables.names import Tensor


def open_store(path: Path) -> Store:
    """The tensors of a .safetensors, .npz, .pt, .pth, .bin or .ckpt file, or of a safetensors index of shards."""
    with last_resort(path, "weights"):
        if not path.is_file():
            got, cause = "nothing of this name", "a spelling mistake"
            if path.exists():
                got, cause = "no file, but a folder, a pipe or a device", "something else of this name"
            raise unreadable(path, "a file of weights", got, cause, "check the path")
        if path.stat().st_size == 0:
            raise unreadable(path, "weights", "an empty file", "a download that never began", AGAIN)
        torch = dict.fromkeys(TORCH, open_torch)
        readers = {".safetensors": open_safetensors, ".npz": open_npz, **torch}
        if path.name.endswith(".safetensors.index.json"):
            return _guarded(open_shards(path), path)
        if path.suffix not in readers:
            pickled = path.suffix in (".pkl", ".pickle")
            cause = "pickles can run any code, so they are never opened" if pickled else "another format"
            raise unreadable(path, "a file of " + ", ".join(readers), path.suffix or "no ending", cause, CONVERT)
        return _guarded(readers[path.suffix](path), path)


def _guarded(store: Store, path: Path) -> Store:
    def read(name: str) -> Tensor:
        with last_resort(path, f"the tensor {name}"):
            return store.read(name)

    return replace(store, read=read)
