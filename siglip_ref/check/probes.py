"""The inputs at which a loss is judged: chosen so that every term of it is visible somewhere.

At initialisation (scale 10, bias -10) the negatives carry under 1 % of the gradient, and a loss without them passes
common checkers; so there are other points. All numbers are exact in bfloat16 and float16: the embeddings are rows of
integers n/256 with sum n^2 = 65536, hence exactly unit; the scalars have at most eight significant bits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

Texts = Literal["near", "far", "own", "crossed", "duplicates"]
Shape = tuple[int, int]
Dims = Mapping[str, int] | Sequence[Shape] | None

UNIT = 256  # rows hold integers, in units of 1/256


@dataclass(frozen=True)
class Point:
    """Where to probe. shape (B, D) is a wish: `dims` may round it up. texts: how they lie to the images, see `_texts`.

    bias None: the balanced bias -log(B - 1), at which positives and negatives weigh the same.
    """

    name: str
    shape: Shape
    log_scale: float
    bias: float | None
    texts: Texts = "near"
    lengths: Sequence[int] = (0,)  # rows are multiplied by 2 ** these, in turn; only for a loss that normalises
    hunts: str = ""


@dataclass(frozen=True)
class Probe:
    """The inputs of one call, in float64. scale: a number with eight significant bits next to exp(log_scale)."""

    name: str
    image_embed: Array
    text_embed: Array
    log_scale: float
    scale: float
    bias: float

    @property
    def shape(self) -> Shape:
        """B, D."""
        return self.image_embed.shape  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        """The name with its shape, as reports print it."""
        return f"{self.name} (B={self.shape[0]}, D={self.shape[1]})"


WIDE, TALL, ONE, MANY = (9, 20), (22, 7), (1, 20), (131, 10)
COLD, WARM, HOT, BEYOND = 2.3125, 4.6875, 4.8125, 6.9375  # scales of about 10, 109, 123, 1030

POINTS = (
    Point("balanced", WIDE, COLD, None, hunts="negatives that are missing, or counted twice"),
    Point("balanced, B > D", TALL, COLD, None, hunts="B and D mixed up"),
    Point("init", TALL, COLD, -10.0, hunts="the positives' part, as a fresh model has it"),
    Point("trained", WIDE, WARM, -16.0, "far", hunts="wrong scale, at the values of released models"),
    Point("trained, B > D", TALL, WARM, -16.0, "far", hunts="wrong scale, at the values of released models"),
    Point("saturated, right", WIDE, WARM, -50.0, "own", hunts="NaN where every pair is sure and right"),
    Point("saturated, wrong", WIDE, WARM, 50.0, "crossed", hunts="NaN where most pairs are sure and wrong"),
    Point("logits to +-120", TALL, HOT, -3.0, "crossed", hunts="log-sigmoid that is not stable in float32"),
    Point("logits to +-1000", WIDE, BEYOND, -3.0, "crossed", hunts="log-sigmoid that is not stable in float64"),
    Point("one pair", ONE, COLD, -2.0, hunts="B = 1"),
    Point("duplicate captions", TALL, COLD, None, "duplicates", hunts="equal texts taken for one"),
    Point("many pairs", MANY, COLD, None, hunts="tiles and chunks that do not divide B"),
)

# For a loss that normalises its inputs: rows that are not unit.
RAW_POINTS = (
    Point("rows of many lengths", WIDE, COLD, None, lengths=(-3, 0, 1, -1, 2), hunts="normalising over a wrong axis"),
    Point("one huge row", TALL, COLD, None, lengths=(10, *(0,) * 21), hunts="lengths that leak into other rows"),
)


def loss_probes(points: Sequence[Point], dims: Dims = None) -> tuple[list[Probe], list[str]]:
    """The probes, and in words those points that `dims` rules out.

    Parameters
    ----------
    dims : multiples that a kernel needs, dict(batch=16, dim=32), or a list of (B, D) to take in turn

    Examples
    --------
    >>> probes, left_out = loss_probes(POINTS, dict(batch=16, dim=32))
    >>> probes[0].shape, left_out
    ((16, 32), ['one pair: B = 1 is no multiple of 16'])
    """
    probes, left_out = [], []
    batch, dim, listed = _read_dims(dims)
    for index, point in enumerate(points):
        pairs, width = listed[index % len(listed)] if listed else point.shape
        if not listed and point.shape == ONE and batch > 1:
            left_out.append(f"{point.name}: B = 1 is no multiple of {batch}")
            continue
        if listed and point.shape == ONE:
            pairs = 1
            if all(allowed[0] != 1 for allowed in listed):
                left_out.append(f"{point.name}: B = 1 is not among the given dims")
                continue
        probes.append(make_probe(point, (pairs, width) if listed else _fitted((pairs, width), batch, dim)))
    done = {probe.shape for probe in probes}
    probes += [make_probe(POINTS[0], shape) for shape in listed if shape not in done]
    return probes, left_out


@lru_cache(maxsize=64)
def make_probe(point: Point, shape: Shape) -> Probe:
    """The probe of a point at this shape; the same numbers every time. Its arrays are read-only."""
    pairs, width = shape
    rng = np.random.Generator(np.random.PCG64([pairs, width, 2303]))
    image = unit_rows(rng.standard_normal((pairs, width)), rng)
    text = _texts(point.texts, image, rng)
    lengths = 2.0 ** np.resize(np.array(point.lengths), pairs)[:, None]
    bias = point.bias if point.bias is not None else -short(math.log(max(pairs - 1, 2)))
    arrays = image / UNIT * lengths, text / UNIT * lengths[::-1]
    for array in arrays:
        array.flags.writeable = False
    return Probe(point.name, *arrays, point.log_scale, short(math.exp(point.log_scale)), bias)


def _texts(kind: Texts, image: Array, rng: np.random.Generator) -> Array:
    """near, far: texts resemble their images much or little; own: they are their images; crossed: half are the image's
    opposite, half the next image, so that similarities reach -1 and +1 at wrong places; duplicates: every third text
    is its neighbour's."""
    if kind == "own":
        return image
    if kind == "crossed":
        return np.where(np.arange(len(image))[:, None] % 2 == 0, -image, np.roll(image, -1, 0))
    share = 0.15 if kind == "far" else 0.6
    text = unit_rows(share * image / UNIT + 0.8 * rng.standard_normal(image.shape) / math.sqrt(image.shape[1]), rng)
    if kind == "duplicates":
        text[1::3] = text[: len(text[1::3]) * 3 : 3]
    return text


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
    first = next(n for n in (*range(start, total + 1), *range(start)) if n in table and total - n in table)
    return *table[first], *table[total - first]


