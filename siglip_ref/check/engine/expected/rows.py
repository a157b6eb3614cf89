"""Rows of embeddings for probes: exact in 16 bits, or with full mantissas; the same bits on every machine.

Exact rows hold integers n/256 with sum n^2 = 65536: exactly unit, in bfloat16 and float16 too. But then a loss that
rounds its inputs rounds nothing. Full rows hold quotients n / sqrt(sum n^2), rounded once to the format asked for: as
long as rows of a tower are, unit to rounding, and every bit of a mantissa counts.
"""

import math
from functools import lru_cache
from itertools import chain
from typing import Literal

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.ops.elementary import Array

UNIT = 256  # exact rows hold integers, in units of 1/256
_GRID = 2.0**20  # full rows are integers before their division: what draws the numbers may err in the last bits
_TINY = 2.0**-16  # elements of tiny rows are about so large

Texts = Literal["near", "far", "close", "own", "crossed", "duplicates", "axes", "tiny", "opposite"]


def rows_of(texts: Texts, pairs: int, width: int, full: str | None, rng: np.random.Generator) -> tuple[Array, Array]:
    """Image rows and their texts, (pairs, width) each.

    Parameters
    ----------
    texts : close, near, far: they resemble their images very much, much or little; own: they are their images; crossed:
        half are the image's opposite, half the next image, so that similarities reach -1 and +1 at wrong places;
        duplicates: every third text is its neighbour's; axes: all rows lie along axes, so similarities are 0 or 1;
        tiny: similarities below 2 ** -14, of which only tiny elements decide; opposite: all images lie close together,
        and all texts on the other side, so that every similarity is about -1
    full : a format whose whole mantissa is used; None: numbers are exact in bfloat16 and float16
    """
    if texts == "axes":
        return _along_axes(pairs, width)
    if texts == "tiny" and width >= 4:
        return _tiny(pairs, width, full or "float32", rng)
    if texts == "opposite":
        away = 0.1 * rng.standard_normal((2, pairs, width)) / math.sqrt(width)
        away += np.array([1, -1])[:, None, None] / math.sqrt(width)
        return _rows(away[0], full, rng), _rows(away[1], full, rng)
    image = _rows(rng.standard_normal((pairs, width)), full, rng)
    if texts == "own":
        return image, image
    if texts == "crossed":
        return image, np.where(np.arange(pairs)[:, None] % 2 == 0, -image, np.roll(image, -1, 0))
    share, other = {"close": (1.0, 0.3), "far": (0.15, 0.8)}.get(texts, (0.6, 0.8))
    text = _rows(share * image + other * rng.standard_normal(image.shape) / math.sqrt(width), full, rng)
    if texts == "duplicates":
        text[1::3] = text[: len(text[1::3]) * 3 : 3]
    return image, text


def _rows(directions: Array, full: str | None, rng: np.random.Generator) -> Array:
    return full_rows(directions, full) if full else unit_rows(directions, rng) / UNIT


def full_rows(directions: Array, form: str) -> Array:
    """Unit rows close to the given directions, each number rounded once to the format.

    >>> full_rows(np.array([[3.0, 4.0]]), "float32") == np.float32([[0.6, 0.8]])
    array([[ True,  True]])
    """
    grid = np.rint(directions * _GRID).astype(np.int64)
    lengths = np.sqrt((grid * grid).sum(-1, keepdims=True))  # of whole numbers: no order of summation
    return np.asarray(round_to(grid / lengths, FORMATS[form]))


def _along_axes(pairs: int, width: int) -> tuple[Array, Array]:
    """Image k along axis k; an even text along its image's, an odd one along the next image's."""
    image = np.eye(width)[np.arange(pairs) % width]
    return image, np.where(np.arange(pairs)[:, None] % 2 == 0, image, np.roll(image, -1, 0))


def _tiny(pairs: int, width: int, form: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """An image has one large element, in the first half of the columns, a text one in the second half; where one is
    large the other is tiny. float16 has fewer bits there than tf32."""
    half = width // 2
    grid = np.rint(_GRID * rng.uniform(1.5, 4.5, (2, pairs, width)) * rng.choice((-1.0, 1.0), (2, pairs, width)))
    both = grid / (3 * _GRID) * _TINY
    place = np.arange(pairs) % half
    for rows, own, others in zip(both, (slice(0, half), slice(half, width)), (0, half), strict=True):
        rows[:, own] = 0
        small = (rows * rows).sum(-1)  # some 1e-9, so its last bits do not matter
        rows[np.arange(pairs), others + place] = np.sqrt(1 - small)
    return round_to(both[0], FORMATS[form]), round_to(both[1], FORMATS[form])


def unit_rows(directions: Array, rng: np.random.Generator) -> Array:
    """Rows of integers with sum n^2 = 65536, close to the given directions.

    All but four numbers of a row are rounded; the four take up what is left, by Lagrange's theorem.
    """
    rows, width = directions.shape
    out = np.zeros((rows, width))
    if width < 5:  # too few squares to choose from: unit vectors along an axis
        out[np.arange(rows), np.abs(directions).argmax(1)] = UNIT
        return out * np.where(directions < 0, -1, 1)
    for row, direction in zip(out, directions, strict=True):
        places = rng.permutation(width)
        wished = np.rint(direction / np.sqrt(direction @ direction) * UNIT)[places[4:]]
        while wished @ wished > UNIT**2:
            wished = np.trunc(wished * 0.9)
        signs = np.where(direction[places[:4]] < 0, -1, 1)
        row[places[:4]] = signs * np.array(_four_squares(int(UNIT**2 - wished @ wished), rng))
        row[places[4:]] = wished
    return out


def _four_squares(total: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Four integers whose squares sum to total, from a random start."""
    table = _two_squares()
    start = int(rng.integers(total + 1))
    sums = chain(range(start, total + 1), range(start))
    first = next(n for n in sums if n in table and total - n in table)
    return *table[first], *table[total - first]


@lru_cache(maxsize=1)
def _two_squares() -> dict[int, tuple[int, int]]:
    return {a * a + b * b: (a, b) for a in range(UNIT + 1) for b in range(a + 1) if a * a + b * b <= UNIT**2}
