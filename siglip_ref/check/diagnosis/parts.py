"""A batch in parts: chunks of a size, or a number of parts; and what pairs have to do with the parts of their rows."""

import math
from collections.abc import Callable, Iterator, Mapping
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


# Of the parts p and q of image i and text j, their places a and b there, and how many parts there are.
_SAME = "in the same one of {}"
_RELATIONS: dict[str, Callable[[Array, Array, Array, Array, Array, Array, int], Array]] = {
    _SAME: lambda p, q, a, b, i, j, count: p == q,
    "image in an earlier one than the text of {}": lambda p, q, a, b, i, j, count: p < q,
    "text in the next one after the image's of {}": lambda p, q, a, b, i, j, count: (q - p) % count == 1 % count,
    "text in the one before the image's of {}": lambda p, q, a, b, i, j, count: (p - q) % count == 1 % count,
    "text in the second one after the image's of {}": lambda p, q, a, b, i, j, count: (q - p) % count == 2 % count,
    "in the same or neighbouring ones of {}": lambda p, q, a, b, i, j, count: abs(q - p) <= 1,
    "images of the last of {}": lambda p, q, a, b, i, j, count: p == count - 1,
    "texts of the last of {}": lambda p, q, a, b, i, j, count: q == count - 1,
    "images of the first of {}": lambda p, q, a, b, i, j, count: p == 0,
    "texts of the first of {}": lambda p, q, a, b, i, j, count: q == 0,
    "at the same place in theirs of {}": lambda p, q, a, b, i, j, count: a == b,
    "j = place of image i in its one of {}": lambda p, q, a, b, i, j, count: a == j,
    "i = place of text j in its one of {}": lambda p, q, a, b, i, j, count: i == b,
}
_OF_CHUNKS = [*_RELATIONS][1:4] + [*_RELATIONS][5:8]


def _related(words: str, relation: str, i: Array, j: Array, n: int) -> Array:
    part, place, count = _placed(words, n)
    return _RELATIONS[relation](part[i], part[j], place[i], place[j], i, j, count)


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


def of_sides(rules: Mapping[str, Callable[[Array, int], Array]]) -> Iterator[tuple[str, Member]]:
    """Sets of images by their rows, and of texts. rules : by name, of rows and B"""
    for name, rule in rules.items():
        yield name.format("image"), partial(lambda of, i, j, n: of(i, n), rule)
        yield name.format("text"), partial(lambda of, i, j, n: of(j, n), rule)


def members() -> Iterator[tuple[str, Member]]:
    """Sets of pairs by the parts of a batch, simplest first."""
    for size in SIZES:
        yield from _of_chunks(size)
    for words in _PARTS[len(SIZES) :]:
        for relation in _RELATIONS:
            if "second" not in relation or words[0] != "2":
                yield relation.format(words), partial(_related, words, relation)


def _of_chunks(c: int) -> Iterator[tuple[str, Member]]:
    """Sets that have to do with chunks of c."""
    yield f"chunks of {c}", lambda i, j, n: i // c == j // c
    yield f"j mod {c} = i", lambda i, j, n: i == j % c
    yield f"i mod {c} = j", lambda i, j, n: j == i % c
    yield f"i = j mod {c}", lambda i, j, n: (i - j) % c == 0
    yield from of_sides(
        {
            f"{{}}s of whole chunks of {c}": lambda row, n: row < n // c * c,
            f"{{}}s of whole chunks of {c}, or all": lambda row, n: row < (n // c * c or n),
            f"first {c} {{}}s": lambda row, n: row < c,
            f"{{}}s that stand in two of chunks of {c}, the last of which is moved back": lambda row, n: (
                (row >= n - c) & (row < n // c * c) & (n >= c) & (n % c > 0)
            ),
            f"{{}}s that are the last of a whole chunk of {c}": lambda row, n: row % c == c - 1,
            f"{{}}s that begin a chunk of {c}, but the first": lambda row, n: (row % c == 0) & (row > 0),
            f"the last {{}}, if it is one more than whole chunks of {c}": lambda row, n: (
                (row == n - 1) & (row % c == 0)
            ),
        }
    )
    words = f"chunks of {c}"
    yield from ((relation.format(words), partial(_related, words, relation)) for relation in _OF_CHUNKS)
