"""Optimisers as specification: Torch's AdamW, and big_vision's Adafactor with everything around it.

Pure functions in the arithmetic of the parameters, like the operations: nothing is written in place, balls prove the
published steps. Settings are float64 numbers; what follows from them alone (bias corrections, schedules) is computed in
float64 or balls and rounded last, because 1 - 0.999 in float32 would already be off by 5e-5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from siglip_ref.architecture.params import Params, shapes
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array, number, pi

Chosen = Callable[[str], bool]  # a choice of parameters by name
Rates = Callable[[str], float]  # factors by name


def kernels(name: str) -> bool:
    """What SigLIP decays: matrices of linear layers; not embeddings, positions, probe, norms, biases, scale."""
    return name.endswith("/kernel")


def matrices(name: str) -> bool:
    """What open_clip decays: all that has two or more axes, but for positions: token embedding and probe, too."""
    return name.endswith(("/kernel", "/token", "/probe"))


def nothing(name: str) -> bool:
    return False


def alike(name: str) -> float:
    """One learning rate for all."""
    return 1.0


@dataclass(frozen=True)
class AdamW:
    """Settings of `adamw_step`, named and preset as Torch's.

    max_norm: clip the gradient's length to this. rates: a factor on lr, and so on the decay, by a parameter's name; 0
    for what the optimiser was not given, though its gradient counts in the clip.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decay: float = 1e-2
    max_norm: float | None = None
    clip_eps: float = 1e-6  # Torch's clip_grad_norm_ adds it to the length
    decays: Chosen = field(default=kernels)
    frozen: Chosen = field(default=nothing)
    rates: Rates = field(default=alike)


@dataclass(frozen=True)
class BigVision:
    """Settings of `big_vision_step`. SigLIP: beta2_cap 0.95; big_vision's default 0.999.

    decay is not multiplied by lr: AdamW's decay would be decay / lr. smallest: both axes must have this size to be
    factored. rates: a factor on lr by a parameter's name, big_vision's lr_mults: not on the decay.
    """

    lr: float = 1e-3
    beta2_cap: float = 0.95
    power: float = 0.8
    momentum: float = 0.9
    eps: float = 1e-30
    decay: float = 1e-4
    max_norm: float | None = 1.0
    smallest: int = 32
    decays: Chosen = field(default=kernels)
    frozen: Chosen = field(default=nothing)
    rates: Rates = field(default=alike)


class State(NamedTuple):
    """Steps done, and the running means by name ("first/" or "second/" and the parameter); absent ones are zero."""

    steps: int = 0
    slots: Mapping[str, Array] = {}


def adamw_step(
    params: Mapping[str, Array], grads: Mapping[str, Array], state: State, rule: AdamW, schedule: Array = 1.0
) -> tuple[Params, State]:
    """One step of AdamW.

    Parameters
    ----------
    params, grads : dict, name -> array
    state : `State()` before the first step, then what the last step returned
    rule : the settings
    schedule : multiplies lr, and so the decay too

    Returns
    -------
    params, state : after the step

    Source: Loshchilov and Hutter 2019, algorithm 2; torch.optim.AdamW (eps after the bias correction) and
    torch.nn.utils.clip_grad_norm_.

    Examples
    --------
    >>> p, _ = adamw_step({"w/kernel": np.ones(1)}, {"w/kernel": np.full(1, 5.0)}, State(), AdamW(lr=0.1, decay=0.5))
    >>> round(float(p["w/kernel"][0]), 6)
    0.85
    """
    steps = state.steps + 1
    grads = clip(grads, rule.max_norm, rule.clip_eps, rule.frozen)
    moved, slots = dict(params), dict(state.slots)
    for name in grads:
        p, g = params[name], grads[name]
        rate = rule.rates(name) * schedule
        beta1, beta2, lr = _wide(rule.beta1, p), _wide(rule.beta2, p), _wide(rule.lr, p) * rate
        decay = _wide(rule.decay if rule.decays(name) else 0.0, p)
        first = _narrow(beta1, p) * slots.get(f"first/{name}", 0 * p) + _narrow(1 - beta1, p) * g
        second = _narrow(beta2, p) * slots.get(f"second/{name}", 0 * p) + _narrow(1 - beta2, p) * (g * g)
        # both means start at zero: divided by 1 - beta^steps, they are means of what was seen
        length = np.sqrt(second) / _narrow(np.sqrt(1 - _power(beta2, steps)), p) + rule.eps
        step = _narrow(lr / (1 - _power(beta1, steps)), p)
        moved[name] = p * _narrow(1 - lr * decay, p) - step * (first / length)
        slots[f"first/{name}"], slots[f"second/{name}"] = first, second
    return moved, State(steps, slots)


