"""What every vector would catch: each mistake's error in units of the noise that a correct program shows there.

Both were measured once and are packaged in measured.json. The mistaken reference is run in float64, for float64, and
in float32 for all other formats: rounding of its own would only blur what the mistake does.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.mistakes import Mistake, Reference, executable, reference
from siglip_ref.noise.measure import TIMES, measure
from siglip_ref.ops.elementary import Array
from siglip_ref.vectors.files import VectorError, read_json, write_json
from siglip_ref.vectors.store import FOLDER, Vector, packaged, validate
from siglip_ref.vectors.tasks import TASKS

SCHEMA = "siglip-ref measured vectors 1"
FORMATS = ("float64", "float32", "bfloat16", "float16")
SEEN = 10.0  # times the noise: what counts as seen
INFINITE = 1e15  # written for errors that are infinite, not a number, or of another shape


@dataclass(frozen=True)
class Measured:
    """noise: by vector, tensor and format, relative to the tensor's unit (None: out of range, or inputs not exact);
    power: by mistake and vector, in the order of FORMATS."""

    noise: Mapping[str, Mapping[str, list[float | None]]]
    power: Mapping[str, Mapping[str, list[float | None]]]

    def noise_of(self, vector: Vector, dtype: str) -> dict[str, float | None]:
        """By tensor."""
        column = FORMATS.index(dtype)
        return {name: row[column] for name, row in self.noise[vector.id].items()}

    def best(self, mistake: str, dtype: str, vectors: Collection[str] | None = None) -> tuple[float, str]:
        """The vector (of these) that sees a mistake best, and by what factor of the noise."""
        column = FORMATS.index(dtype)
        rows = self.power.get(mistake, {})
        found = [(row[column] or 0.0, vector) for vector, row in rows.items() if vectors is None or vector in vectors]
        return max(found, default=(0.0, ""))

    def blind(self, dtype: str, vectors: Collection[str] | None = None) -> tuple[list[str], int]:
        """Mistakes that change something at these vectors but cannot be seen at this format, and how many change
        something."""
        concerned = [m for m in self.power if self.best(m, "float64", vectors)[0] >= SEEN]
        return [m for m in concerned if not self.best(m, dtype, vectors)[0] >= SEEN], len(concerned)


@lru_cache(maxsize=1)
def measured() -> Measured:
    """The packaged measurements."""
    return read_measured(FOLDER)


def read_measured(folder: Path) -> Measured:
    """measured.json of a folder, checked against its schema."""
    path = folder / "measured.json"
    content = read_json(path)
    validate(path, content, "measured")
    if tuple(content["formats"]) != FORMATS:
        raise VectorError(path, f"formats {content['formats']}")
    return Measured(content["noise"], content["power"])


def run(vector: Vector, ref: Reference, dtype: str = "float64") -> dict[str, Array]:
    """What a reference, changed or not, gives for a vector, computed in float64 or float32."""
    inputs = {n: v.astype(dtype) if v.dtype.kind == "f" else v for n, v in vector.inputs.items()}
    with np.errstate(all="ignore"):
        return TASKS[vector.task](ref, inputs, vector.all_settings)


def errors(vector: Vector, got: Mapping[str, Array], expected: Mapping[str, Array] | None = None) -> dict[str, float]:
    """By tensor, in its unit; infinite where a tensor is missing, of another shape, or not a number."""
    out = {}
    for name, wanted in (vector.expected if expected is None else expected).items():
        value = np.asarray(got.get(name, np.nan), np.float64)
        with np.errstate(all="ignore"):
            error = float(np.max(np.abs(value - wanted), initial=0.0)) if value.shape == wanted.shape else np.inf
        out[name] = error / vector.unit(name) if error <= np.inf else np.inf
    return out


def mistaken(vector: Vector, mistake: Mistake, dtype: str = "float64") -> dict[str, Array]:
    """What the mistake gives for a vector; nothing where it cannot even run: matrices that do not fit, or a parameter
    that the vector does not have."""
    try:
        return run(vector, reference(mistake.edits), dtype)
    except (ValueError, LookupError):
        return {}


def noise(vector: Vector, dtype: str) -> dict[str, float | None]:
    """Measured anew: largest error of correct variants, by tensor; None where one of them leaves the range."""
    if dtype not in vector.exact_in:
        return dict.fromkeys(vector.expected)
    floats = {name: value for name, value in vector.inputs.items() if value.dtype.kind == "f"}
    others = {name: value for name, value in vector.inputs.items() if name not in floats}

    def compute(arrays: dict[str, Array], ops: Any) -> dict[str, Array]:
        return TASKS[vector.task](replace(reference(), ops=ops), arrays | others, vector.all_settings)

    found = measure(compute, floats, vector.expected, dtype)
    return {n: None if n in found.overflows else float(x) / vector.unit(n) for n, x in found.absolute.items()}


def powers(vector: Vector, levels: Mapping[str, Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """Of every mistake that leaves what is allowed in float64; levels: noise by format and tensor."""
    found: dict[str, list[float | None]] = {}
    for mistake in executable():
        by_run = {dtype: errors(vector, mistaken(vector, mistake, dtype)) for dtype in ("float64", "float32")}
        row = [_factor(by_run["float64" if dtype == "float64" else "float32"], levels[dtype]) for dtype in FORMATS]
        if (row[0] or 0.0) >= TIMES:
            found[mistake.id] = row
    return found


def measure_all(
    vectors: Iterable[Vector] | None = None, progress: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """The content of measured.json."""
    levels: dict[str, dict[str, list[float | None]]] = {}
    power: dict[str, dict[str, list[float | None]]] = {mistake.id: {} for mistake in executable()}
    for vector in packaged().vectors.values() if vectors is None else vectors:
        progress(vector.id)
        by_format = {dtype: noise(vector, dtype) for dtype in FORMATS}
        levels[vector.id] = {n: [_short(by_format[dtype][n]) for dtype in FORMATS] for n in vector.expected}
        for mistake, row in powers(vector, by_format).items():
            power[mistake][vector.id] = [_short(factor) for factor in row]
    return {"schema": SCHEMA, "formats": list(FORMATS), "noise": levels, "power": power}


def write_measured(folder: Path, progress: Callable[[str], None] = lambda name: None) -> None:
    """Measure anew, into a folder."""
    (folder / "measured.json").write_bytes(write_json(measure_all(progress=progress)))


def _factor(found: Mapping[str, float], level: Mapping[str, float | None]) -> float | None:
    """The largest error in units of noise; None where the format has none."""
    ratios = [min(error / noise, INFINITE) if noise else 0.0 for error, noise in ((found[n], level[n]) for n in found)]
    return None if all(value is None for value in level.values()) else max(ratios)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.2g}")
