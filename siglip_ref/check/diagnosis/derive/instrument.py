"""The instrument: rows whose similarities are chosen one by one, and whose gradients are read pair by pair.

Images are the first B axes e_i; text j is (S_1j ... S_Bj, sqrt(1 - |S_j|^2) e_(B+j)). All rows are unit, image i times
text j is S_ij, and both gradients hold the slope by S_ij in a place of its own: d_text[j, i], and d_image[i, B+j]
divided by the text's private component. One rotation of all rows, so that one-hot rows are not special.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.pair_block import LossAndGrads

Call = Callable[[Array, Array, float, float], LossAndGrads]
Stretch = tuple[float | Array, float | Array]  # factors of the rows of images and of texts
_NEXT_TO_NOTHING = 1e-7  # of a similarity: the curve of a smooth loss does not show there


class StopDerivingError(Exception):
    """The experiments cannot go on; its text is a word of `Measured.kind`."""


@dataclass(frozen=True)
class Reading:
    """One call. similarity: as the rounded rows have it; of_image, of_text: each pair's slope, as that side's gradient
    holds it, None where none arrived; along_image, along_text: each row's part along itself."""

    similarity: Array
    value: float
    of_image: Array | None
    of_text: Array | None
    along_image: Array | None
    along_text: Array | None
    scale: float | None
    bias: float | None


