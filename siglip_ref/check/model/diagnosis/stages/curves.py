"""The curve of an MLP's activation and of its slope, read off: with weights that hand chosen numbers to it.

The first layer's kernel is zero, so that hidden unit c is its bias in every token; the second layer's is one where unit
and feature are the same. What is added to feature c is then activation(bias c), and the two biases' gradients are in
the ratio of its slope. A few known shapes with a factor and a parameter are fitted to what was read; what fits is a
hypothesis like any other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole
from siglip_ref.check.model.probe import Probe
from siglip_ref.ops.elementary import Array, erf
from siglip_ref.ops.record import Ops, Pair

_RUNS, _TINY = 6, 1e-30
_FITS, _MOST, _STEPS = 1e-4, 0.8, 30  # of the largest value, at so many points; Gauss and Newton's steps
_SMALL = 0.02  # a gradient that rounds too much to divide by


def _phi(x: Array) -> Array:
    return (1 + erf(x / np.sqrt(2))) / 2


def _tanh_gelu(x: Array, root: Any, cubic: Any) -> Array:
    return x / 2 * (1 + np.tanh(root * (x + cubic * x**3)))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


_ROOT = np.sqrt(2 / np.pi)
# text, with a parameter a or none; the function, which takes complex numbers; where the search of a begins
_SHAPES: tuple[tuple[str, Callable[[Array, Any], Array], tuple[float, ...]], ...] = (
    ("x", lambda x, a: x, ()),
    ("maximum(x, 0)", lambda x, a: np.where(x.real > 0, x, 0), ()),
    ("maximum(x, 0)**2", lambda x, a: np.where(x.real > 0, x, 0) ** 2, ()),
    ("x * sigmoid({a} * x)", lambda x, a: x * _sigmoid(a * x), (1.0, 1.7)),
    ("x * Phi({a} * x), Phi of the normal distribution,", lambda x, a: x * _phi(a * x), (1.0,)),
    ("x / 2 * (1 + tanh(sqrt(2 / pi) * (x + {a} * x**3)))", lambda x, a: _tanh_gelu(x, _ROOT, a), (0.044715,)),
    ("x / 2 * (1 + tanh({a} * (x + 0.044715 * x**3)))", lambda x, a: _tanh_gelu(x, a, 0.044715), (0.8,)),
    ("where(x > 0, x, {a} * x)", lambda x, a: np.where(x.real > 0, x, a * x), (0.1,)),
    ("where(x > 0, x, {a} * (exp(x) - 1))", lambda x, a: np.where(x.real > 0, x, a * np.expm1(x)), (1.0,)),
    ("minimum(maximum(x, 0), {a})",
     lambda x, a: np.where(x.real < 0, 0, np.where(x.real > np.real(a), a, x)), (6.0, 1.0)),
    ("clip(x, -{a}, {a})", lambda x, a: np.where(abs(x.real) > np.real(a), a * np.sign(x.real), x), (1.0, 6.0)),
    ("log(1 + exp({a} * x)) / {a}", lambda x, a: np.log(1 + np.exp(a * x)) / a, (1.0,)),
    ("x * tanh(log(1 + exp(x)))", lambda x, a: x * np.tanh(np.log(1 + np.exp(x))), ()),
    ("x * clip(x + 3, 0, 6) / 6",
     lambda x, a: np.where(x.real < -3, 0, np.where(x.real > 3, x, x * (x + 3) / 6)), ()),
    ("tanh({a} * x)", lambda x, a: np.tanh(a * x), (1.0,)),
    ("sigmoid({a} * x)", lambda x, a: _sigmoid(a * x), (1.0,)),
    ("sin({a} * x)", lambda x, a: np.sin(a * x), (1.0,)),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Of one stage: activations and slopes at x."""

    x: Array
    value: Array
    slope: Array


