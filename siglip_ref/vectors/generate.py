"""From drafts to certified files. No number comes from BLAS or from a library's exp: balls decide every digit."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.arithmetic.ball import balls, certify, nearest, precision
from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.mistakes import Edit, Reference, reference
from siglip_ref.ops.elementary import Array, prefixed
from siglip_ref.vectors.content import FLAGS, Draft, drafts
from siglip_ref.vectors.files import write_json, write_safetensors
from siglip_ref.vectors.store import SCHEMA, Vector, hash_of
from siglip_ref.vectors.tasks import TASKS

EDITION = "2026-11"
HEADER = (
    "Numbers lie in golden.safetensors under ID/inputs/NAME and ID/expected/NAME; d_x, d/x, @x are gradients.",
    "Every expected number is the float64 nearest to the exact value, with proof: regenerate and verify reproduce it.",
    "error(T) = max|a - b| / max|b|; tensors listed under zero are judged against their scale instead.",
)
ZERO = "A key bias moves all scores of a query alike, which softmax does not see."
# In this copy every bias gradient is the sum of the absolute values of its terms: what cancels in a zero by structure.
SIZES = Edit("ops/linear.py", "d_bias = d_rows.sum(0)", "d_bias = np.where(d_rows > 0, d_rows, -d_rows).sum(0)")

Progress = Callable[[str], None]


def prove(
    task: str, arrays: Mapping[str, Array], settings: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, float], int]:
    """Expected values, the sizes of zeros, and the bits that proved them.

    Parameters
    ----------
    task : a key of TASKS; arrays : float64, int or bool; settings : of the task
    """
    zero = {name: ZERO for name in _run(reference(), task, arrays, settings) if _is_zero(name, task)}
    proven = certify(lambda: _run(reference(), task, _as_balls(arrays), settings), zero)
    sizes = {}
    if zero:
        with precision(256):
            terms = _run(reference((SIZES,)), task, _as_balls(arrays), settings)
            sizes = {name: max(nearest(v) or 0.0 for v in balls(terms[name]).flat) for name in zero}
    expected = {name: np.asarray(value.value) for name, value in proven.items()}
    return expected, sizes, max(value.bits for value in proven.values())


def build(chosen: Iterable[Draft] | None = None, progress: Progress = lambda name: None) -> dict[str, bytes]:
    """The certified files: name -> bytes, the same on every machine."""
    records: list[dict[str, Any]] = []
    tensors: dict[str, Array] = {}
    for draft in drafts() if chosen is None else chosen:
        progress(draft.id)
        arrays = {name: _plain(value) for name, value in draft.arrays.items()}
        expected, sizes, bits = prove(draft.task, arrays, draft.settings)
        stored = {name: v.astype(np.float32) if v.dtype.kind == "f" else v for name, v in arrays.items()}
        settings = dict(draft.settings)
        records.append(
            {
                "id": draft.id,
                "group": draft.group,
                "task": draft.task,
                "comment": draft.comment,
                "flags": list(draft.flags),
                "conventions": settings.pop("conventions", {}),
                "settings": settings,
                "exactIn": [name for name in ("float64", "float32", "bfloat16", "float16") if _exact(arrays, name)],
                "inputs": {name: list(value.shape) for name, value in stored.items()},
                "expected": {name: list(value.shape) for name, value in expected.items()},
                "zero": {name: {"reason": ZERO, "scale": size} for name, size in sizes.items()},
                "proof": {"method": "balls", "bits": bits},
                "sha256": hash_of(stored, expected),
            }
        )
        tensors |= prefixed(f"{draft.id}/inputs", stored) | prefixed(f"{draft.id}/expected", expected)
    data = write_safetensors(tensors)
    content = {
        "schema": SCHEMA,
        "edition": EDITION,
        "header": list(HEADER),
        "tensors": {"file": "golden.safetensors", "sha256": hashlib.sha256(data).hexdigest()},
        "flags": FLAGS,
        "numberOfVectors": len(records),
        "vectors": records,
    }
    return {"golden.json": write_json(content), "golden.safetensors": data}


def write(folder: Path, progress: Progress = lambda name: None) -> None:
    """Regenerate the certified files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in build(progress=progress).items():
        (folder / name).write_bytes(data)


def proves(vector: Vector) -> bool:
    """Whether balls prove, anew, every expected number of a vector that was read."""
    expected, sizes, _ = prove(vector.task, vector.inputs, vector.all_settings)
    same = expected.keys() == vector.expected.keys() and sizes == vector.zero
    return same and all(np.array_equal(expected[name], vector.expected[name]) for name in expected)


def _run(ref: Reference, task: str, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> dict[str, Array]:
    return TASKS[task](ref, dict(arrays), settings)


def _as_balls(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: balls(value) if value.dtype.kind == "f" else value for name, value in arrays.items()}


def _plain(value: Array) -> Array:
    return value.astype(np.int64 if value.dtype.kind == "i" else value.dtype)


def _is_zero(name: str, task: str) -> bool:
    """Gradients of key biases; parameters after optimiser steps are none."""
    return name.endswith("k/bias") and task not in ("optimiser", "training", "recipe_steps")


def _exact(arrays: Mapping[str, Array], form: str) -> bool:
    floats = (value for value in arrays.values() if value.dtype.kind == "f")
    return all(np.array_equal(round_to(value, FORMATS[form]), value) for value in floats)
