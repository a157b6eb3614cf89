"""AdamW and the clip to a global norm, fused over all parameters, which lie one after another in memory."""

import math
from collections.abc import Iterator, Mapping
from operator import is_
from typing import Any, TypeGuard

import numpy as np
from numba import prange

from siglip_ref.architecture.params import Params
from siglip_ref.fast.linear import part
from siglip_ref.fast.machine.compile import COUNT, SUMS, ZERO, inner, kernel
from siglip_ref.fast.machine.fit import same_precision
from siglip_ref.fast.machine.packed import Layout, layout, pieces
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.fast.machine.tile import copy
from siglip_ref.model import optim as specification
from siglip_ref.model.optim import AdamW, State
from siglip_ref.ops.elementary import Array

NEAR = 2048  # numbers of each array that are copied and stepped while they are in the nearest cache
_MEANS = ("first", "second")
LARGE = 1 << 20  # numbers from which gradients are read where they lie; fewer are laid together and go in one call


class Packed(dict[str, Array]):
    """Arrays by name, all of them pieces of one."""

    def __init__(self, whole: Array, laid: Layout) -> None:
        super().__init__(pieces(whole, laid))
        self.whole, self.laid, self.pieces = whole, laid, list(self.values())


@inner(fastmath=SUMS)
def _square(x: Any, count: int) -> float:
    total = 0.0
    for i in range(count):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@inner(apart=True)
def _squares_part(grads: Any, ends: Any, near: Any, begin: int, end: int) -> float:
    """The sum of squares of the gradients' numbers from `begin` to `end`, which come near one after another."""
    total, start, size = 0.0, 0, near.itemsize
    for k in range(len(ends)):
        stop = min(end, ends[k])
        for a in range(max(begin, start), stop, NEAR):
            count = min(NEAR, stop - a)
            copy(grads[k] + (a - start) * size, near.ctypes.data, count * size)
            total += _square(near, count)
        start = ends[k]
    return total


@kernel(parallel=True)
def _squares(grads: Any, ends: Any, room: Any, sums: Any) -> None:
    if len(sums) == 1:
        sums[0] = _squares_part(grads, ends, room[0], ZERO, ends[-1])
    else:
        for thread in prange(len(sums)):
            begin, end = part(ends[-1], COUNT(thread), len(sums))
            sums[thread] = _squares_part(grads, ends, room[thread], begin, end)


@inner()
def _some(p: Any, g: Any, m: Any, v: Any, c: Any, shrink: Any) -> None:
    factor, beta1, rest1, beta2, rest2, root, eps, step = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    # in place: with old and new apart, seven arrays, this loop would not become vector instructions
    for i in range(len(p)):
        grad = factor * g[i]
        first = beta1 * m[i] + rest1 * grad
        second = beta2 * v[i] + rest2 * (grad * grad)
        m[i], v[i] = first, second
        p[i] = p[i] * shrink - step * (first / (np.sqrt(second) / root + eps))


@inner()
def _copy(old: Any, new: Any, begin: int, end: int) -> None:
    for i in range(np.uintp(begin), np.uintp(end)):
        new[i] = old[i]


@inner(apart=True)
def _part(old: Any, grads: Any, new: Any, c: Any, ends: Any, shrinks: Any, near: Any, begin: int, end: int) -> None:
    start, size = 0, near.itemsize
    for k in range(len(ends)):  # the pieces, as far as they are this thread's
        stop = min(end, ends[k])
        for a in range(max(begin, start), stop, NEAR):
            b = min(a + NEAR, stop)
            for which in range(3):
                if old[which].ctypes.data != new[which].ctypes.data:
                    _copy(old[which], new[which], a, b)
            copy(grads[k] + (a - start) * size, near.ctypes.data, (b - a) * size)
            _some(new[0][a:b], near[: b - a], new[1][a:b], new[2][a:b], c, shrinks[k])
        start = ends[k]


@kernel(parallel=True)
def _all(old: Any, grads: Any, new: Any, c: Any, ends: Any, shrinks: Any, room: Any) -> None:
    """Parameters and both means, one step further; an array that is both old and new is written over.

    grads : where each gradient lies
    """
    if len(room) == 1:
        _part(old, grads, new, c, ends, shrinks, room[0], ZERO, ends[-1])
    else:
        for thread in prange(len(room)):
            begin, end = part(ends[-1], COUNT(thread), len(room))
            _part(old, grads, new, c, ends, shrinks, room[thread], begin, end)


def together(params: Params) -> Params:
    """A copy of the parameters that belongs to `adamw_in_place`, as if a step had returned it.

    Who holds only this copy before the first gradients come never holds the parameters twice beside gradients and
    means. What the specification would step is returned as it is.
    """
    arrays = list(map(np.asarray, params.values()))
    if not same_precision(*arrays):
        return params
    laid = layout({name: array.shape for name, array in zip(params, arrays, strict=True)})
    return Packed(np.concatenate(arrays, axis=None), laid)


