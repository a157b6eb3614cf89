"""The folder of an index: vectors as one NumPy array, the photos' paths beside them as CSV, and who made them.

`index.json` names the other files, whose names hold a digest of their content. It is written last, so an index is as it
was or as it is to be, whenever a process is killed, and whoever reads it meanwhile reads one of the two.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.process.atomic import sweep, write_atomically, written_whole
from siglip_ref.process.outputs import require_free, require_name
from siglip_ref.process.tables import as_csv, read_csv
from siglip_ref.process.typed import visible
from siglip_ref.use.search.photos import Known, Photo
from siglip_ref.use.walk import is_of

INDEX, LOCK, WORK = "index.json", "index.lock", "index.work"
FORMAT = "siglip-ref-index/1"
KINDS = {"vectors": "npy", "photos": "csv", "unreadable": "csv"}
PHOTOS = ("row", "path", "bytes", "modified", "sha256")
UNREADABLE = ("path", "bytes", "modified", "sha256", "reason")
DIGEST = "[0-9a-f]" * 16  # in the names of our own files, which alone are ever taken away
OWN = re.compile(r"index\.(lock|work)|(index\.json|(vectors|photos|unreadable)-[0-9a-f]{16}\.(npy|csv))(\.\d+\.part)?")
PIECE = 1000  # rows that are copied at once


@dataclass(frozen=True)
class Index:
    """An index as it lies on the disk.

    root : folder of the photos; model : see `siglip_ref.use.search.identity.loaded`
    vectors : (n, D) unit rows, mapped, not read; photos : what row i is of
    unreadable : files that are no images, with the reason
    """

    place: Path
    root: Path
    model: dict[str, Any]
    vectors: Array
    photos: list[Photo]
    unreadable: list[Photo]

    def known(self) -> dict[str, Known]:
        """Every photo by its path."""
        rows = {photo.path: Known(photo, self.vectors, row) for row, photo in enumerate(self.photos)}
        return rows | {photo.path: Known(photo, self.vectors, -1) for photo in self.unreadable}

    def file(self, row: int) -> Path:
        """The photo of a row."""
        return self.root / self.photos[row].path


def is_index(place: Path) -> bool:
    """Whether an index lies there."""
    return is_of(place / INDEX, FORMAT)


def require_own(place: Path, force: bool = False) -> None:
    """A folder that is new, empty, or of an index; others are refused, unless by force."""
    require_name(place)
    require_free(folders=[] if is_index(place) or _is_begun(place) else [place], force=force)


def _is_begun(place: Path) -> bool:
    """Whether nothing is there but what an index is made of, and its lock: it was killed before it was one."""
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    return LOCK in names and all(OWN.fullmatch(name) for name in names)


def read_index(place: Path) -> Index:
    """The index in a folder.

    Raises
    ------
    UsageError : there is none, or its files do not fit together
    """
    if not is_index(place):
        raise UsageError(
            expected="an index, as siglip-ref index makes it",
            got=f"{place}, a folder without {INDEX}" if place.is_dir() else f"nothing at {place}",
            cause="no index was made there" if place.is_dir() else "a spelling mistake, perhaps",
            repair="siglip-ref index PHOTOS --model DIR --out INDEX",
        )
    try:
        about = json.loads((place / INDEX).read_text(encoding="utf-8"))
        vectors = np.load(place / about["vectors"], mmap_mode="r", allow_pickle=False)
        photos = [
            Photo(path, int(size), int(modified), sha256)
            for _, path, size, modified, sha256 in read_csv(place / about["photos"], PHOTOS)
        ]
        unreadable = [
            Photo(path, int(size), int(modified), sha256, reason)
            for path, size, modified, sha256, reason in read_csv(place / about["unreadable"], UNREADABLE)
        ]
        index = Index(place, Path(about["root"]), dict(about["model"]), vectors, photos, unreadable)
        if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(photos):
            raise ValueError(f"vectors of {vectors.dtype}, shape {vectors.shape}, for {len(photos)} photos")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UsageError(
            expected=f"a whole index in {place}",
            got=visible(f"{type(error).__name__}: {error}")[:300],
            cause="a file of it was changed, cut short or taken away",
            repair="make it anew: siglip-ref index PHOTOS --model DIR --out INDEX --force",
        ) from error
    return index


def write_index(
    place: Path, root: Path, model: Mapping[str, Any], photos: Sequence[Known], unreadable: Sequence[Photo], width: int
) -> bool:
    """Put an index in the place of the one that is there; whether anything had changed."""
    rows = ((row, *known.photo[:4]) for row, known in enumerate(photos))
    tables = {"photos": as_csv(PHOTOS, rows), "unreadable": as_csv(UNREADABLE, unreadable)}
    total = hashlib.sha256(str(model["digest"]).encode())
    for content in tables.values():
        total.update(hashlib.sha256(content).digest())
    names = {kind: f"{kind}-{total.hexdigest()[:16]}.{suffix}" for kind, suffix in KINDS.items()}
    about = {
        "format": FORMAT,
        "root": str(root.absolute()),
        "model": model,
        "rows": len(photos),
        "width": width,
    } | names
    content = (json.dumps(about, indent=1) + "\n").encode()
    if (place / INDEX).is_file() and (place / INDEX).read_bytes() == content and (place / names["vectors"]).is_file():
        return False
    for kind, text in tables.items():
        write_atomically(place / names[kind], text)
    with written_whole(place / names["vectors"]) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(photos), width)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(photos), PIECE):
            file.write(np.stack([known.rows[known.row] for known in photos[start : start + PIECE]]).tobytes())
    write_atomically(place / INDEX, content)
    return True


def tidy(place: Path) -> None:
    """Take away what the index that is there does not name: an earlier one, and work that is in it."""
    about = json.loads((place / INDEX).read_text(encoding="utf-8"))
    for kind, suffix in KINDS.items():
        for file in place.glob(f"{kind}-{DIGEST}.{suffix}"):
            if file.name != about[kind]:
                file.unlink()
        sweep(place, f"{kind}-{DIGEST}.{suffix}.*.part")
    sweep(place, f"{INDEX}.*.part")
    for file in (place / WORK).glob(f"{DIGEST}-*"):
        file.unlink()
    with contextlib.suppress(OSError):  # none there, or somebody's own
        (place / WORK).rmdir()


class Work:
    """Shards of an index that is being made, each whole or not there."""

    def __init__(self, place: Path, model: Mapping[str, Any]) -> None:
        self.folder, self.digest = place / WORK, str(model["digest"])[:16]

    def save(self, photos: Sequence[Photo], vectors: Array) -> None:
        """Photos in their order, and a vector for each that can be read: the array is written last, and counts."""
        self.folder.mkdir(exist_ok=True)
        number = max((int(file.stem.rpartition("-")[2]) for file in self._arrays()), default=-1) + 1
        file = self.folder / f"{self.digest}-{number:06d}.npy"
        write_atomically(file.with_suffix(".csv"), as_csv(Photo._fields, photos))
        array = io.BytesIO()
        np.save(array, vectors)
        write_atomically(file, array.getvalue())

    def done(self) -> dict[str, Known]:
        """What was saved with this very model, by path; what killed processes and other models left is swept away."""
        found: dict[str, Known] = {}
        if not self.folder.is_dir():
            return found
        sweep(self.folder, f"{DIGEST}-*.part")
        arrays = self._arrays()
        for file in self.folder.glob(f"{DIGEST}-*"):
            if file.with_suffix(".npy") not in arrays:
                file.unlink()
        for file in arrays:
            try:
                found |= _shard(file)
            except (OSError, ValueError, EOFError):  # a damaged one is made anew
                file.unlink()
        return found

    def _arrays(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.digest}-*.npy"))


def _shard(file: Path) -> dict[str, Known]:
    rows = np.load(file, mmap_mode="r", allow_pickle=False)
    found, row = {}, 0
    for path, size, modified, sha256, reason in read_csv(file.with_suffix(".csv"), Photo._fields):
        photo = Photo(path, int(size), int(modified), sha256, reason)
        found[path] = Known(photo, rows, -1 if reason else row)
        row += not reason
    if row != len(rows):
        raise ValueError(f"{file.name}: {len(rows)} vectors for {row} photos")
    return found
