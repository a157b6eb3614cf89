"""The factors of a schedule as they were read off, and which other schedules have them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from siglip_ref.model.optim import cosine
from siglip_ref.ops.elementary import Array

_EARLY = "schedule-starts-at-one"
SPLITS = (2, 4, 8)  # numbers of micro-batches that are tried
_LISTED = 4
_TIMES = (2, 3, 4, 8)
_LONGEST = 64  # steps of a schedule whose length is found
_ALIKE = 1e-5


def _readings(parts: Sequence[int]) -> Iterator[tuple[str, Callable[[int], int]]]:
    """At which step a schedule may be read in place of step k: some late or early, or advanced by every micro-batch."""
    for shift in (-2, -1, 1, 2):
        yield f"schedule(k {'+' if shift > 0 else '-'} {abs(shift)})", partial(_counted, 1, shift, 1)
    for n in parts:
        yield f"schedule({n} k)", partial(_counted, n, 0, 1)
        yield f"schedule({n} (k + 1))", partial(_counted, n, n, 1)
        yield f"schedule({n} k + {n - 1})", partial(_counted, n, n - 1, 1)
        yield f"schedule(k // {n})", partial(_counted, 1, 0, n)


def _counted(factor: int, more: int, divisor: int, k: int) -> int:
    return max(0, factor * k + more) // divisor


def said_of(factors: Sequence[float], declared: Callable[[int], float]) -> str:
    """The factors of the steps in place of the declared ones, and the schedules that have them."""
    usual = [float(declared(k)) for k in range(len(factors))]
    read = f"{_listed(factors)} as the schedule's factors in place of {_listed(usual)}"
    names = _names(factors, declared, _ALIKE)
    return f"{read}: {' or '.join(dict.fromkeys(names))}" if names else read


def is_reading(factors: Sequence[float] | Array, declared: Callable[[int], float], near: float = 1e-3) -> bool:
    """Whether some reading of the schedule has about these factors."""
    return bool(_names(factors, declared, near))


def _names(factors: Sequence[float] | Array, declared: Callable[[int], float], near: float) -> list[str]:
    should, count = np.array([float(declared(k)) for k in range(_LONGEST)]), len(factors)
    others = _near(should, np.arange(count))
    return [words for words, other in others if _same(other[:count], np.asarray(factors), near)]


def _near(should: Array, k: Array) -> Iterator[tuple[str, Array]]:
    """Other readings of the declared schedule; of a cosine with a warm-up other forms, too."""
    for words, at in _readings(_TIMES):
        yield words, should[[at(one) for one in k.tolist()]]
    yield from (("its square", should**2), ("its root", np.sqrt(np.abs(should))))
    for total, warmup in _lengths(should):
        rise = np.minimum(1.0, k / warmup) if warmup else np.ones(len(k))
        past, left = np.maximum(k - warmup, 0), max(total - warmup, 1)
        late = np.maximum(k - warmup - 1, 0) / max(left - 1, 1)
        yield "a cosine counted from step 0 over all steps, times the warm-up", rise * _half(k / total)
        yield "a cosine without the warm-up", _half(k / total)
        yield "a warm-up that begins at 1, not at 0", np.minimum(1.0, (k + 1) / max(warmup, 1)) * _half(past / left)
        yield "a warm-up one step longer", np.minimum(1.0, k / (warmup + 1)) * _half(late)
        yield "a cosine that lasts all steps from the end of the warm-up", rise * _half(past / total)
        yield "a cosine that ends a step earlier", rise * _half(past / max(left - 1, 1))
        yield "a straight line in place of the cosine", rise * (1 - past / left)
        yield "the warm-up, and no decay after it", rise
        yield "a quarter of a cosine in place of half of one", rise * np.cos(np.pi / 2 * past / left)
        yield "a whole cosine in place of half of one", rise * _half(2 * past / left, 2.0)
        for least in (0.1, 0.01, 0.001):
            yield f"a cosine that ends at {least:g}, not at 0", rise * (least + (1 - least) * _half(past / left))


def _half(x: Array, most: float = 1.0) -> Array:
    return (1 + np.cos(np.pi * np.minimum(x, most))) / 2


def _lengths(should: Array) -> Iterator[tuple[int, int]]:
    """Of a cosine, how long it lasts, and its warm-up; found where it is short enough."""
    for total in range(2, _LONGEST):
        for warmup in range(total):
            if _same(np.array([float(cosine(k, total, warmup)) for k in (1, 2, total - 1)]),
                     should[[1, 2, total - 1]]):  # fmt: skip
                yield total, warmup


def _same(one: Array, other: Array, near: float = _ALIKE) -> bool:
    return bool(np.all(np.abs(one - other) <= near))


def _listed(factors: Sequence[float] | Array) -> str:
    return ", ".join(f"{factor:.4g}" for factor in factors)