@lru_cache(maxsize=1)
def _two_squares() -> dict[int, tuple[int, int]]:
    return {a * a + b * b: (a, b) for a in range(UNIT + 1) for b in range(a + 1) if a * a + b * b <= UNIT**2}


def short(number: float) -> float:
    """The nearest number with eight significant bits.

    >>> short(123.07)
    123.0
    """
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def _read_dims(dims: Dims) -> tuple[int, int, list[Shape]]:
    """Multiples of B and D, and a list of shapes; one of the two is trivial."""
    if dims is None:
        return 1, 1, []
    if isinstance(dims, Mapping):
        batch, dim = dims.get("batch", 1), dims.get("dim", 1)
        if set(dims) <= {"batch", "dim"} and all(isinstance(n, int) and n >= 1 for n in (batch, dim)):
            return batch, dim, []
    else:
        shapes = [tuple(shape) for shape in dims]
        if shapes and all(len(s) == 2 and all(isinstance(n, int) and n >= 1 for n in s) for s in shapes):
            return 1, 1, shapes  # type: ignore[return-value]
    raise UsageError(
        expected="dims as multiples, dict(batch=16, dim=32), or as a list of shapes, [(64, 128), (96, 128)]",
        got=repr(dims),
        cause="other keys, or numbers below 1",
        repair="dims=dict(batch=16, dim=32)",
    )


def _fitted(shape: Shape, batch: int, dim: int) -> Shape:
    """Rounded up to the multiples; which of B and D is the larger stays as it was."""
    pairs, width = (-(-number // multiple) * multiple for number, multiple in zip(shape, (batch, dim), strict=True))
    if shape[0] > shape[1] and pairs <= width:
        pairs = (width // batch + 1) * batch
    if shape[0] < shape[1] and width <= pairs:
        width = (pairs // dim + 1) * dim
    return pairs, width
