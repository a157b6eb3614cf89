"""Which photos there are, and which of them an index knows already: by path, size, time, and, where these differ, by
their content."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.use.pictures import SUFFIXES
from siglip_ref.use.walk import images_below


class Photo(NamedTuple):
    """A file as it was seen.

    path : from the folder of photos, "/" between its parts
    modified : nanoseconds since 1970; sha256 : of the content, "" until it was read
    reason : why it cannot be read as an image, "" if it can
    """

    path: str
    bytes: int
    modified: int
    sha256: str = ""
    reason: str = ""

    def is_settled(self, now: "Photo") -> bool:
        """Whether nothing new is to be learnt of the file: size and time are the same, and no package was missing."""
        again = self.reason and (not self.sha256 or "pip install" in self.reason)
        return not again and (self.bytes, self.modified) == (now.bytes, now.modified)


def require_folder(root: Path) -> None:
    """Refuse what is no folder."""
    if not root.is_dir():
        raise UsageError(
            expected="a folder of photos",
            got=f"{root}, a file" if root.exists() else f"nothing at {root}",
            cause="an index is of a folder" if root.exists() else "a spelling mistake, or a drive that is not mounted",
            repair="give the folder",
        )


def photos_below(root: Path) -> tuple[list[Photo], list[str]]:
    """All image files below a folder, in the order of their paths; and folders that cannot be entered."""
    require_folder(root)
    blocked: list[str] = []
    found = []
    for file in images_below(root, blocked):
        path = file.relative_to(root).as_posix()
        try:
            status = file.stat()
        except OSError as error:  # a link to nothing, or gone since
            found.append(Photo(path, -1, -1, "", f"{error.strerror}"))
            continue
        found.append(Photo(path, status.st_size, status.st_mtime_ns))
    return sorted(found, key=_order), [Path(folder).relative_to(root).as_posix() for folder in blocked]


def require_some(found: Sequence[Photo], known: int, root: Path) -> None:
    """Refuse a folder without photos: an index of it would forget all that it knows."""
    if found:
        return
    raise UsageError(
        expected="a folder with photos in it",
        got=f"no file of {', '.join(SUFFIXES)} in or below {root}" + f", of which {known} are indexed" * bool(known),
        cause="a drive that is not mounted, perhaps" if known else "images of another format, or elsewhere",
        repair="check the path",
    )


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content; "" if it cannot be read."""
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""


class Known(NamedTuple):
    """A photo with its vector: row `row` of `rows`; -1 if it cannot be read."""

    photo: Photo
    rows: Array
    row: int


class Plan(NamedTuple):
    """What an index takes over, and what it must read.

    found : all photos; kept : those whose vectors are known, by path, as they are now; todo : new and changed ones, in
    their order; gone : known ones that are no more; blocked : see `photos_below`
    """

    found: list[Photo]
    kept: dict[str, Known]
    todo: list[Photo]
    gone: int
    blocked: list[str]


def plan(root: Path, known: Mapping[str, Known], done: Mapping[str, Known], threads: int) -> Plan:
    """Compare the folder with what is known.

    A file of the same path, size and time is not opened. One that was copied, moved or touched is opened and known
    again by its content.

    Parameters
    ----------
    known : photos of the index as it is, by path; done : of work that was interrupted
    """
    found, blocked = photos_below(root)
    require_some(found, len(known), root)
    under = tuple(folder + "/" for folder in blocked)
    if under:  # they are not gone, they cannot be looked at
        found = sorted([*found, *(k.photo for p, k in known.items() if p.startswith(under))], key=_order)
    kept: dict[str, Known] = {}
    todo = []
    for photo in found:
        same = [k for k in (known.get(photo.path), done.get(photo.path)) if k and k.photo.is_settled(photo)]
        if photo.reason:
            kept[photo.path] = Known(photo, np.zeros((0, 0)), -1)
        elif same:
            kept[photo.path] = same[0]
        else:
            todo.append(photo)
    by_content = {(k.photo.bytes, k.photo.sha256): k for k in known.values() if k.photo.sha256}
    sizes = {size for size, _ in by_content}
    again = [photo for photo in todo if photo.bytes in sizes]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        contents = pool.map(lambda photo: digest_of(root / photo.path), again)
        for photo, content in zip(again, contents, strict=True):
            if before := by_content.get((photo.bytes, content)):
                now = photo._replace(sha256=content, reason=before.photo.reason)
                kept[photo.path] = before._replace(photo=now)
    todo = [photo for photo in todo if photo.path not in kept]
    return Plan(found, kept, todo, len(known.keys() - {photo.path for photo in found}), blocked)


def _order(photo: Photo) -> list[str]:
    """Part by part, as pathlib sorts."""
    return photo.path.split("/")