def read_curves(probe: Probe, again: Callable[[Probe], Run], slopes: bool = False) -> dict[str, Curve]:
    """By stage. slopes : those of blocks, too; then what the pooling head's probe reads stands in its values."""
    mlps = sorted({name.rpartition("/in/")[0] for name in probe.params if name.endswith("mlp/in/bias")})
    read: dict[str, list[Array]] = {}
    for number in range(_RUNS):
        params = {name: np.array(value) for name, value in probe.params.items()}
        for mlp in mlps:
            into, out = params[f"{mlp}/in/kernel"], params[f"{mlp}/out/kernel"]
            units = min(out.shape)
            places = np.linspace(-1, 1, units * _RUNS)[number::_RUNS]
            params[f"{mlp}/in/kernel"], params[f"{mlp}/out/bias"] = 0 * into, 0 * params[f"{mlp}/out/bias"]
            params[f"{mlp}/in/bias"] = np.zeros(len(out), into.dtype)
            params[f"{mlp}/in/bias"][:units] = 4 * places + 8 * places**7  # most of them near 0, some as far as 12
            params[f"{mlp}/out/kernel"] = np.eye(*out.shape, dtype=out.dtype)
        for part in ("kernel", "bias") if "image/pool/attn/out/bias" in params and not slopes else ():
            params[f"image/pool/attn/out/{part}"] *= 0
        run = again(replace(probe, params=params))
        for mlp in mlps:
            units = min(params[f"{mlp}/out/kernel"].shape)
            place = mlp.removesuffix("/mlp")
            after = run.activations.get(place if place.endswith("pool") else f"{place}/+mlp")
            before = 0.0 if place.endswith("pool") else run.activations.get(f"{place}/+attn")
            if after is None or before is None:
                continue
            value = np.asarray(after - before, np.float64)
            given = run.grads[f"{mlp}/out/bias"][:units]
            sure = np.abs(given) > _SMALL * np.max(np.abs(given), initial=_TINY)
            slope = np.where(sure, run.grads[f"{mlp}/in/bias"][:units] / np.where(sure, given, 1), np.nan)
            row = np.stack([params[f"{mlp}/in/bias"][:units], value.reshape(-1, value.shape[-1])[0][:units], slope])
            read.setdefault(f"{place}/+mlp" * (not place.endswith("pool")) or place, []).append(row)
    tables = {stage: np.concatenate(rows, 1).astype(np.float64) for stage, rows in read.items()}
    return {stage: Curve(*table[:, np.argsort(table[0])]) for stage, table in tables.items()}


def of_curve(curve: Curve) -> Iterator[Whole]:
    """Activations that give what was read."""
    for text, function in _fitted(curve.x, curve.value, lambda f, x: f(x)):

        def made(ops: Ops, function: Callable[[Array], Array] = function) -> Ops:
            return replace(ops, gelu=Pair(lambda x, form: (function(x), x), ops.gelu.backward))

        yield Whole(f"the activation of the MLP is {text}", "the activation gelu(x)", ops=made)


def of_slope(curve: Curve) -> Iterator[Whole]:
    """Slopes that give what was read: of another activation, one itself, a constant."""
    fits: list[tuple[str, Callable[[Array], Array]]] = []
    for text, function in _fitted(curve.x, curve.slope, _derived):
        fits.append((f"of {text}", partial(_derived, function)))
    fits += _fitted(curve.x, curve.slope, lambda f, x: f(x))
    for text, function in fits:

        def made(ops: Ops, function: Callable[[Array], Array] = function) -> Ops:
            return replace(ops, gelu=Pair(ops.gelu.forward, lambda d_out, cache: d_out * function(cache.x)))

        told = f"the slope {text}" if text.startswith("of ") else text
        yield Whole(
            f"backwards, the activation of the MLP has {told} in the place of its own", "its own slope", ops=made
        )


def _derived(function: Callable[[Array], Array], x: Array) -> Array:
    return np.asarray(function(x + 1j * _TINY).imag / _TINY)


def _fitted(
    x: Array, read: Array, at: Callable[[Callable[[Array], Array], Array], Array]
) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Shapes with a factor and a parameter that give what was read; at : of a shape, the shape or its slope."""
    known = np.isfinite(read)
    x, read = x[known], read[known]
    if len(x) < 8:
        return
    top = float(np.max(np.abs(read), initial=0.0))
    for text, shape, starts in _SHAPES:
        for start in starts or (0.0,):

            def given(a: float, shape: Callable[[Array, Any], Array] = shape) -> tuple[Array, float]:
                value = at(lambda x: shape(np.asarray(x), a), x)
                size = float(value @ value)
                return value, float(value @ read) / size if size else 0.0

            def rest(a: float, given: Callable[[float], tuple[Array, float]] = given) -> Array:
                value, factor = given(a)
                return factor * value - read

            with np.errstate(all="ignore"):
                a = _nearest(start, rest) if starts else 0.0
                factor = given(a)[1]
                near = round(factor, 2)
                factor = near if abs(near - factor) < 1e-4 else factor
                if a != 0 and abs(float(f"{a:.3g}") - a) < 1e-4 * abs(a):
                    a = float(f"{a:.3g}")
                fits = np.quantile(np.abs(factor * given(a)[0] - read), _MOST) <= _FITS * top
            if fits and factor:
                told = f"{'' if factor == 1 else f'{factor:.6g} * '}{text.format(a=f'{a:.6g}')}"
                yield told, partial(_scaled, factor, shape, a)
                break


def _scaled(factor: float, shape: Callable[[Array, Any], Array], a: float, x: Array) -> Array:
    return factor * shape(np.asarray(x), a)


def _nearest(a: float, rest: Callable[[float], Array]) -> float:
    """The parameter that leaves least, by Gauss and Newton's steps, halved where they go too far."""
    left = rest(a)
    for _ in range(_STEPS):
        step = 1e-6 * (abs(a) + 1e-3)
        slope = (rest(a + step) - left) / step
        steep = float(slope @ slope)
        move = -float(slope @ left) / steep if steep else 0.0
        while abs(move) > 1e-12 and not np.sum(np.square(rest(a + move))) < np.sum(np.square(left)):
            move /= 2
        if abs(move) <= 1e-12:
            break
        a, left = a + move, rest(a + move)
    return a
