"""Exact search: the product of all rows of an index with one vector, and the best of it.

A query is a sum: unit vectors of what is to be like it, minus those of what is not, made a unit vector again.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array, sigmoid
from siglip_ref.use.reading import Prepared, reader
from siglip_ref.use.search.folder import Index
from siglip_ref.use.zeroshot import Model

PIECE = 1 << 16  # rows of one product


@dataclass(frozen=True)
class Query:
    """What is looked for: texts, images like it, texts that it is not."""

    texts: tuple[str, ...] = ()
    like: tuple[Path, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def is_one_text(self) -> bool:
        """Whether it is a text alone: then, and only then, the model's scale and bias say what a similarity means."""
        return len(self.texts) == 1 and not self.like and not self.without

    def in_words(self) -> str:
        """For headings.

        >>> Query(("a red star",), without=("night",)).in_words()
        '"a red star" - "night"'
        """
        plus = [f'"{text}"' for text in self.texts] + [f"like {image}" for image in self.like]
        return " - ".join([" + ".join(plus), *(f'"{text}"' for text in self.without)])


@dataclass(frozen=True)
class Hits:
    """The best rows, best first: similarities (cosines) and, of a query that is one text, scores between 0 and 1."""

    rows: Array
    similarities: Array
    scores: Array | None


def vector_of(query: Query, model: Model) -> Array:
    """The query as a unit vector (D,)."""
    if not query.texts and not query.like:
        raise UsageError(
            expected='a text, or --like photo.jpg: "a red star"',
            got='--not "..." alone' if query.without else "neither",
            cause="nothing is said of what is looked for",
            repair='siglip-ref search INDEX "a red star"',
        )
    parts = []
    if query.texts or query.without:
        texts = [*query.texts, *query.without]
        signs = np.array([1.0] * len(query.texts) + [-1.0] * len(query.without))[:, None]
        parts.append(model.embed_texts(texts) * signs)
    if query.like:
        read = reader(model.config, model.preprocess, small=True)
        images = [read(file) for file in query.like]
        for image in images:
            if isinstance(image, UsageError):
                raise image
        parts.append(model.embed_prepared([image.values for image in images if isinstance(image, Prepared)]))
    total = np.concatenate(parts).astype(np.float64).sum(0)
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise UsageError(
            expected="a query that is not its own opposite",
            got=query.in_words(),
            cause="what is added and what is subtracted cancel",
            repair="leave one of them out",
        )
    unit: Array = (total / length).astype(np.float32)
    return unit


def similarities_of(vectors: Array, unit: Array) -> Array:
    """The cosine of every row with a unit vector: float32 (n,), a piece of the rows at a time."""
    found = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), PIECE):
        np.dot(vectors[start : start + PIECE], unit, out=found[start : start + PIECE])
    return found


def best(similarities: Array, top: int, least: float = -np.inf) -> Array:
    """Rows of the `top` largest, largest first, of equals the earlier row first; none below `least`.

    >>> best(np.array([0.1, 0.5, 0.5, 0.9]), 2)
    array([3, 1])
    """
    top = min(top, len(similarities))
    if not top:
        return np.zeros(0, int)
    cut = np.partition(similarities, len(similarities) - top)[len(similarities) - top]
    rows = np.concatenate([np.flatnonzero(similarities > cut), np.flatnonzero(similarities == cut)])[:top]
    rows = rows[np.lexsort((rows, -similarities[rows]))]
    return np.asarray(rows[similarities[rows] >= least])


def search(index: Index, model: Model, query: Query, top: int = 20, threshold: float | None = None) -> Hits:
    """The photos of an index that fit best.

    threshold : of the score where the query is one text, else of the similarity
    """
    similarities = similarities_of(index.vectors, vector_of(query, model))
    if not query.is_one_text:
        rows = best(similarities, top, -np.inf if threshold is None else threshold)
        return Hits(rows, similarities[rows], None)
    rows = best(similarities, top)
    scores = sigmoid(model.logits(similarities[rows]))
    kept = scores >= (-np.inf if threshold is None else threshold)
    return Hits(rows[kept], similarities[rows][kept], scores[kept])