def big_vision_step(
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: State,
    rule: BigVision,
    schedule: Array = 1.0,
    layout: Mapping[str, tuple[int, ...]] | None = None,
    keep: Callable[[Array], Array] = lambda momentum: momentum,
) -> tuple[Params, State]:
    """One step of big_vision's chain: clip, Adafactor, momentum, lr, decay, schedule.

    Parameters
    ----------
    params, grads, state, rule : as in `adamw_step`
    schedule : multiplies the whole step, see `cosine`
    layout : shapes in which second moments are factored, see `big_vision_shapes` (None: the parameters' own)
    keep : how the momentum is stored between steps; big_vision rounds it to bfloat16

    Source: big_vision/optax.py, `make` and `scale_by_adafactor`; Zhai et al. 2022, section 3.4.
    """
    steps = state.steps + 1
    grads = clip(grads, rule.max_norm, 0.0, rule.frozen)
    moved, slots = dict(params), dict(state.slots)
    for name in grads:
        p, shape = params[name], (layout or {}).get(name, params[name].shape)
        cap, rate = _wide(rule.beta2_cap, p), 1 - _power(_wide(steps, p), -_wide(rule.power, p))
        rate = np.where(rate < cap, rate, cap)
        update, second = _factored(grads[name].reshape(shape), name, slots, rate, rule)
        momentum = _wide(rule.momentum, p)
        first = _narrow(momentum, p) * slots.get(f"first/{name}", 0 * p)
        first = first + _narrow(1 - momentum, p) * update.reshape(p.shape)
        rate = rule.rates(name)
        step = _narrow(_wide(rule.lr, p) * rate, p) * first
        if rule.decays(name):
            step = step + _narrow(_wide(rule.decay, p), p) * p
        moved[name] = p - _narrow(_wide(1, p) * schedule, p) * step
        slots |= second | {f"first/{name}": keep(first)}
    return moved, State(steps, slots)


def clip(grads: Mapping[str, Array], max_norm: float | None, eps: float, frozen: Chosen = nothing) -> Params:
    """Shorten all gradients together to length max_norm (None: not at all); frozen ones are dropped and do not count.

    eps 0 is big_vision's rule; Torch adds 1e-6 to the length and so also shortens gradients just below max_norm.
    """
    kept = {name: g for name, g in grads.items() if not frozen(name)}
    if max_norm is None:
        return kept
    factor = max_norm / np.maximum(norm(kept) + eps, max_norm)  # exactly 1 for short gradients
    return {name: factor * g for name, g in kept.items()}


def norm(grads: Mapping[str, Array]) -> Array:
    """Length of all gradients as one vector; over ranks: the root of the sum of their squares, not a mean."""
    return np.sqrt(sum((g * g).sum() for g in grads.values()))


def cosine(step: int, total: int, warmup: int, like: Array | None = None) -> Array:
    """The schedule's factor at step 0, 1, ...: linear warm-up times half a cosine.

    With a warm-up the first step is exactly zero, decay included.

    Source: big_vision/utils.py, create_learning_rate_schedule.

    >>> [round(float(cosine(step, 4, 2)), 3) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    one = number(1, np.zeros(()) if like is None or like.dtype != object else like)
    progress = one * min(max(step - warmup, 0), total - warmup) / (total - warmup)
    return (1 + np.cos(pi(one) * progress)) / 2 * (min(step, warmup) * one / warmup if warmup else one)


def big_vision_shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters in big_vision, which decide how second moments are factored: attention kernels keep
    their heads apart, the patch kernel its rows and columns."""
    native = {}
    for name, shape in shapes(cfg).items():
        heads = (cfg.image if name.startswith("image/") else cfg.text).heads
        if name.endswith(("/q/kernel", "/k/kernel", "/v/kernel")):
            shape = (shape[0], heads, shape[1] // heads)
        elif name.endswith("attn/out/kernel"):
            shape = (heads, shape[0] // heads, shape[1])
        elif name == "image/patch/kernel":
            shape = (cfg.patch, cfg.patch, 3, shape[1])
        native[name] = shape
    return native


def _factored(
    g: Array, name: str, slots: Mapping[str, Array], rate: Array, rule: BigVision
) -> tuple[Array, dict[str, Array]]:
    """g divided by the root of its second moment, which is kept as means over rows and columns if both are long."""
    old, new = _narrow(rate, g), _narrow(1 - rate, g)

    def mean(key: str, now: Array) -> Array:
        return old * slots.get(f"{key}/{name}", 0 * now) + new * now

    square = g * g + rule.eps
    axes = sorted(range(g.ndim), key=lambda axis: g.shape[axis])  # ties: the later axis counts as larger
    if g.ndim < 2 or g.shape[axes[-2]] < rule.smallest:
        full = mean("second", square)
        return g / np.sqrt(full), {f"second/{name}": full}
    shorter, longer = axes[-2:]
    row = mean("row", square.mean(longer, keepdims=True))
    column = mean("column", square.mean(shorter, keepdims=True))
    update = g / np.sqrt(row / row.mean(shorter, keepdims=True)) / np.sqrt(column)
    return update, {f"row/{name}": row, f"column/{name}": column}


def _wide(value: float, like: Array) -> Array:
    """The setting as a number that can carry the coefficients: a ball among balls, else float64."""
    return number(0, like) + value if like.dtype == object else np.asarray(value, np.float64)


def _narrow(value: Array, like: Array) -> Array:
    """The finished coefficient in the arithmetic of `like`."""
    return value if like.dtype == object else np.asarray(value).astype(like.dtype)


def _power(base: Array, exponent: Array) -> Array:
    return np.exp(exponent * np.log(base)) if base.dtype == object else base**exponent
