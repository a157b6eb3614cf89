"""Photos that are nearly the same: pairs above a similarity, joined into groups."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.process.tables import as_csv
from siglip_ref.process.typed import visible
from siglip_ref.use.search.folder import Index
from siglip_ref.use.search.results import shown
from siglip_ref.use.search.sheet import Card, Section

PIECE = 2048  # rows of a tile of the product of all rows with all rows
COLUMNS = ("group", "path", "similarity", "same file")


class Group(NamedTuple):
    """Rows of an index, each like at least one other; similarities: of each to the first."""

    rows: list[int]
    similarities: list[float]


def duplicates(vectors: Array, similarity: float, progress: Callable[[int, int], None] | None = None) -> list[Group]:
    """Groups of unit rows: two belong together if their cosine is at least `similarity`, or if a chain of such joins
    them.

    Every pair is looked at, a tile of the product at a time. Groups and their rows are in the order of the rows.
    """
    if not -1 <= similarity <= 1:
        raise UsageError(
            expected="--similarity between -1 and 1; 0.98 for nearly the same",
            got=f"{similarity:g}",
            cause="it is a cosine",
            repair="leave it out for 0.98",
        )
    sets = DisjointSet(range(len(vectors)))
    tiles = [(i, j) for i in range(0, len(vectors), PIECE) for j in range(i, len(vectors), PIECE)]
    for number, (i, j) in enumerate(tiles, start=1):
        for a, b in _pairs(vectors, i, j, similarity):
            sets.merge(a, b)
        if progress:
            progress(number, len(tiles))
    groups = sorted(sorted(rows) for rows in sets.subsets() if len(rows) > 1)
    return [Group(rows, (vectors[rows] @ vectors[rows[0]]).tolist()) for rows in groups]


def _pairs(vectors: Array, i: int, j: int, similarity: float) -> Iterator[tuple[int, int]]:
    near = vectors[i : i + PIECE] @ vectors[j : j + PIECE].T >= similarity
    if i == j:
        near = np.triu(near, 1)
    for a, b in np.argwhere(near):
        yield int(i + a), int(j + b)


def in_words(count: int, what: str) -> str:
    """A number of things.

    >>> in_words(1, "group"), in_words(1200, "photo")
    ('1 group', '1,200 photos')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def groups_as_csv(index: Index, groups: list[Group]) -> bytes:
    """Columns group, path, similarity (to the first of the group), same file ("yes": byte for byte)."""
    return as_csv(COLUMNS, ((n, path, repr(s), same) for n, path, s, same in _listed(index, groups)))


def groups_as_json(index: Index, groups: list[Group], similarity: float) -> str:
    """The groups, each a list of photos."""
    listed = [dict(zip(COLUMNS, found, strict=True)) for found in _listed(index, groups)]
    inside = [[photo for photo in listed if photo["group"] == number] for number in range(1, len(groups) + 1)]
    content = {"index": str(index.place), "similarity": similarity, "of": len(index.photos), "groups": inside}
    return json.dumps(content, indent=1, allow_nan=False)


def groups_as_text(index: Index, groups: list[Group], similarity: float) -> str:
    """A paragraph for each group, and what they are."""
    lines: list[str] = []
    before = 1
    for number, path, cosine, same in _listed(index, groups):
        lines += [""] * (number != before)
        before = number
        lines.append(f"{cosine:8.4f}  {visible(path)}" + "  (the same file)" * (same == "yes"))
    extra = sum(len(group.rows) - 1 for group in groups)
    lines += [""] * bool(lines)
    found = in_words(len(groups), "group")
    lines += [
        f"{found} of photos that are nearly the same, {extra:,} beyond the first of each, among {len(index.photos):,}, "
        f"from a similarity of {similarity:g} on.",
        "The number is the similarity to the first of the group; each is that similar to some other of its group.",
    ]
    return "\n".join(lines)


def groups_as_sheet(index: Index, groups: list[Group], similarity: float) -> tuple[list[str], list[Section]]:
    """Lines and a section for each group, for `siglip_ref.use.search.sheet.sheet`."""
    sections = []
    for number, group in enumerate(groups, start=1):
        cards = [
            Card(index.file(row), photo.path, [f"{photo.bytes:,} bytes", f"similarity {cosine:.3f}"])
            for row, cosine in zip(*group, strict=True)
            for photo in [index.photos[row]]
        ]
        sections.append(Section(f"group {number}: {len(cards)} photos", cards))
    about = f"{len(index.photos):,} photos in {index.root}; alike from a similarity of {similarity:g} on"
    return [about, "The similarity is that to the first of the group."], sections


def _listed(index: Index, groups: list[Group]) -> Iterator[tuple[int, str, float, str]]:
    for number, group in enumerate(groups, start=1):
        first = index.photos[group.rows[0]].sha256
        for place, (row, similarity) in enumerate(zip(*group, strict=True)):
            same = "yes" if place and index.photos[row].sha256 == first else ""
            yield number, shown(index.file(row)), similarity, same
