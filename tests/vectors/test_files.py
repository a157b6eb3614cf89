"""Readers distrust: every damage has its name, none crashes, allocates or passes in silence."""

import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from siglip_ref.errors import UsageError
from siglip_ref.vectors.files import (
    CAP,
    VectorError,
    read_json,
    read_npz,
    read_safetensors,
    seal,
    write_json,
    write_safetensors,
)
from siglip_ref.vectors.power import read_measured
from siglip_ref.vectors.store import FOLDER, read

TENSORS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b/c": np.float32([1.5, -2.0]),
    "n": np.arange(3),
    "yes": np.array([True, False]),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 4)),
}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in a)


def file_of(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def header_file(folder: Path, header: str, body: bytes = b"") -> Path:
    head = header.encode()
    return file_of(folder, "x.safetensors", len(head).to_bytes(8, "little") + head + body)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, "x.safetensors", write_safetensors(TENSORS, {"vector": "an id"}))
    tensors, metadata = read_safetensors(path)
    assert same(tensors, TENSORS)
    assert metadata == {"vector": "an id"}
    assert same(safetensors.numpy.load_file(path), TENSORS)


def test_the_librarys_files_are_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file(TENSORS, tmp_path / "x.safetensors", {"vector": "v"})
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert same({n: tensors[n] for n in TENSORS}, TENSORS)
    assert metadata["vector"] == "v"


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    body = np.float32([1.0, -2.5]).view(np.uint32) >> 16
    path = header_file(
        tmp_path, '{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', body.astype("<u2").tobytes()
    )
    tensors, metadata = read_safetensors(path)
    np.testing.assert_array_equal(tensors["x"], np.float32([1.0, -2.5]))
    assert metadata == {"dtype": "bfloat16"}


def test_npz_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{name.replace("/", "."): value for name, value in TENSORS.items()})
    assert same(read_npz(tmp_path / "x.npz"), {name.replace("/", "."): value for name, value in TENSORS.items()})


HEADERS = {
    "shape larger than data": '{"x":{"dtype":"F64","shape":[9],"data_offsets":[0,8]}}',
    "absurd shape": '{"x":{"dtype":"F64","shape":[1000000000,1000000000],"data_offsets":[0,8]}}',
    "negative shape": '{"x":{"dtype":"F64","shape":[-1],"data_offsets":[0,8]}}',
    "fractional shape": '{"x":{"dtype":"F64","shape":[1.0],"data_offsets":[0,8]}}',
    "shape of truth": '{"x":{"dtype":"F64","shape":[true],"data_offsets":[0,8]}}',
    "unknown dtype": '{"x":{"dtype":"F128","shape":[1],"data_offsets":[0,8]}}',
    "a hole": '{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    "an overlap": '{"x":{"dtype":"F64","shape":[],"data_offsets":[0,8]},'
    '"y":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}',
    "duplicate": '{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
    '"x":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}',
    "beyond the end": '{"x":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}',
    "backwards": '{"x":{"dtype":"F64","shape":[1],"data_offsets":[8,0]}}',
    "no offsets": '{"x":{"dtype":"F64","shape":[1]}}',
    "extra fields": '{"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8],"run":"rm"}}',
    "a list": "[1,2]",
    "an entry that is none": '{"x":5}',
    "bytes of nobody": "{}",
    "metadata that is no text": '{"__metadata__":{"a":1},"x":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
    "deep nesting": "[" * 100_000,
    "not JSON": "{x",
    "not finite": '{"x":{"dtype":"F64","shape":[NaN],"data_offsets":[0,8]}}',
}


@pytest.mark.parametrize("defect", HEADERS)
def test_a_broken_header_is_named(tmp_path: Path, defect: str) -> None:
    with pytest.raises(VectorError, match=r"x\.safetensors"):
        read_safetensors(header_file(tmp_path, HEADERS[defect], b"\0" * 8))


def bomb(folder: Path) -> Path:
    """A hundred kilobytes that claim, truthfully, to unpack to 128 megabytes."""
    path = folder / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**24,)})
        for _ in range(128):
            file.write(bytes(2**20))
    return path


def lying_npz(folder: Path, header: dict[str, object], body: bytes = b"\0" * 8) -> Path:
    page = io.BytesIO()
    np.lib.format.write_array_header_1_0(page, header)
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("x.npy", page.getvalue() + body)
    return folder / "x.npz"


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = bomb(tmp_path)
    tracemalloc.start()
    with pytest.raises(VectorError, match="more than"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(10**9, 10**9), (2**40,), (7,), (-1,)])
def test_an_npz_that_claims_too_much_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(VectorError, match=r"x\.npz"):
        read_npz(lying_npz(tmp_path, {"descr": "<f8", "fortran_order": False, "shape": shape}))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(VectorError, match=r"x\.npz"):
        read_npz(tmp_path / "x.npz")