@dataclass
class Subject:
    """A loss under experiment.

    linear : it is given the scale itself; form : "float64" or "float32", in which it is given its inputs
    batch, dim : multiples that it needs; frozen : inputs that need no gradient; most : calls, at most
    """

    call: Call
    linear: bool = False
    form: str = "float64"
    batch: int = 1
    dim: int = 1
    frozen: tuple[str, ...] = ()
    most: int = 6000
    calls: int = 0
    scalars: str = ""  # a format to which the loss rounds scale and bias: experiments use numbers of that
    noise: float = 1e-15  # of the value, relative; measured

    def given(self, log_scale: float) -> float:
        """The scale as the loss is given it."""
        return float(np.exp(log_scale)) if self.linear else log_scale

    def at(self, x: Array, y: Array, s: float, b: float) -> LossAndGrads:
        """One call, on rows that are rounded to what the loss computes in; NaN where it raises on numbers."""
        self.calls += 1
        if self.calls > self.most:
            raise StopDerivingError("calls")
        return self.call(x, y, s, b)

    def rounded(self, rows: Array) -> Array:
        """Rows as the loss is given them."""
        return rows if self.form == "float64" else rows.astype(np.float32).astype(np.float64)

    def number(self, value: float) -> float:
        """A scalar as the loss is given it."""
        return float(round_to(np.asarray(value), FORMATS[self.scalars or self.form]))

    def value(
        self, similarity: Array, s: float, b: float, images: float | Array = 1.0, texts: float | Array = 1.0
    ) -> float:
        """The loss alone, at these similarities; rows may be stretched."""
        x, y, _ = self.rows(similarity)
        return float(self.at(self.rounded(images * x), self.rounded(texts * y), s, b).loss)

    def rows(self, similarity: Array, turn: int = 0) -> tuple[Array, Array, Array]:
        """Images, texts, and the rotation that brings them back."""
        pairs = len(similarity)
        width = -(-2 * pairs // self.dim) * self.dim
        rotation = rotated(width, turn)
        private = np.sqrt(np.maximum(1 - (similarity * similarity).sum(0), 0.0))
        images, texts = np.eye(pairs, width), np.zeros((pairs, width))
        texts[:, :pairs] = similarity.T
        texts[np.arange(pairs), pairs + np.arange(pairs)] = private
        return images @ rotation, texts @ rotation, rotation

    def read(self, similarity: Array, s: float, b: float, turn: int = 0) -> Reading:
        """The loss and every pair's slopes."""
        x, y, rotation = self.rows(similarity, turn)
        x, y = self.rounded(x), self.rounded(y)
        found = self.at(x, y, s, b)
        pairs = len(similarity)
        d_x, d_y = (None if d is None else np.asarray(d) @ rotation.T for d in (found[1], found[2]))
        private = np.sqrt(np.maximum(1 - (similarity * similarity).sum(0), 0.0))
        own = np.arange(pairs)
        of_image = along_image = of_text = along_text = None
        if d_x is not None and d_x.shape == x.shape:
            of_image = d_x[:, pairs : 2 * pairs] / private
            along_image = d_x[own, own]
        if d_y is not None and d_y.shape == y.shape:
            along_text = d_y[own, pairs + own] / private
            # a loss that normalises takes the part along the row away; the private component says how much
            of_text = d_y[:, :pairs].T - along_text * similarity
        scale, bias = (None if d is None else float(d) for d in (found[3], found[4]))
        return Reading(x @ y.T, float(found.loss), of_image, of_text, along_image, along_text, scale, bias)


@lru_cache(maxsize=64)
def rotated(width: int, turn: int = 0) -> Array:
    """A random rotation, the same ones every time."""
    rng = np.random.Generator(np.random.PCG64([width, turn, 18]))
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def drawn(pairs: int, seed: int, most: float = 0.9) -> Array:
    """Similarities that are all different, each text's together shorter than 1."""
    rng = np.random.Generator(np.random.PCG64([pairs, seed, 2303]))
    found = rng.uniform(-1, 1, (pairs, pairs))
    return most * found / np.maximum(np.sqrt((found * found).sum(0)), most)


def rounding_of_scalars(subject: Subject) -> str:
    """The format to which a loss rounds its scale and bias first, "" if it does not: other numbers, the same value."""
    similarity = drawn(4, 0, 0.6)
    points = [(subject.given(log_scale), bias) for log_scale, bias in ((1.1, -2.3), (2.7, -0.7), (0.3, 1.9))]
    for form in ("bfloat16", "float16"):
        exact = [tuple(float(round_to(np.asarray(one), FORMATS[form])) for one in point) for point in points]
        if all(
            subject.value(similarity, *map(subject.number, plain)) == subject.value(similarity, s, b)
            for plain, (s, b) in zip(points, exact, strict=True)
        ):
            return form
    return ""


def measure_noise(subject: Subject, pairs: int, s: float, b: float) -> None:
    """How far the value of one set of similarities moves when the axes of the space are turned, or is uneven where they
    change by next to nothing; and whether the same call gives the same number.

    Raises
    ------
    StopDerivingError : "random" where it does not; "not a function of similarities" where turning changes it
    """
    similarity = drawn(pairs, 0, 0.6)
    first = [subject.read(similarity, s, b) for _ in range(4)]
    values = np.array([one.value for one in first])
    if not np.isfinite(values).all():
        raise StopDerivingError("not finite")
    size = max(float(np.abs(values).max()), 1e-300)
    if np.ptp(values) > 1e-6 * size:
        raise StopDerivingError("random")
    turned = np.array([subject.read(similarity, s, b, turn).value for turn in (1, 2, 3)])
    spread = float(np.abs(turned - values[0]).max()) / size
    if spread > (1e-4 if subject.form == "float64" else 1e-3):
        raise StopDerivingError("not a function of similarities")
    least = 4e-16 if subject.form == "float64" else 1.2e-7
    subject.noise = max(2 * spread, least, 2 * _unevenness(subject, similarity, s, b, values[0]) / size)


def _unevenness(subject: Subject, similarity: Array, s: float, b: float, there: float) -> float:
    """By how much steps of the same width differ in the value: logits may be exact, and rounded when they are there."""
    steps = (_NEXT_TO_NOTHING * drawn(len(similarity), seed, 1.0) for seed in (11, 12, 13, 14))
    both = ([subject.value(similarity + sign * step, s, b) for sign in (-1, 1)] for step in steps)
    return max(abs(less - 2 * there + more) for less, more in both)
