"""AdamW and the clip to a global norm, fused over all parameters, which lie one after another in memory."""

import math
from collections.abc import Iterator, Mapping
from operator import is_
from typing import Any, TypeGuard

import numpy as np
from numba import prange

from siglip_ref.fast.linear import part
from siglip_ref.fast.machine.compile import COUNT, SUMS, ZERO, kernel
from siglip_ref.fast.machine.fit import same_precision
from siglip_ref.fast.machine.packed import Layout, layout, pieces
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.model import optim as specification
from siglip_ref.model.optim import AdamW, State
from siglip_ref.ops.elementary import Array

NEAR = 2048  # numbers of each array that are copied and stepped while they are in the nearest cache


class Packed(dict[str, Array]):
    """Arrays by name, all of them pieces of one."""

    def __init__(self, whole: Array, laid: Layout) -> None:
        super().__init__(pieces(whole, laid))
        self.whole, self.laid, self.pieces = whole, laid, list(self.values())


@kernel(fastmath=SUMS)
def _square(x: Any) -> float:
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@kernel(parallel=True)
def _squares(x: Any, sums: Any) -> None:
    if len(sums) == 1:
        sums[0] = _square(x)
    else:
        for thread in prange(len(sums)):
            begin, end = part(len(x), COUNT(thread), len(sums))
            sums[thread] = _square(x[begin:end])


@kernel()
def _some(p: Any, g: Any, m: Any, v: Any, c: Any, shrink: Any, new_p: Any, new_m: Any, new_v: Any) -> None:
    factor, beta1, rest1, beta2, rest2, root, eps, step = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for i in range(len(p)):
        new_p[i] = p[i]
    for i in range(len(p)):
        new_m[i] = m[i]
    for i in range(len(p)):
        new_v[i] = v[i]
    # in place: with old and new apart, seven arrays, this loop would not become vector instructions
    for i in range(len(p)):
        grad = factor * g[i]
        first = beta1 * new_m[i] + rest1 * grad
        second = beta2 * new_v[i] + rest2 * (grad * grad)
        new_m[i], new_v[i] = first, second
        new_p[i] = new_p[i] * shrink - step * (first / (np.sqrt(second) / root + eps))


@kernel()
def _part(
    p: Any, g: Any, m: Any, v: Any, c: Any, ends: Any, shrinks: Any, new_p: Any, new_m: Any, new_v: Any,
    begin: int, end: int,
) -> None:  # fmt: skip
    start = 0
    for k in range(len(ends)):  # the pieces, as far as they are this thread's
        stop = min(end, ends[k])
        for a in range(max(begin, start), stop, NEAR):
            b = min(a + NEAR, stop)
            _some(p[a:b], g[a:b], m[a:b], v[a:b], c, shrinks[k], new_p[a:b], new_m[a:b], new_v[a:b])
        start = ends[k]


@kernel(parallel=True)
def _all(
    p: Any, g: Any, m: Any, v: Any, c: Any, ends: Any, shrinks: Any, new_p: Any, new_m: Any, new_v: Any, parts: int
) -> None:
    if parts == 1:
        _part(p, g, m, v, c, ends, shrinks, new_p, new_m, new_v, ZERO, len(p))
    else:
        for thread in prange(parts):
            begin, end = part(len(p), COUNT(thread), parts)
            _part(p, g, m, v, c, ends, shrinks, new_p, new_m, new_v, begin, end)


def adamw_step(
    params: Mapping[str, Array], grads: Mapping[str, Array], state: State, rule: AdamW, schedule: Array = 1.0
) -> tuple[Any, State]:
    """Twin of `siglip_ref.model.optim.adamw_step`.

    All parameters are stepped together, so all must have gradients and one lr, none be frozen; else the specification
    steps.
    The results lie in three long arrays; given back in the next step, nothing is copied but the gradients.
    """
    names = list(params)
    arrays = [np.asarray(grads[name]) for name in names if name in grads]
    packed = params if _untouched(params) else None
    originals = [packed.whole] if packed else list(map(np.asarray, params.values()))
    shapes = packed.laid.shapes if packed else [p.shape for p in originals]
    apart = rule.frozen is not specification.nothing and any(map(rule.frozen, names))
    apart |= rule.rates is not specification.alike
    if apart or [g.shape for g in arrays] != shapes or not same_precision(*arrays, *originals):
        return specification.adamw_step(params, grads, state, rule, schedule)
    laid = packed.laid if packed else layout(dict(zip(names, shapes, strict=True)))
    p, g = packed.whole if packed else np.concatenate(originals, axis=None), np.concatenate(arrays, axis=None)
    slots = state.slots
    if isinstance(slots, Slots) and slots.laid == laid:
        m, v = slots.first, slots.second
    else:
        m, v = (
            np.concatenate([slots.get(f"{slot}/{name}", np.zeros_like(params[name])) for name in names], axis=None)
            for slot in ("first", "second")
        )
    kind, steps = p.dtype.type, state.steps + 1
    lr = rule.lr * float(schedule)
    ends = np.array(laid.ends)
    shrinks = np.where(np.fromiter(map(rule.decays, names), bool), kind(1 - lr * rule.decay), kind(1))
    new_p, new_m, new_v = np.empty_like(p), np.empty_like(p), np.empty_like(p)
    with parts_for_elements(p.size) as parts:
        factor = 1.0
        if rule.max_norm is not None:
            sums = np.empty(parts)
            _squares(g, sums)
            factor = rule.max_norm / max(math.sqrt(sums.sum()) + rule.clip_eps, rule.max_norm)
        c = np.array([
            factor, rule.beta1, 1 - rule.beta1, rule.beta2, 1 - rule.beta2, math.sqrt(1 - rule.beta2**steps), rule.eps,
            lr / (1 - rule.beta1**steps),
        ], kind)  # fmt: skip
        _all(p, g, m, v, c, ends, shrinks, new_p, new_m, new_v, parts)
    return Packed(new_p, laid), State(steps, Slots(new_m, new_v, laid))


class Slots(Mapping[str, Array]):
    """The running means under "first/" and "second/" and the parameter's name; cut out when asked for."""

    def __init__(self, first: Array, second: Array, laid: Layout) -> None:
        self.first, self.second, self.laid = first, second, laid

    def __getitem__(self, name: str) -> Array:
        slot, _, rest = name.partition("/")
        begin, end, shape = self.laid.places[rest]
        return {"first": self.first, "second": self.second}[slot][begin:end].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return (f"{slot}/{name}" for name in self.laid.places for slot in ("first", "second"))

    def __len__(self) -> int:
        return 2 * len(self.laid.places)


def _untouched(params: Mapping[str, Array]) -> TypeGuard[Packed]:
    """Still the pieces that a step returned: nobody has put another array in a name's place."""
    if not isinstance(params, Packed) or len(params) != len(params.pieces):
        return False
    return all(map(is_, params.values(), params.pieces))