def test_a_long_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.truncate(CAP + 1)
    with pytest.raises(VectorError, match="longer than"):
        read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(VectorError, match="No such file"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":2}', '{"a":NaN}', '{"a":Infinity}', '{"a":1e999}', "[]", "\xff", "{", "[" * 10**5]
)
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(VectorError, match=r"x\.json"):
        read_json(file_of(tmp_path, "x.json", text.encode("latin-1")))


def damage(content: bytes, rng: random.Random) -> bytes:
    """Cut, flip, overwrite, insert, repeat."""
    at, kind = rng.randrange(len(content)), rng.randrange(5)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    if kind == 2:
        return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at + 8 :]
    if kind == 3:
        return content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
    return content[:at] + content[rng.randrange(len(content)) :]


def fuzz(path: Path, read_it: Callable[[], object], times: int, harmless: Callable[[bytes], bool]) -> None:
    """Damaged in many ways, the file is refused by name each time, or it says exactly what it said."""
    original, rng, refused = path.read_bytes(), random.Random(path.name), 0
    for _ in range(times):
        broken = damage(original, rng)
        path.write_bytes(broken)
        try:
            read_it()
        except VectorError as error:
            refused += 1
            assert error.path.suffix in (".json", ".safetensors", ".npz")
            assert error.defect
        else:
            assert harmless(broken), "damage that was not seen"
    path.write_bytes(original)
    assert refused > times // 2


def test_fuzz_golden_json(small: Path) -> None:
    path = small / "golden.json"
    before = json.loads(path.read_bytes())
    fuzz(path, lambda: read(small), 1500, lambda broken: json.loads(broken) == before)


def test_fuzz_golden_tensors(small: Path, small_files: dict[str, bytes]) -> None:
    whole = small_files["golden.safetensors"]
    fuzz(small / "golden.safetensors", lambda: read(small), 300, lambda broken: broken == whole)


def test_fuzz_a_dump(tmp_path: Path) -> None:
    """A dump has no hash, so numbers may change unseen; what is read has then still sound shapes and types."""
    path = file_of(tmp_path, "x.safetensors", write_safetensors(TENSORS))
    size = path.stat().st_size
    fuzz(path, lambda: read_safetensors(path), 2000, lambda broken: len(broken) == size)


def test_fuzz_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{name.replace("/", "."): value for name, value in TENSORS.items()})
    fuzz(path, lambda: read_npz(path), 1500, lambda broken: True)


def edited(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """golden.json with a change, and sealed again: only the meaning is wrong."""
    path = folder / "golden.json"
    content = read_json(path)
    change(content)
    path.write_bytes(write_json(content))


def _record(content: dict[str, object]) -> dict[str, object]:
    return content["vectors"][0]  # type: ignore[index]


DEFECTS: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "another schema": (lambda c: c.update(schema="siglip-ref golden vectors 2"), "schema"),
    "an unknown field": (lambda c: _record(c).update(weight=3), "weight"),
    "a field less": (lambda c: _record(c).pop("proof"), "proof"),
    "a wrong number of vectors": (lambda c: c.update(numberOfVectors=3), "vectors"),
    "another shape": (lambda c: _record(c)["inputs"].update(bias=[1]), "shapes"),  # type: ignore[attr-defined]
    "another hash": (lambda c: _record(c).update(sha256="0" * 64), "hash"),
    "a vector twice": (lambda c: c["vectors"].append(_record(c)), "twice"),  # type: ignore[attr-defined]
    "a flag without a note": (lambda c: _record(c).update(flags=["new"]), "new"),
    "a zero that is not expected": (
        lambda c: _record(c).update(zero={"x": {"reason": "", "scale": 1.0}}),
        "zero",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_sealed_file_is_still_checked(small: Path, defect: str) -> None:
    change, word = DEFECTS[defect]
    edited(small, change)
    with pytest.raises(VectorError, match=word):
        read(small)


def test_the_small_edition_is_read_otherwise(small: Path) -> None:
    edited(small, lambda content: None)
    assert len(read(small).vectors) == 2


def test_measured_json_is_checked(tmp_path: Path) -> None:
    original = (FOLDER / "measured.json").read_bytes()
    path = file_of(tmp_path, "measured.json", original)
    assert read_measured(tmp_path).power
    rng, before = random.Random(5), json.loads(original)
    for _ in range(20):
        path.write_bytes(broken := damage(original, rng))
        try:
            read_measured(tmp_path)
        except VectorError:
            continue
        assert json.loads(broken) == before
    content = json.loads(original)
    path.write_bytes(write_json(content | {"formats": ["float32"] * 4}))
    with pytest.raises(VectorError, match="formats"):
        read_measured(tmp_path)


def test_errors_are_usage_errors() -> None:
    error = VectorError(Path("folder/x.json"), "a defect")
    assert isinstance(error, UsageError)
    assert "x.json: a defect" in str(error)
    assert seal({"b": 1, "a": 2, "sha256": "?"}) == seal({"a": 2, "b": 1})
