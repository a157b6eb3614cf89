"""The measured figures as data: edits.json holds one for each subject, set of probes and dtype.

What belongs to another specification, other probes or another grammar has another stamp, and is not believed: then
nothing was measured for a run. `siglip-ref coverage` makes it anew.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.noise.table import PACKAGE, digest, stamp
from siglip_ref.report.data import Edits

PAIRS = 4  # of a check of a model
FILE = PACKAGE / "check/engine/single_edits/edits.json"
# Folders and files whose text decides a figure, by the first word of its key.
_GRAMMAR = tuple(f"mistakes/grammar/{name}.py" for name in ("forms", "places"))
_ALL = ("arithmetic", "check/engine/single_edits/measure.py", *_GRAMMAR, "mistakes/change.py", "ops")
_OF_MODEL = tuple(f"check/model/{name}.py" for name in ("judge", "noise", "probe"))
SOURCES = {
    "loss": (*_ALL, "check/loss/measured/single_edits.py", "noise", "check/engine/expected", "model/loss.py"),
    "model": (*_ALL, "check/model/measured/single_edits.py", "model", *_OF_MODEL),
}


def shipped(key: str) -> Edits | None:
    """The figure of this key; None where it was not measured, or is out of date."""
    marks, figures = _read()
    subject = key.split(",")[0]
    found = figures.get(key) if marks.get(subject) == stamp_of(subject) else None
    return Edits(found["changing"], found["survivors"]) if found else None


def key_of_model(cfg: Config, conventions: Conventions, dtype: str) -> str:
    """What names the figure of a model: its sizes and conventions, whatever they are called."""
    sizes = replace(cfg, name="", conventions=replace(conventions, name=""))
    return f"model, {digest(repr(sizes).encode())}, {dtype}"


def stamp_of(subject: str) -> str:
    """Of all that decides the figures of a subject."""
    found = [path for source in SOURCES[subject] for path in _files(PACKAGE / source)]
    return stamp(tuple(dict.fromkeys(path.relative_to(PACKAGE).as_posix() for path in found)))


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.py"))


@lru_cache(maxsize=1)
def _read() -> tuple[Mapping[str, str], Mapping[str, dict[str, Any]]]:
    return read()


def read(file: Path = FILE) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Stamps by subject, figures by key; nothing where there is no file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"stamps": {}, "figures": {}}
    return content["stamps"], content["figures"]


def write(marks: Mapping[str, str], figures: Mapping[str, Any], file: Path = FILE) -> None:
    """The same bytes for the same content."""
    content = {"stamps": dict(sorted(marks.items())), "figures": dict(sorted(figures.items()))}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
