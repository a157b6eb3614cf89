"""A twin is judged by noise: what the specification itself loses in the same precision, against more digits."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def leaves(result: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a result, with a name: tuples and dicts are opened."""
    if isinstance(result, dict):
        for key, value in result.items():
            yield from leaves(value, f"{name}/{key}")
    elif isinstance(result, tuple):
        for index, value in enumerate(result):
            yield from leaves(value, f"{name}[{index}]")
    elif result is not None:
        yield name, np.asarray(result)


def widen(value: Any) -> Any:
    """The same inputs in more digits: float32 becomes float64, float64 becomes longdouble."""
    if isinstance(value, dict):
        return {key: widen(item) for key, item in value.items()}
    wider = {"f": np.float64, "d": np.longdouble}
    return value.astype(wider[value.dtype.char]) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def shake(value: Any, rng: np.random.Generator, eps: float) -> Any:
    """The same inputs, every number moved by up to one unit of rounding."""
    if isinstance(value, dict):
        return {key: shake(item, rng, eps) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value * (1 + eps * rng.uniform(-1, 1, value.shape).astype(value.dtype))
    return value


def error(got: np.ndarray, exact: np.ndarray) -> float:
    """max |got - exact| / max |exact|; NaN if either has one."""
    scale = np.abs(exact).max(initial=0)
    return float(np.abs(got - exact).max(initial=0) / (scale if scale > 0 else 1))


# How often the inputs are moved: what once makes of a handful of numbers says little. With one move and 4 times the
# noise, every tenth run with other random sizes failed somewhere, by a third at most; with these, none of 90.
SHAKES, TIMES = 4, 8


def assert_within_noise(
    twin: Callable[..., Any],
    specification: Callable[..., Any],
    *inputs: Any,
    terms: dict[str, float] | None = None,
) -> None:
    """The twin returns the specification's shapes and precision, and loses at most TIMES the noise, or 8 eps.

    Noise is what the specification loses, from these inputs and from others that are off by their rounding.
    terms: of sums that may cancel, how large their terms are together; what is left of 1 - 1 depends on the order.
    """
    found, plain = dict(leaves(twin(*inputs))), dict(leaves(specification(*inputs)))
    wide = [widen(value) for value in inputs]
    exact = dict(leaves(specification(*wide)))
    rng, eps = np.random.default_rng(0), float(np.finfo(next(iter(plain.values())).dtype).eps)
    moved = [dict(leaves(specification(*[shake(value, rng, eps) for value in inputs]))) for _ in range(SHAKES)]
    assert found.keys() == plain.keys()
    largest = max(float(np.abs(truth).max(initial=0)) for truth in exact.values())
    for name, got in found.items():
        same, truth = plain[name], exact[name]
        assert (got.shape, got.dtype) == (same.shape, same.dtype), name
        if name.endswith("/k/bias"):  # a gradient that is zero by structure: only noise is left
            assert float(np.abs(got).max()) <= 1000 * eps * largest, name
            continue
        allowed = TIMES * max(error(near[name], truth) for near in (plain, *moved)) + 8 * eps
        if terms and name in terms and np.abs(got - truth) <= 8 * eps * terms[name]:
            continue
        assert error(got, truth) <= allowed, f"{name}: {error(got, truth):.3g}, allowed {allowed:.3g}"
