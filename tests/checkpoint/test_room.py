"""No file allocates more than the cap, what it can hold, or what memory is free: added up before anything is read."""

import json
import math
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from saved import CFG, PARAMS, save, tensors, write

from siglip_ref.checkpoint.formats import files, memory
from siglip_ref.checkpoint.load import load_checkpoint
from siglip_ref.checkpoint.save import save_checkpoint
from siglip_ref.errors import UsageError

WIDE = 3_000_000  # numbers of a vocabulary of 250,000 rows
TOKEN = "text_model.embeddings.token_embedding.weight"


@pytest.fixture
def place(tmp_path):
    """A directory whose config.json asks for a large vocabulary."""
    found = save(tmp_path / "model")
    told = json.loads((found / "config.json").read_text())
    told["text_config"]["vocab_size"] = WIDE // 12
    (found / "config.json").write_text(json.dumps(told))
    return found


def sparse_safetensors(place):
    """A header, and holes in place of numbers."""
    content = tensors(place) | {TOKEN: np.zeros(1, np.float32)}
    header, end = {}, 0
    for name, value in content.items():
        shape = [WIDE // 12, 12] if name == TOKEN else list(value.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * math.prod(shape)]}
        end += 4 * math.prod(shape)
    text = json.dumps(header).encode()
    with (place / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return place


def packed_npz(place):
    cfg_params = PARAMS | {"text/token": np.zeros((WIDE // 12, 12), np.float32)}
    file = save_checkpoint(place / "m.npz", cfg_params, CFG, "big_vision")
    with np.load(file) as archive:
        content = {name: archive[name] for name in archive.files}
    np.savez_compressed(file, **content)
    return file


def expanded_pt(place):
    torch = pytest.importorskip("torch")
    content = {name: torch.from_numpy(np.array(value)) for name, value in tensors(place).items()}
    torch.save(
        content | {TOKEN: torch.zeros(1, dtype=torch.float16).expand(WIDE // 12, 12)}, place / "pytorch_model.bin"
    )
    (place / "model.safetensors").unlink()
    return place


def sharded(place):
    sparse_safetensors(place).joinpath("model.safetensors").rename(place / "a.safetensors")
    names = json.loads((place / "a.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    index = {"weight_map": dict.fromkeys(names, "a.safetensors")}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


MAKERS = {maker.__name__: maker for maker in (sparse_safetensors, packed_npz, expanded_pt, sharded)}


def peak(load):
    """Bytes allocated at most, however it ends; and the error."""
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as caught:
            load()
        return tracemalloc.get_traced_memory()[1], caught.value
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_cap_holds_in_the_type_asked_for(place, monkeypatch, maker, dtype):
    """12 MB as float32 under a cap of 2 MB; as stored in float16, npz and pt would fit a cap of 10 MB."""
    file = MAKERS[maker](place)
    monkeypatch.setattr(files, "CAP", 2 * 10**6)
    allocated, error = peak(lambda: load_checkpoint(file, dtype))
    assert allocated < 2 * 10**6
    assert "at most 2,000,000 bytes" in str(error) or "expand" in str(error)


def test_float16_is_counted_as_what_it_becomes(tmp_path, monkeypatch):
    file = save_checkpoint(tmp_path / "m", {n: v.astype(np.float16) for n, v in PARAMS.items()}, CFG, "big_vision")
    size = sum(value.nbytes for value in PARAMS.values())
    monkeypatch.setattr(files, "CAP", size * 3 // 4)
    with pytest.raises(UsageError, match="at most"):
        load_checkpoint(file)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_small_file_that_claims_a_large_model(place, monkeypatch, maker):
    """The cap allows it, the bytes on the disk do not."""
    file = MAKERS[maker](place)
    monkeypatch.setattr(memory, "SMALL", 2**20)
    allocated, error = peak(lambda: load_checkpoint(file))
    assert allocated < 2 * 10**6
    assert "with holes" in error.cause or "expand" in str(error)


def test_files_without_holes_are_whole(tmp_path):
    (tmp_path / "whole").write_bytes(np.random.default_rng(1).bytes(300_000))
    assert memory.held_bytes(tmp_path / "whole") == 300_000
    with (tmp_path / "holes").open("wb") as file:
        file.write(b"x" * 10)
        file.truncate(10**9)
    if sys.platform == "linux":
        assert memory.held_bytes(tmp_path / "holes") < 10**6


def test_more_than_the_free_memory_is_not_begun(tmp_path, monkeypatch):
    place = save(tmp_path / "model")
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000)
    with pytest.raises(UsageError, match="GB of free memory"):
        load_checkpoint(place, np.float64)
    assert load_checkpoint(place).params.keys() == PARAMS.keys()  # mapped, so nothing is allocated
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert load_checkpoint(place, np.float64)


def test_free_memory_is_told():
    from siglip_ref.process.memory import free_memory

    free = free_memory()
    assert (free is None) or 2**20 < free < 2**50


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path):
    """lzma and bzip2 unpack without bound whatever the list says; deflate stops where it should."""
    file = save_checkpoint(tmp_path / "m", PARAMS, CFG, "big_vision")
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(file) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        allocated, error = peak(lambda: load_checkpoint(tmp_path / "x.npz"))
        assert "numpy.savez never does" in str(error) and allocated < 10**7


def test_a_header_of_an_array_as_long_as_memory(tmp_path):
    """Version 2 of .npy allows four gigabytes of header; deflated they are four megabytes."""
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", 64 * 2**20) + b" " * (64 * 2**20)
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("img/embedding/kernel.npy", head)
    del head
    allocated, error = peak(lambda: load_checkpoint(tmp_path / "m.npz"))
    assert "a header of 67,108,864 bytes" in str(error) and allocated < 10**7


def test_a_pickle_that_asks_for_memory(tmp_path):
    """A note's number of two thousand million costs Python's own unpickler 34 GB."""
    code = b"\x80\x02}r\xff\xff\xff\x7fX\xff\xff\xff\x7fabc."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", code)
    allocated, _ = peak(lambda: load_checkpoint(tmp_path / "m.pt"))
    assert allocated < 10**6


def test_the_same_small_file_is_loaded_under_all_limits(place):
    """The limits refuse no honest model."""
    write(place, tensors(save(place)))
    assert load_checkpoint(place, np.float64).params.keys() == PARAMS.keys()
