"""Vectors for any language: inputs as safetensors and npz, the question as JSON."""

import io
import json
from pathlib import Path

import numpy as np

from siglip_ref.process.outputs import refusals
from siglip_ref.vectors.files import write_safetensors
from siglip_ref.vectors.store import Vector, packaged


def export(folder: str | Path, beginning: str = "") -> list[str]:
    """One folder a vector: inputs.safetensors, inputs.npz, vector.json.

    Parameters
    ----------
    folder : made if it is not there
    beginning : only vectors whose id begins so

    Returns
    -------
    ids of the vectors written
    """
    vectors = chosen(beginning)
    for vector in vectors:
        place = Path(folder) / vector.id
        # every input is exact in float32
        inputs = {n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in vector.inputs.items()}
        question = {
            "id": vector.id,
            "comment": vector.comment,
            "task": vector.task,
            "settings": vector.settings,
            "conventions": vector.conventions,
            "inputs": {name: list(value.shape) for name, value in inputs.items()},
            "compute": {name: list(value.shape) for name, value in vector.expected.items()},
            "then": f"siglip-ref check dump answer.safetensors --vector {vector.id}",
        }
        packed = io.BytesIO()
        np.savez(packed, **{name.replace("/", "."): value for name, value in inputs.items()})
        cause = "no right to write there, or a file in the way"
        with refusals("a folder that can be written to", cause, "choose another"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "inputs.safetensors").write_bytes(write_safetensors(inputs, {"vector": vector.id}))
            (place / "inputs.npz").write_bytes(packed.getvalue())
            (place / "vector.json").write_text(json.dumps(question, indent=1) + "\n", encoding="utf-8")
    return [vector.id for vector in vectors]


def chosen(beginning: str) -> list[Vector]:
    """The packaged vectors whose id begins so; there must be one."""
    golden = packaged()
    return [v for v in golden.vectors.values() if v.id.startswith(beginning)] or [golden.find(beginning)]
