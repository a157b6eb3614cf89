"""A batch in parts: chunks of a size, or a number of parts; and what pairs have to do with the parts of their rows."""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import numpy as np

from siglip_ref.ops.elementary import Array

Member = Callable[[Array, Array, int], Array]  # of row (image), column (text) and B

SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 100, 128)
_COUNTS = (2, 3, 4, 8)


def sizes_of(words: str, pairs: int) -> Array:
    """How many rows are in each part: "chunks of c", "k parts" as np.array_split makes them, "k chunks" as torch.chunk.

    >>> sizes_of("chunks of 4", 6), sizes_of("4 parts", 6), sizes_of("4 chunks", 6)
    (array([4, 2]), array([2, 2, 1, 1]), array([2, 2, 2]))
    """
    first, *rest = words.split()
    if first != "chunks" and rest == ["parts"]:
        count = int(first)
        sizes = np.full(count, pairs // count)
        sizes[: pairs % count] += 1
        return sizes
    size = int(rest[-1]) if first == "chunks" else -(-pairs // int(first))
    return np.array([min(size, pairs - start) for start in range(0, pairs, size)])


@lru_cache(maxsize=4096)
def _placed(words: str, pairs: int) -> tuple[Array, Array, int]:
    """Of each row its part and its place in it; how many parts."""
    sizes = sizes_of(words, pairs)
    part = np.repeat(np.arange(len(sizes)), sizes)
    return part, np.arange(pairs) - (np.cumsum(sizes) - sizes)[part], len(sizes)


def _related(words: str, relation: str, i: Array, j: Array, n: int) -> Array:
    part, place, count = _placed(words, n)
    p, q, a, b = part[i], part[j], place[i], place[j]
    every = (i == i) & (j == j)
    known: dict[str, Callable[[], Array]] = {
        "same": lambda: p == q,
        "earlier": lambda: p < q,
        "next": lambda: (q - p) % count == 1 % count,
        "before": lambda: (p - q) % count == 1 % count,
        "two on": lambda: (q - p) % count == 2 % count,
        "beside": lambda: abs(q - p) <= 1,
        "images last": lambda: (p == count - 1) & every,
        "texts last": lambda: (q == count - 1) & every,
        "images first": lambda: (p == 0) & every,
        "texts first": lambda: (q == 0) & every,
        "place": lambda: a == b,
        "column": lambda: a == j,
        "row": lambda: i == b,
    }
    return known[relation]()


_NAMES = {
    "earlier": "image in an earlier one than the text of {}",
    "next": "text in the next one after the image's of {}",
    "before": "text in the one before the image's of {}",
    "two on": "text in the second one after the image's of {}",
    "beside": "in the same or neighbouring ones of {}",
    "images last": "images of the last of {}",
    "texts last": "texts of the last of {}",
    "images first": "images of the first of {}",
    "texts first": "texts of the first of {}",
    "place": "at the same place in theirs of {}",
    "column": "j = place of image i in its one of {}",
    "row": "i = place of text j in its one of {}",
}


def of_own(words: str, pairs: int) -> Array:
    """Of each row how many are in its part, as a column; times the number of parts, where words say so."""
    part, _, count = _placed(words.removesuffix(TIMES), pairs)
    return (sizes_of(words.removesuffix(TIMES), pairs) * (count if words.endswith(TIMES) else 1))[part][:, None]


# Numbers that B gives where rows are taken in chunks of c.
_COUNTED: dict[str, Callable[[int, int], int]] = {
    "(-B mod {})": lambda n, c: -n % c,
    "(B up to a multiple of {})": lambda n, c: -(-n // c) * c,
    "ceil(B/{})": lambda n, c: -(-n // c),
    "floor(B/{})": lambda n, c: n // c,
    "(B down to a multiple of {})": lambda n, c: n // c * c,
    "(P^2 - B^2 - P + B, P: B up to a multiple of {})": lambda n, c: (n + -n % c) ** 2 - n * n - -n % c,
    "(P^2 - B^2, P: B up to a multiple of {})": lambda n, c: (n + -n % c) ** 2 - n * n,
}


def log_of(pairs: int) -> float:
    """The logarithm; a single pair is told as two."""
    return math.log(max(pairs, 2))


COUNTED: dict[str, Callable[[int], float]] = (
    {"log(B)": log_of}
    | {words.format(c): partial(lambda of, c, n: of(n, c), of, c) for c in SIZES for words, of in _COUNTED.items()}
    | {  # an image's own text and a share of the others
        f"(1 + {of})": partial(lambda less, c, n: 1 + max(1, (n - less) // c), less, c)
        for c in (2, 4)
        for less, of in ((1, f"max(1, floor((B - 1)/{c}))"), (0, f"max(1, floor(B/{c}))"))
    }
)
TIMES = ", times their number"
_PARTS = (*(f"chunks of {c}" for c in SIZES), *(f"{k} {kind}" for k in _COUNTS for kind in ("parts", "chunks")))
PARTS = (*_PARTS, *(f"{words}{TIMES}" for words in _PARTS))


def members() -> Iterator[tuple[str, Member]]:
    """Sets of pairs by the parts of a batch, simplest first."""
    for size in SIZES:
        yield from _of_chunks(size)
    for count in _COUNTS:
        for kind in ("parts", "chunks"):
            words = f"{count} {kind}"
            yield f"in the same one of {words}", partial(_related, words, "same")
            for relation in _NAMES:
                if relation != "two on" or count > 2:
                    yield _NAMES[relation].format(words), partial(_related, words, relation)


def _twice(row: Array, c: int, n: int) -> Array:
    """Rows that stand in the last whole chunk and in one that ends with the batch."""
    return (row >= n - c) & (row < n // c * c) & (n >= c) & (n % c > 0)


def _of_chunks(c: int) -> Iterator[tuple[str, Member]]:
    """Sets that have to do with chunks of c."""
    yield f"chunks of {c}", lambda i, j, n: i // c == j // c
    yield f"j mod {c} = i", lambda i, j, n: i == j % c
    yield f"i mod {c} = j", lambda i, j, n: j == i % c
    yield f"i = j mod {c}", lambda i, j, n: (i - j) % c == 0
    yield f"images of whole chunks of {c}", lambda i, j, n: (i < n // c * c) & (j == j)
    yield f"texts of whole chunks of {c}", lambda i, j, n: (j < n // c * c) & (i == i)
    yield f"images of whole chunks of {c}, or all", lambda i, j, n: (i < (n // c * c or n)) & (j == j)
    yield f"texts of whole chunks of {c}, or all", lambda i, j, n: (j < (n // c * c or n)) & (i == i)
    yield f"first {c} images", lambda i, j, n: (i < c) & (j == j)
    yield f"first {c} texts", lambda i, j, n: (j < c) & (i == i)
    yield (
        f"images that stand in two of chunks of {c}, the last of which is moved back",
        lambda i, j, n: _twice(i, c, n) & (j == j),
    )
    yield (
        f"texts that stand in two of chunks of {c}, the last of which is moved back",
        lambda i, j, n: _twice(j, c, n) & (i == i),
    )
    yield f"images that are the last of a whole chunk of {c}", lambda i, j, n: (i % c == c - 1) & (j == j)
    yield f"texts that are the last of a whole chunk of {c}", lambda i, j, n: (j % c == c - 1) & (i == i)
    yield f"images that begin a chunk of {c}, but the first", lambda i, j, n: (i % c == 0) & (i > 0) & (j == j)
    yield f"texts that begin a chunk of {c}, but the first", lambda i, j, n: (j % c == 0) & (j > 0) & (i == i)
    yield (
        f"the last image, if it is one more than whole chunks of {c}",
        lambda i, j, n: (i == n - 1) & (i % c == 0) & (j == j),
    )
    yield (
        f"the last text, if it is one more than whole chunks of {c}",
        lambda i, j, n: (j == n - 1) & (j % c == 0) & (i == i),
    )
    for relation in ("earlier", "beside", "images last", "texts last", "next", "before"):
        words = f"chunks of {c}"
        yield _NAMES[relation].format(words), partial(_related, words, relation)
