"""Golden vectors in memory, read from their packaged files and checked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.vectors.files import VectorError, read_bytes, read_json, read_safetensors, seal

FOLDER = Path(__file__).parent
SCHEMA = "siglip-ref golden vectors 1"


@dataclass(frozen=True, eq=False)
class Vector:
    """One golden vector. zero: for tensors that are zero by structure, the size of the terms that cancel there."""

    id: str
    group: str
    task: str
    comment: str
    flags: tuple[str, ...]
    conventions: Mapping[str, Any]
    settings: Mapping[str, Any]
    exact_in: tuple[str, ...]
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    zero: Mapping[str, float]
    bits: int

    @property
    def all_settings(self) -> dict[str, Any]:
        """What a task takes."""
        return {**self.settings, **({"conventions": self.conventions} if self.conventions else {})}

    def unit(self, name: str) -> float:
        """What errors of this tensor are measured in: its largest number, or the size of what cancels."""
        return self.zero.get(name) or float(np.abs(self.expected[name]).max(initial=0.0)) or 1.0


@dataclass(frozen=True)
class Golden:
    """All vectors by id, and the notes of their flags."""

    edition: str
    vectors: Mapping[str, Vector]
    flags: Mapping[str, str]

    def find(self, vector: str) -> Vector:
        """The vector of this id."""
        if vector not in self.vectors:
            near = [known for known in self.vectors if known.split("/")[0] == vector.split("/")[0]] or self.vectors
            raise UsageError(
                expected="the id of a golden vector: " + ", ".join(list(near)[:12]),
                got=repr(vector),
                cause="no vector has this id",
                repair="siglip-ref vectors list",
            )
        return self.vectors[vector]


@lru_cache(maxsize=1)
def packaged() -> Golden:
    """The vectors that came with this version."""
    return read(FOLDER)


def read(folder: Path) -> Golden:
    """golden.json and golden.safetensors of a folder; schema and every hash are checked.

    Raises
    ------
    VectorError, which names the file and its defect
    """
    path = folder / "golden.json"
    content = read_json(path)
    validate(path, content, "golden")
    tensor_path = folder / "golden.safetensors"
    raw = read_bytes(tensor_path)
    if hashlib.sha256(raw).hexdigest() != content["tensors"]["sha256"]:
        raise VectorError(tensor_path, "its hash is not the one in golden.json")
    tensors, _ = read_safetensors(tensor_path, raw)
    vectors: dict[str, Vector] = {}
    for record in content["vectors"]:
        vector = _vector(path, record, subtree(tensors, record["id"]))
        if vector.id in vectors:
            raise VectorError(path, f"{vector.id} occurs twice")
        vectors[vector.id] = vector
    if len(vectors) != content["numberOfVectors"] or set(tensors) != set(_all_names(vectors)):
        raise VectorError(path, "its vectors are not those of golden.safetensors")
    unknown = {flag for vector in vectors.values() for flag in vector.flags} - content["flags"].keys()
    if unknown:
        raise VectorError(path, f"flags without a note: {', '.join(sorted(unknown))}")
    return Golden(content["edition"], vectors, content["flags"])


def validate(path: Path, content: Mapping[str, Any], schema: str) -> None:
    """Hold a parsed file against its published JSON Schema and against its own hash."""
    for error in _validator(schema).iter_errors(content):
        raise VectorError(
            path, f"{error.json_path}: {error.message}"[:200], f"a file of the schema {schema}"
        ) from error
    if seal(content) != content["sha256"]:
        raise VectorError(path, "its content has another hash than it says")


@lru_cache(maxsize=2)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(read_json(FOLDER / f"{schema}.schema.json"))


def hash_of(inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and numbers (little-endian), inputs first."""
    digest = hashlib.sha256()
    for name, tensor in (prefixed("inputs", inputs) | prefixed("expected", expected)).items():
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _vector(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Array]) -> Vector:
    stored = {part: subtree(tensors, part) for part in ("inputs", "expected")}
    for part, values in stored.items():
        if {name: list(value.shape) for name, value in values.items()} != record[part]:
            raise VectorError(path, f"{record['id']}: the {part} have other names or shapes than the tensors")
        if not all(np.isfinite(value).all() for value in values.values()):
            raise VectorError(path, f"{record['id']}: {part} that are not finite")
    stored = {part: {name: values[name] for name in record[part]} for part, values in stored.items()}
    if any(value.dtype != np.float64 for value in stored["expected"].values()):
        raise VectorError(path, f"{record['id']}: expected values that are not float64")
    if hash_of(**stored) != record["sha256"]:
        raise VectorError(path, f"{record['id']}: its numbers have another hash")
    if not record["zero"].keys() <= record["expected"].keys():
        raise VectorError(path, f"{record['id']}: a zero that is not expected")
    # stored as float32, which holds them exactly; computed with as float64
    inputs = {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in stored["inputs"].items()}
    same = ("id", "group", "task", "comment", "conventions", "settings")
    return Vector(
        **{name: record[name] for name in same},
        flags=tuple(record["flags"]),
        exact_in=tuple(record["exactIn"]),
        inputs=inputs,
        expected=stored["expected"],
        zero={name: entry["scale"] for name, entry in record["zero"].items()},
        bits=record["proof"]["bits"],
    )


def _all_names(vectors: Mapping[str, Vector]) -> list[str]:
    parts = ("inputs", "expected")
    return [f"{v.id}/{part}/{name}" for v in vectors.values() for part in parts for name in getattr(v, part)]
