"""Rounding noise, measured: how far apart correct programs are, and so how far from exact a correct one may be.

The noise of a tensor is the largest error of the specification itself, run in rounded arithmetic many times: with
stochastic rounding (other programs round at other places: their errors are as good as random), and to nearest in
every variant that correct programs choose: order of summation, fused multiply-add, fused kernels, forms of the loss.
Stochastic runs alone are not enough: equal rows (padding, duplicate captions) round alike, and their errors add up.

Where a result is rounded at all, one unit roundoff is its floor. The tolerance is a stated multiple of the noise.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, Format, Order, Rounding, round_to, rounded
from siglip_ref.arithmetic.variants import PLAIN, LossForm, Variant, fused, pair_block, softmax_loss
from siglip_ref.ops.elementary import Array

TIMES = (
    6.0  # tolerance / noise: held-out Torch and JAX losses stay below half, see tests/interop/test_noise_calibration.py
)
LIBRARY = 4.0  # unit roundoffs by which exp, log1p, tanh, erf of a good library may all err to one side
# noise in float64 over noise in float32: twice the ratio of the units, as XLA's float64 functions err by more units
FLOAT64 = 2.0**-28
STOCHASTIC_RUNS = 4  # of each kind
DROWNED = 0.5  # noise of a row by its size: from here on nothing of it can be judged
UNLIKE = 8.0  # times what the middle row shows: such a row is no measure for the others
ORDERS: tuple[tuple[Order, bool], ...] = (("sequential", True), ("reversed", False), ("pairwise", False))
# positives, scale first, sigmoid by the logarithm: see `pair_block`
LOSS_FORMS: tuple[LossForm, ...] = (
    ("signed", True, False),
    ("signed", False, True),
    ("subtracted", False, False),
    ("subtracted", True, True),
    ("apart", False, True),
    ("apart", True, False),
)
RUNNING = LOSS_FORMS[1], LOSS_FORMS[4]  # of these sums one term after the other are looked at

Compute = Callable[[dict[str, Array], Variant], Mapping[str, Array]]


@dataclass(frozen=True)
class Regime:
    """What a program computes in. kernels: operations that the regime computes in float32 whatever their input."""

    rounding: Rounding
    kernels: tuple[str, ...] = ()
    source: str = ""


def _autocast(form: Format) -> Rounding:
    return Rounding(FORMATS["float32"], product_in=form, product_out=form)


# Torch's autocast on CPU: products in the narrow format, everything else in what it is given; read off torch 2.13 by
# tests/interop/test_autocast_table.py. On CUDA, modelled after the documentation of torch.amp, not measured: norms,
# softmax, exp and log also in float32.
_ON_CUDA = ("layer_norm_forward", "layer_norm_backward", "softmax_forward", "softmax_backward", "softplus", "sigmoid")
REGIMES = {
    "float32": Regime(Rounding(FORMATS["float32"])),
    "tf32": Regime(Rounding(FORMATS["float32"], product_in=FORMATS["tf32"]), source="modelled"),
    "bfloat16 products": Regime(Rounding(FORMATS["float32"], product_in=FORMATS["bfloat16"]), source="modelled"),
    "bfloat16": Regime(Rounding(FORMATS["bfloat16"])),
    "float16": Regime(Rounding(FORMATS["float16"])),
    "autocast bfloat16 on cpu": Regime(_autocast(FORMATS["bfloat16"])),
    "autocast float16 on cpu": Regime(_autocast(FORMATS["float16"])),
    "autocast bfloat16 on cuda": Regime(_autocast(FORMATS["bfloat16"]), _ON_CUDA, "modelled"),
    "autocast float16 on cuda": Regime(_autocast(FORMATS["float16"]), _ON_CUDA, "modelled"),
}


@dataclass(frozen=True)
class Noise:
    """absolute: by tensor, a number or one per row; overflows: tensors at which the specification leaves the range."""

    absolute: dict[str, Array]
    overflows: frozenset[str]


def variants(
    regime: Regime, seed: int = 0, few: bool = False, running: bool = False
) -> Iterator[tuple[Rounding, Variant]]:
    """How correct programs compute: a rounding, and the operations; `few`: one run of each kind instead of several;
    `running`: sums over pairs that run on, too."""
    narrow = regime.rounding.format.bits < 24
    unfused = fused(regime.kernels)
    kernels = fused() if narrow else unfused
    for order, fma in ORDERS:
        for ops in (unfused, kernels)[: 1 + narrow]:
            yield replace(regime.rounding, order=order, fma=fma), ops
    for bias in (-LIBRARY, LIBRARY):
        yield replace(regime.rounding, library=bias), unfused
    random = np.random.default_rng(seed)
    for form_of_loss, tiles in product(LOSS_FORMS, (1,) if few else (1, 3)):
        again = tiles > 1 or (few and form_of_loss is LOSS_FORMS[0])  # a loss may: see `tolerance`
        form = replace(in_the_form(form_of_loss, unfused), tiles=tiles, normalises_again=again)
        if not few:
            yield regime.rounding, form
        for _ in range(1 if few else STOCHASTIC_RUNS // 2):
            yield replace(regime.rounding, random=random), form
    if running and not (
        few or narrow
    ):  # equal terms, each divided by B, err alike in a running sum that has no more bits
        for form_of_loss in RUNNING:
            yield replace(regime.rounding, order="sequential"), in_the_form(form_of_loss, unfused)
    for _ in range(1 if few else STOCHASTIC_RUNS):
        for ops in (unfused, kernels)[: 1 + narrow]:
            yield replace(regime.rounding, fma=False, random=random), ops


def in_the_form(form_of_loss: LossForm, ops: Variant) -> Variant:
    """These operations, with a loss in one of its equal forms."""
    block, softmax = pair_block(*form_of_loss), softmax_loss(*form_of_loss)
    return replace(ops, pair_block=block, softmax_loss=softmax, form_of_loss=form_of_loss)


def measure(
    compute: Compute,
    arrays: Mapping[str, Array],
    exact: Mapping[str, Array],
    regime: str,
    *,
    scalars: str | None = None,
    by_row: bool = False,
    few: bool = False,
    seed: int = 0,
) -> Noise:
    """The noise of everything `compute` returns.

    Parameters
    ----------
    compute : (arrays, ops) -> dict, name -> tensor; computes with `ops` in the arithmetic of the arrays
    arrays : float64, exact in the regime's format (for "float64", any)
    exact : what `compute` returns, without rounding
    regime : a key of REGIMES, or "float64": measured in float32 and scaled, since rounding errors scale with the unit
    scalars : format of the 0-d arrays, if another
    by_row : one number per row (along the last axis) instead of one per tensor
    few : one run of each kind; enough for tensors of many elements

    Examples
    --------
    >>> third = measure(lambda a, ops: {"y": a["x"] / 3}, {"x": np.ones(1)}, {"y": np.array([1 / 3])}, "bfloat16")
    >>> bool(2**-10 < third.absolute["y"] < 2**-8)
    True
    """
    if regime == "float64":
        return in_float64(
            compute,
            arrays,
            exact,
            by_row,
            lambda near, there: measure(compute, near, there, "float32", by_row=by_row, few=few, seed=seed),
        )

    def runs() -> Iterator[Mapping[str, Array]]:
        for rounding, ops in variants(REGIMES[regime], seed, few, running=by_row):
            of_scalars = replace(rounding, format=FORMATS[scalars]) if scalars else rounding
            yield compute({n: rounded(v, rounding if v.ndim else of_scalars) for n, v in arrays.items()}, ops)

    return noise_of(runs(), arrays, exact, regime, by_row)


def in_float64(
    compute: Compute,
    arrays: Mapping[str, Array],
    exact: Mapping[str, Array],
    by_row: bool,
    single: Callable[[dict[str, Array], Mapping[str, Array]], Noise],
) -> Noise:
    """The noise in float64, from that in float32.

    Parameters
    ----------
    single : (arrays that are exact in float32, what `compute` returns of them without rounding) -> the noise there
    """
    near = {name: round_to(value, FORMATS["float32"]) for name, value in arrays.items()}
    same = all(np.array_equal(near[name], arrays[name]) for name in arrays)
    with np.errstate(all="ignore"):
        there = exact if same else {n: np.asarray(v) for n, v in compute(dict(near), PLAIN).items()}
    scaled = {name: noise * FLOAT64 for name, noise in single(near, there).absolute.items()}
    # a number far below the unit of float32 is lost there as a whole, which says nothing of float64: there, too,
    # sigmoid(l) - 1 is zero from l = 37 on
    for form_of_loss in LOSS_FORMS:
        form = in_the_form(form_of_loss, PLAIN)
        with np.errstate(all="ignore"):
            got = compute(dict(arrays), form)
            errors = {name: _reach(np.asarray(value) - exact[name], by_row) for name, value in got.items()}
        scaled |= {n: np.where(np.isfinite(e), np.maximum(scaled[n], e), scaled[n]) for n, e in errors.items()}
    return Noise(scaled, frozenset(name for name, value in exact.items() if not np.isfinite(value).all()))


def noise_of(
    runs: Iterable[Mapping[str, Array]],
    arrays: Mapping[str, Array],
    exact: Mapping[str, Array],
    regime: str,
    by_row: bool,
) -> Noise:
    """The largest errors of some runs of a program, each of which returned every tensor."""
    form = REGIMES[regime].rounding.product_out or REGIMES[regime].rounding.format
    terms = max(value.size for value in arrays.values())
    noise = {name: form.unit * _reach(value, by_row) + terms * form.flushed for name, value in exact.items()}
    overflows = set()
    with np.errstate(all="ignore"):
        for run in runs:
            for name, value in run.items():
                error = _reach(np.asarray(value).view(np.ndarray) - exact[name], by_row)
                finite = np.isfinite(error)
                overflows |= set() if finite.all() else {name}
                noise[name] = np.where(finite, np.maximum(noise[name], error), noise[name])
    if by_row:
        noise = {name: _none_spared(level, _reach(exact[name], by_row)) for name, level in noise.items()}
    return Noise(noise, frozenset(overflows))


def _none_spared(noise: Array, size: Array) -> Array:
    """A row that chance spared in every run is given half of what the worst of its like shows.

    A rare rounding (one in twenty rows, say) may miss a row in a few dozen runs and hit it in a user's program. Half of
    the worst relative to their sizes, and half of the worst outright, whichever is less: so the tensor's noise stays as
    it was measured. Rows that rounding drowns are no measure for others, nor is one that shows far more than most.
    """
    relative = np.divide(noise, size, out=np.full(np.shape(noise), np.inf), where=size > 0)
    alike = relative[relative < DROWNED]
    if not alike.size:
        return noise
    worst = alike[alike <= UNLIKE * np.median(alike)].max()
    return np.maximum(noise, np.minimum(worst * size, noise.max()) / 2)


def _reach(x: Array, by_row: bool) -> Array:
    """Largest absolute value: of each row, or of all."""
    size = np.abs(x)
    return size.max(-1, keepdims=True) if by_row and x.ndim else size.max(initial=0.0)


@lru_cache(maxsize=64)
def announce(what: str) -> None:
    """One line on stderr, once a process: a measurement takes seconds, and what is standard ships measured."""
    print(f"siglip-ref: measuring the rounding noise of {what} (not precomputed), once per process", file=sys.stderr)
