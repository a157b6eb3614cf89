"""Ways in which a program's numbers are none: a grammar, and what each way makes of an array."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import pytest

Array = Any
Target = Literal[
    "loss", "gradient", "gradients", "logits", "embedding", "tower", "weights", "scale", "bias", "everything"
]
TARGETS: tuple[Target, ...] = (
    "loss",
    "gradient",
    "gradients",
    "logits",
    "embedding",
    "tower",
    "weights",
    "scale",
    "bias",
    "everything",
)
EXTENTS = ("one element", "one row", "all")
# At every probe, only where logits are steep, only at one of the others, only when it is called again.
WHEN = ("always", "extreme", "once", "again")
HUGE = np.float64(3e38)


def _computed(make: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """In the arithmetic of the array itself, as a program would come to it."""

    def value(like: Array) -> Array:
        with np.errstate(all="ignore"):
            return make(np.zeros((), np.asarray(like).dtype))

    return value


VALUES: dict[str, Callable[[Array], Array]] = {
    "NaN": lambda like: np.nan,
    "infinity": lambda like: np.inf,
    "minus infinity": lambda like: -np.inf,
    "0 / 0": _computed(lambda zero: zero / zero),
    "0 * infinity": _computed(lambda zero: zero * np.asarray(np.inf, zero.dtype)),
    "log 0": _computed(np.log),
    "an overflow": _computed(lambda zero: np.exp(zero + np.asarray(2e4, zero.dtype))),
    "infinity - infinity": _computed(lambda zero: np.asarray(np.inf, zero.dtype) - np.asarray(np.inf, zero.dtype)),
}


@dataclass(frozen=True)
class Way:
    """What is put where, how far it reaches, and at which calls."""

    value: str
    target: Target
    extent: str
    when: str

    def __str__(self) -> str:
        return f"{self.value} in {self.target}, {self.extent}, {self.when}"

    def spoil(self, array: Array) -> Array:
        """A copy with the value in it, in the middle."""
        spoilt = np.array(array)
        value = VALUES[self.value](spoilt)
        if self.extent == "all" or spoilt.ndim == 0:
            spoilt[...] = value
        elif self.extent == "one row" and spoilt.ndim > 1:
            spoilt[len(spoilt) // 2] = value
        else:
            spoilt[tuple(size // 2 for size in spoilt.shape)] = value
        assert not np.isfinite(spoilt.astype(np.float64)).all()
        return spoilt


def ways(number: int = 200, seed: int = 0) -> list[Way]:
    """So many of them, spread over the whole grammar: every value of every part is there about equally often."""
    whole = [Way(*parts) for parts in product(VALUES, TARGETS, EXTENTS, WHEN)]
    random = np.random.default_rng(seed)
    order = [whole[k] for k in random.permutation(len(whole))]
    counts: dict[tuple[str, str], int] = {}
    chosen: list[Way] = []
    for _ in range(number):
        # the one whose parts are the rarest so far, in pairs
        best = min(order, key=lambda way: sum(counts.get(pair, 0) for pair in _pairs(way)))
        order.remove(best)
        chosen.append(best)
        for pair in _pairs(best):
            counts[pair] = counts.get(pair, 0) + 1
    return chosen


def _pairs(way: Way) -> Iterator[tuple[str, str]]:
    parts = (way.value, way.target, way.extent, way.when)
    for k, one in enumerate(parts):
        yield from ((one, other) for other in parts[k + 1 :])


class Calls:
    """Whether a call, known by its inputs, is one at which a way strikes."""

    def __init__(self, when: str) -> None:
        self.when, self.seen = when, {}  # type: ignore[var-annotated]

    def strike(self, *inputs: Array) -> bool:
        image, text, log_scale, bias = (np.asarray(x, np.float64) for x in inputs)
        key = b"".join(np.ascontiguousarray(x).tobytes() for x in (image, text, log_scale, bias))
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.when == "extreme":
            scale = np.exp(min(float(log_scale), 20.0))
            return bool(np.abs(scale * image @ text.T + bias).max() > 20)
        if self.when == "once":
            return bool(abs(float(bias) + 10) < 0.5)  # a fresh model's
        if self.when == "again":  # once to find the convention, once at the probe itself
            return bool(self.seen[key] > 2)
        return True


def cases(targets: Collection[str], few: int, dtypes: Sequence[str] = ("float32",), every: int = 1) -> list[Any]:
    """Parameters (way, dtype, whole) for a test: every way that has a place in this check, in every dtype.

    few : how many of them run always, in float32; the others nightly
    every : of the ways, each so-many-th

    whole : whether what explains a failure runs, too: in one dtype of each way, as it costs more than all the rest
    """
    found = []
    for number, way in enumerate([way for way in ways() if way.target in targets][::every]):
        for k, dtype in enumerate(dtypes):
            always = number < few and dtype == "float32"
            marks = () if always else pytest.mark.nightly
            whole = k == number % len(dtypes)
            found.append(pytest.param(way, dtype, whole, marks=marks, id=f"{way}, {dtype}"))
    return found