def adamw_step(
    params: Mapping[str, Array], grads: Mapping[str, Array], state: State, rule: AdamW, schedule: Array = 1.0
) -> tuple[Any, State]:
    """Twin of `siglip_ref.model.optim.adamw_step`.

    All parameters are stepped together, so all must have gradients and one lr, none be frozen; else the specification
    steps. The results lie in three long arrays, which the next step reads.
    """
    return _stepped(params, grads, state, rule, schedule, False)


def adamw_in_place(
    params: Mapping[str, Array], grads: Mapping[str, Array], state: State, rule: AdamW, schedule: Array = 1.0
) -> tuple[Any, State]:
    """A step like `adamw_step` that writes over parameters and means which an earlier step returned, or `together`
    laid together: it needs no memory. Of a caller's own arrays it never writes over any.

    Examples
    --------
    >>> from siglip_ref.model.optim import AdamW, State
    >>> grads = {"w/kernel": np.full(1, 5.0)}
    >>> first, state = adamw_in_place({"w/kernel": np.ones(1)}, grads, State(), AdamW(lr=0.1, decay=0.5))
    >>> second, state = adamw_in_place(first, grads, state, AdamW(lr=0.1, decay=0.5))
    >>> first["w/kernel"] is not second["w/kernel"], float(first["w/kernel"][0]) == float(second["w/kernel"][0])
    (True, True)
    """
    return _stepped(params, grads, state, rule, schedule, True)


def _stepped(
    params: Mapping[str, Array], grads: Mapping[str, Array], state: State, rule: AdamW, schedule: Array, in_place: bool
) -> tuple[Any, State]:
    names = list(params)
    arrays = [np.asarray(grads[name]) for name in names if name in grads]
    packed = params if _untouched(params) else None
    originals = [packed.whole] if packed else list(map(np.asarray, params.values()))
    shapes = packed.laid.shapes if packed else [p.shape for p in originals]
    apart = rule.frozen is not specification.nothing and any(map(rule.frozen, names))
    apart |= rule.rates is not specification.alike
    if apart or [g.shape for g in arrays] != shapes or not same_precision(*arrays, *originals):
        return specification.adamw_step(params, grads, state, rule, schedule)
    laid, slots = packed.laid if packed else layout(dict(zip(names, shapes, strict=True))), state.slots
    kept = slots if isinstance(slots, Slots) and slots.laid == laid else None
    p = packed.whole if packed else np.concatenate(originals, axis=None)
    m, v = (kept.first, kept.second) if kept else (_laid(one, slots, laid, p) for one in _MEANS)
    old = p, m, v
    owned = (
        in_place or not packed,
        in_place or not kept,
        in_place or not kept,
    )  # nobody else sees what was laid together here
    new_p, new_m, new_v = new = tuple(x if own else np.empty_like(x) for x, own in zip(old, owned, strict=True))
    kind, steps, ends = p.dtype.type, state.steps + 1, laid.ends
    lr = rule.lr * float(schedule)
    shrinks = np.where(np.fromiter(map(rule.decays, names), bool), kind(1 - lr * rule.decay), kind(1))
    if p.size < LARGE:
        together = np.concatenate(arrays, axis=None)
        places = together.ctypes.data + p.itemsize * np.array([0, *ends[:-1]])
    else:
        arrays = list(map(np.ascontiguousarray, arrays))
        places = np.array([g.ctypes.data for g in arrays])
    bounds = np.array(ends)
    with parts_for_elements(p.size) as parts:
        factor, room = 1.0, np.empty((parts, NEAR), kind)
        if rule.max_norm is not None:
            sums = np.empty(parts)
            _squares(places, bounds, room, sums)
            factor = rule.max_norm / max(math.sqrt(sums.sum()) + rule.clip_eps, rule.max_norm)
        c = np.array([
            factor, rule.beta1, 1 - rule.beta1, rule.beta2, 1 - rule.beta2, math.sqrt(1 - rule.beta2**steps), rule.eps,
            lr / (1 - rule.beta1**steps),
        ], kind)  # fmt: skip
        _all(old, places, new, c, bounds, shrinks, room)
    return Packed(new_p, laid), State(steps, Slots(new_m, new_v, laid))


def _laid(slot: str, slots: Mapping[str, Array], laid: Layout, like: Array) -> Array:
    """A running mean in one array; absent ones are zero."""
    whole = np.zeros_like(like)
    for name, (begin, end, _) in laid.places.items():
        if (one := slots.get(f"{slot}/{name}")) is not None:
            whole[begin:end] = one.reshape(-1)
    return whole


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
