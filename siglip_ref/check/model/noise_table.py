"""The measured noise of small models on probe weights, as data: as `siglip_ref.noise.table`, for check_model.

noise_table.json holds, by a digest of weights, inputs, sizes, conventions and dtype, the relative noise of every value
and gradient, to three digits: 0.5 %. Another arithmetic has another stamp, which closes the whole table.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Dtype
from siglip_ref.check.model.probe import Probe
from siglip_ref.noise.table import PACKAGE, digest, stamp

FILE = Path(__file__).with_name("noise_table.json")
Stored = tuple[Mapping[str, float], frozenset[str]]  # relative noise by name; what overflows


def find(probe: Probe, cfg: Config, conventions: Conventions, dtype: Dtype) -> Stored | None:
    """Noise by name, and the tensors that overflow; None if it is not here."""
    return _known().get(key_of(probe, cfg, conventions, dtype))


def key_of(probe: Probe, cfg: Config, conventions: Conventions, dtype: Dtype) -> str:
    """Of all that the noise of a model depends on; names of sizes and of conventions are none of it."""
    sizes = repr((replace(cfg, name="", conventions=replace(cfg.conventions, name="")), replace(conventions, name="")))
    weights = (part for name, value in probe.params.items() for part in (name.encode(), value))
    return digest(
        f"{dtype} {sizes}".encode(),
        *weights,
        probe.images,
        probe.tokens,
        *([] if probe.grids is None else [probe.grids]),
    )


def stamp_of_models() -> str:
    """Of the arithmetic, and of everything that a model computes."""
    folders = (sorted((PACKAGE / name).glob("*.py")) for name in ("ops", "model"))
    of_models = (
        "arithmetic/rounded.py",
        "arithmetic/variants.py",
        "noise/measure.py",
        "check/model/noise.py",
    )
    return stamp((*of_models, *(path.relative_to(PACKAGE).as_posix() for files in folders for path in files)))


@lru_cache(maxsize=1)
def _known() -> Mapping[str, Stored]:
    mark, entries = read(FILE)
    return entries if mark == stamp_of_models() else {}


def read(file: Path) -> tuple[str, dict[str, Stored]]:
    """The stamp, and the entries by digest."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["stamp"], {
        key: (dict(zip(content["names"][entry["names"]], entry["noise"], strict=True)), frozenset(entry["overflows"]))
        for key, entry in content["entries"].items()
    }


def write(file: Path, mark: str, entries: Mapping[str, Stored]) -> None:
    """One line for each list of names, and for each entry."""
    lists = sorted({tuple(noise) for noise, _ in entries.values()})
    rounded = {
        key: {
            "names": lists.index(tuple(noise)),
            "overflows": sorted(overflows),
            "noise": [float(f"{level:.3g}") for level in noise.values()],
        }
        for key, (noise, overflows) in sorted(entries.items())
    }
    names = ",\n".join(f"  {json.dumps(names)}" for names in lists)
    lines = ",\n".join(f'  "{key}": {json.dumps(entry)}' for key, entry in rounded.items())
    text = f'{{\n "stamp": "{mark}",\n "names": [\n{names}\n ],\n "entries": {{\n{lines}\n }}\n}}\n'
    file.write_text(text, encoding="utf-8")
