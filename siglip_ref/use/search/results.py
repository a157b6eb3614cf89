"""What was found, for people and for programs: text, paths alone, CSV, JSON. Paths are data and come back equal."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from siglip_ref.process.data import read_toml
from siglip_ref.process.tables import as_csv
from siglip_ref.process.typed import visible
from siglip_ref.use.search.folder import Index
from siglip_ref.use.search.query import Hits, Query
from siglip_ref.use.search.sheet import Card, Section

_MEANING = read_toml(__file__, "words")["meaning"]
COLUMNS = ("path", "similarity", "score")


def shown(file: Path) -> str:
    """A path as it can be typed here: below the current folder from there, else from the root."""
    whole = os.path.abspath(file)
    here = os.getcwd()
    return os.path.relpath(whole, here) if os.path.commonpath([whole, here]) == here else whole


def write_bytes(content: bytes) -> None:
    """To standard output as they are: names of files need not be text."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def as_paths(files: Iterable[str]) -> bytes:
    """One a line, nothing else: for `xargs -d '\\n'`."""
    return b"".join(os.fsencode(file) + b"\n" for file in files)


def hits_of(index: Index, hits: Hits) -> list[tuple[str, float, float | None]]:
    """Path, similarity and score of each."""
    scores: Sequence[Any] = [None] * len(hits.rows) if hits.scores is None else hits.scores.tolist()
    rows = zip(hits.rows.tolist(), hits.similarities.tolist(), scores, strict=True)
    return [(shown(index.file(row)), similarity, score) for row, similarity, score in rows]


def hits_as_csv(index: Index, hits: Hits) -> bytes:
    """Columns path, similarity, score; numbers with all their digits."""
    found = hits_of(index, hits)
    return as_csv(COLUMNS, ((path, repr(s), "" if score is None else repr(score)) for path, s, score in found))


def hits_as_json(index: Index, hits: Hits, query: Query) -> str:
    """The query, the index, the model, and the photos."""
    content = {
        "query": {
            "texts": list(query.texts),
            "like": [str(file) for file in query.like],
            "not": list(query.without),
        },
        "index": str(index.place),
        "model": index.model["name"],
        "of": len(index.photos),
        "photos": [dict(zip(COLUMNS, found, strict=True)) for found in hits_of(index, hits)],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def hits_as_sheet(index: Index, hits: Hits) -> tuple[list[str], list[Section]]:
    """Lines and cards for `siglip_ref.use.search.sheet.sheet`."""
    cards, values = [], hits.similarities if hits.scores is None else hits.scores
    best = max(float(values.max(initial=0.0)), 1e-9)
    for row, (_, similarity, score) in zip(hits.rows.tolist(), hits_of(index, hits), strict=True):
        lines = [] if score is None else [f"score {score:.4f}" if score >= 0.001 else f"score {score:.1e}"]
        lines.append(f"similarity {similarity:.3f}")
        share = (similarity if score is None else score) / best
        cards.append(Card(index.file(row), index.photos[row].path, lines, share))
    about = f"{len(cards)} of {len(index.photos):,} photos in {index.root}; {index.model['size']}"
    what = "similarity" if hits.scores is None else "score"
    bar = f"A bar is the {what} as a share of the best one's."
    return [about, _MEANING[what].replace("\n", " "), bar], [Section("", cards)]


def hits_as_text(index: Index, hits: Hits, query: Query) -> str:
    """A table, and once what its numbers mean."""
    scored = hits.scores is not None
    lines = ["  score  similarity  photo" if scored else "similarity  photo"]
    for path, similarity, score in hits_of(index, hits):
        numbers = f"{score:7.4f}  {similarity:10.4f}" if scored else f"{similarity:10.4f}"
        lines.append(f"{numbers}  {visible(path)}")
    if not len(hits.rows):
        lines = ["nothing reaches the threshold"]
    about = f"{query.in_words()}: {len(hits.rows)} of {len(index.photos):,} photos; {index.model['size']}"
    return "\n".join([*lines, "", about, _MEANING["score" if scored else "similarity"]])
