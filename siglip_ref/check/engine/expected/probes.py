"""The inputs at which a loss is judged: chosen so that every term of it is visible somewhere.

At initialisation (scale 10, bias -10) the negatives carry under 1 % of the gradient, and a loss without them passes
common checkers; so there are other points. In bfloat16 and float16 all numbers are exact: the embeddings are rows of
integers n/256 with sum n^2 = 65536, hence exactly unit; the scalars have at most eight significant bits. In float32 and
float64 half of the probes have full mantissas, so that a loss that rounds anything to fewer bits shows it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.engine.expected.rows import Texts, rows_of
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

Shape = tuple[int, int]
Dims = Mapping[str, int] | Sequence[Shape] | None

WIDE_FORMATS = ("float64", "float32")  # whose mantissas are longer than 16 bits
_NOTHING = -math.inf  # 2 ** this is 0


@dataclass(frozen=True)
class Point:
    """Where to probe. shape (B, D) is a wish: `dims` may round it up. texts: how they lie to the images, see `rows_of`.

    bias None: the balanced bias -log(B - 1), at which positives and negatives weigh the same. full: full mantissas,
    where the format has more than 16 bits. for_its_shape: left out where multiples give another probe its shape.
    """

    name: str
    shape: Shape
    log_scale: float
    bias: float | None
    texts: Texts = "near"
    lengths: Sequence[float] = (0,)  # rows are multiplied by 2 ** these, in turn
    full: bool = False
    hunts: str = ""
    for_its_shape: bool = False

    @property
    def steep(self) -> bool:
        """With logits above 20, where a softplus is a straight line."""
        return self.log_scale >= WARM and self.texts != "tiny"


@dataclass(frozen=True, eq=False)
class Probe:
    """The inputs of one call, in float64. scale: exp(log_scale), rounded to eight bits or to a full mantissa."""

    name: str
    image_embed: Array
    text_embed: Array
    log_scale: float
    scale: float
    bias: float
    steep: bool = field(default=False, kw_only=True)

    @property
    def shape(self) -> Shape:
        """B, D."""
        return self.image_embed.shape  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        """The name with its shape, as reports print it."""
        texts = f"M={len(self.text_embed)}, " * (len(self.text_embed) != self.shape[0])
        return f"{self.name} (B={self.shape[0]}, {texts}D={self.shape[1]})"


WIDE, TALL, ONE, MANY, LONG = (9, 20), (22, 7), (1, 20), (131, 10), (6, 1031)
# No tile of 8 and more divides those: here every power of two does, up to 128 of the batch and 64 of the width, and
# nothing is left over. There are two, so that a fault in how the batch is cut is told from one in how the width is.
WHOLE, WHOLE_WIDTH = (128, 16), (9, 64)
COLD, WARM, HOT, BEYOND = 2.3125, 4.6875, 4.8125, 6.9375  # scales of about 10, 109, 123, 1030
BELOW_ONE = -0.59375  # a scale of 0.55

POINTS = (
    Point("balanced", WIDE, COLD, None, full=True, hunts="negatives that are missing, or counted twice"),
    Point("balanced, B > D", TALL, COLD, None, hunts="B and D mixed up", for_its_shape=True),
    Point("init", TALL, COLD, -10.0, full=True, hunts="the positives' part, as a fresh model has it"),
    Point("trained", WHOLE_WIDTH, WARM, -16.0, "far", full=True, hunts="wrong scale, at the values of released models"),
    Point("trained, B > D", TALL, WARM, -16.0, "far", hunts="B and D mixed up at large scales", for_its_shape=True),
    Point("saturated, right", WIDE, WARM, -50.0, "own", hunts="NaN where every pair is sure and right"),
    Point("saturated, wrong", WIDE, WARM, 50.0, "crossed", hunts="NaN where most pairs are sure and wrong"),
    Point("logits to +-120", TALL, HOT, -3.0, "crossed", full=True, hunts="log-sigmoid not stable in float32"),
    Point("logits to +-1000", WIDE, BEYOND, -3.0, "crossed", hunts="log-sigmoid that is not stable in float64"),
    Point("one pair", ONE, COLD, -2.0, full=True, hunts="B = 1"),
    Point("duplicate captions", TALL, COLD, None, "duplicates", hunts="equal texts taken for one"),
    Point("many pairs", MANY, COLD, None, full=True, hunts="tiles and chunks that do not divide B"),
    Point("zero logits", WIDE, COLD, 0.0, "axes", hunts="a softplus whose two branches meet wrongly"),
    Point("long rows", LONG, COLD, -8.0, full=True, hunts="tiles of D that drop what lies beyond"),
    # crossed, so that the gradient of the scale, a difference, is not drowned in 16 bits
    Point("small scale", WIDE, BELOW_ONE, 0.703125, "crossed", full=True, hunts="a scale or a bias cut at 0"),
    Point("whole tiles", WHOLE, COLD, None, full=True, hunts="a tail where none is left", for_its_shape=True),
)

# Where the format has more than 16 bits.
FINE_POINTS = (
    Point("numbers below 2^-14", WIDE, BEYOND, -1.0, "tiny", full=True, hunts="which of two formats of 11 bits it is"),
)

# For a loss that is given unit rows: one that normalises has no gradient at a row of zeros.
UNIT_POINTS = (
    Point("rows of zeros", WIDE, COLD, 0.0, lengths=(0, 0, _NOTHING), hunts="padding, and logits that are exactly 0"),
)

# For a loss that normalises its inputs: rows that are not unit.
RAW_POINTS = (
    Point("rows of many lengths", WIDE, COLD, None, lengths=(-3, 0, 1, -1, 2), full=True, hunts="a wrong axis"),
    Point("one huge row", TALL, COLD, None, lengths=(10, *(0,) * 21), hunts="lengths that leak into other rows"),
)

# For the softmax loss, which no bias reaches: a sum of exponentials of which every one is zero, unless shifted.
SOFTMAX_POINTS = (
    Point("logits about -1000", WIDE, BEYOND, -3.0, "opposite", full=True, hunts="a maximum that starts at 0"),
)


def points_of(embeddings: str, dtype: str) -> tuple[Point, ...]:
    """The standard points of a loss that is given "unit" or "raw" rows, in this dtype.

    >>> [len(points_of("unit", dtype)) for dtype in ("bfloat16", "float32")]
    [17, 18]
    """
    fine = FINE_POINTS if dtype in WIDE_FORMATS else ()
    return POINTS + fine + (RAW_POINTS if embeddings == "raw" else UNIT_POINTS)


def loss_probes(
    points: Sequence[Point], dims: Dims = None, dtype: str = "bfloat16", scalar_dtype: str = "float32"
) -> tuple[list[Probe], list[str]]:
    """The probes, and in words those points that `dims` rules out.

    Parameters
    ----------
    dims : multiples that a kernel needs, dict(batch=16, dim=32), or a list of (B, D) to take in turn
    dtype, scalar_dtype : of products, and of scale and bias; see `make_probe`

    Examples
    --------
    >>> probes, left_out = loss_probes(POINTS, dict(batch=16, dim=32))
    >>> probes[0].shape, left_out
    ((16, 32), ['one pair: B = 1 is no multiple of 16'])
    """
    probes, left_out = [], []
    batch, dim, listed = read_dims(dims)
    taken = set() if listed or not dims else {fitted(p.shape, batch, dim) for p in points if not p.for_its_shape}
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
        shape = (pairs, width) if listed else fitted((pairs, width), batch, dim)
        if point.for_its_shape and (shape in taken or (listed and point.shape == WHOLE)):
            continue
        probes.append(make_probe(point, shape, dtype, scalar_dtype))
    done = {probe.shape for probe in probes}
    probes += [make_probe(POINTS[0], shape, dtype, scalar_dtype) for shape in listed if shape not in done]
    return probes, left_out


@lru_cache(maxsize=256)
def make_probe(point: Point, shape: Shape, dtype: str = "bfloat16", scalar_dtype: str = "float32") -> Probe:
    """The probe of a point at this shape; the same numbers every time. Its arrays are read-only.

    Parameters
    ----------
    dtype, scalar_dtype : a full point in float32 or float64 has full mantissas of that format; its scale and bias too,
        if theirs is one of the two. Everything else is exact in bfloat16 and float16
    """
    pairs, width = shape
    full = dtype if point.full and dtype in WIDE_FORMATS else None
    rng = np.random.Generator(np.random.PCG64([pairs, width, 2303]))
    lengths = 2.0 ** np.resize(np.array(point.lengths, float), pairs)[:, None]
    image, text = rows_of(point.texts, pairs, width, full, rng)
    if full and len(point.lengths) > 1:  # by powers of two alone a length would have no mantissa, and no rounding
        lengths = lengths * (1 + (13 * np.arange(pairs)[:, None] % 31) / 37)
    image, text = image * lengths, text * lengths[::-1]
    if full:
        image, text = round_to(image, FORMATS[full]), round_to(text, FORMATS[full])
    for array in (image, text):
        array.flags.writeable = False
    return Probe(point.name, image, text, *make_scalars(point, pairs, full, scalar_dtype), steep=point.steep)


def make_scalars(point: Point, pairs: int, full: str | None, scalar_dtype: str) -> tuple[float, float, float]:
    """log_scale, scale and bias of a point: near its own, with full mantissas, or with eight bits."""
    bias = point.bias if point.bias is not None else -math.log(max(pairs - 1, 2))
    if full and scalar_dtype in WIDE_FORMATS:
        log_scale, bias = (_long(number * (1 + 1 / 389), scalar_dtype) for number in (point.log_scale, bias))
        return log_scale, _long(math.exp(log_scale), scalar_dtype), bias
    return point.log_scale, short(math.exp(point.log_scale)), short(bias)


def _long(number: float, form: str) -> float:
    """The number in a wide format, from 48 bits: those of an exponential or a logarithm on which all machines agree.

    >>> _long(2.3125 * (1 + 1 / 389), "float32"), _long(-0.0, "float64")
    (2.3184447288513184, -0.0)
    """
    mantissa, exponent = math.frexp(number)
    steady = math.copysign(math.ldexp(round(mantissa * 2**48), exponent - 48), number)
    return float(round_to(np.array(steady), FORMATS[form]))


def short(number: float) -> float:
    """The nearest number with eight significant bits.

    >>> short(123.07)
    123.0
    """
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def read_dims(dims: Dims) -> tuple[int, int, list[Shape]]:
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
    others = [key for key in dims if key not in ("batch", "dim")] if isinstance(dims, Mapping) else []
    raise UsageError(
        expected="dims as multiples, dict(batch=16, dim=32), or as a list of shapes, [(64, 128), (96, 128)]",
        got=repr(dims),
        cause=f"other keys: {', '.join(map(str, others))}" if others else "",
        repair="dims=dict(batch=16, dim=32)",
    )


def fitted(shape: Shape, batch: int, dim: int) -> Shape:
    """Rounded up to the multiples; which of B and D is the larger stays as it was."""
    pairs, width = (-(-number // multiple) * multiple for number, multiple in zip(shape, (batch, dim), strict=True))
    if shape[0] > shape[1] and pairs <= width:
        pairs = (width // batch + 1) * batch
    if shape[0] < shape[1] and width <= pairs:
        width = (pairs // dim + 1) * dim
    return pairs, width
