"""The tensors of a step packed: what an optimiser treats alike stands in one array, so that to try a form on all of
them is a few dozen operations, and which tensors it fits is read off afterwards.

Large models are thinned out: of each tensor a few numbers stand for it, and one more that has the length of all others.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.step.judge import LABELS, Judged, Moves, Plan
from siglip_ref.check.step.run import Taken
from siglip_ref.model.optim import BigVision
from siglip_ref.ops.elementary import Array

NEAR = 2.0  # of what is allowed
_MANY, _SOME = 60_000, 64  # numbers: more than so many are thinned out, to so many of each tensor
_STRAY = 0.1  # of a tensor's numbers may be off: where rounding decides, or a gradient is near zero, noise does
_FEW = 2  # that may be so in small tensors

Key = Callable[[str], object]


class Packed:
    """What was seen, in packs. key : tensors of which it differs are not packed together; alone : tensors that are
    packed with no other."""

    def __init__(
        self, taken: Sequence[Taken], plan: Plan, judged: Judged, key: Key, alone: Collection[str] = ()
    ) -> None:
        self._raw = taken
        rule, first = plan.rule, taken[0].before
        thinned = sum(map(np.size, first.values())) > _MANY
        alike: dict[object, list[str]] = {}
        self._picks: dict[str, Array | None] = {}
        for name, value in first.items():
            axes = tuple(sorted(np.shape(value)))
            factored = isinstance(rule, BigVision) and len(axes) > 1 and axes[-2] >= rule.smallest
            many = thinned and np.size(value) > _SOME and not factored
            self._picks[name] = np.linspace(0, np.size(value) - 1, _SOME).astype(int) if many else None
            apart = factored or name in alone or "/" not in name
            own = (name,) if apart else (name.split("/")[0], name.split("/")[-1], np.ndim(value))
            settings = rule.rates(name), rule.decays(name), rule.frozen(name)
            alike.setdefault((own, settings, key(name)), []).append(name)
        self.packs = {
            names[0] if len(names) == 1 else f"{names[0].split('/')[0]}/pack{i}/{names[0].split('/')[-1]}": names
            for i, names in enumerate(alike.values())
        }
        self.names = [name for names in self.packs.values() for name in names]
        sizes = [_SOME + 1 if self._picks[name] is not None else np.size(first[name]) for name in self.names]
        self.ends = np.cumsum(sizes)
        self._sizes = np.array(sizes)
        self._size = dict(zip(self.names, sizes, strict=True))
        self._parts = {n: slice(end - size, end) for n, end, size in zip(self.names, self.ends, sizes, strict=True)}
        self.first_of = {pack: names[0] for pack, names in self.packs.items()}
        self.plan = self.planned(plan)
        by = {(one.probe, one.name): one for one in judged.seen}
        self._labels = LABELS[: len(taken)]
        self.got = np.stack([self._flat({n: by[s, n].got for n in self.names}) for s in self._labels])
        wide = {(s, n): np.broadcast_to(by[s, n].allowed, np.shape(first[n])) for s in self._labels for n in self.names}
        allowed = np.stack([self._flat({n: wide[s, n] for n in self.names}) for s in self._labels])
        self._stands = self._flat({n: np.ones(np.shape(first[n])) for n in self.names}, rest=0.0) > 0
        self.allowed = np.where(self._stands, allowed, np.inf)

    def planned(self, plan: Plan) -> Plan:
        """A plan whose rule is asked by packs; rates may differ in one."""
        of, rule = self.first_of, plan.rule
        rates = {pack: self.spread(pack, {n: rule.rates(n) for n in its}) for pack, its in self.packs.items()}
        its = replace(
            rule,
            rates=lambda pack: rates[pack],
            decays=lambda pack: rule.decays(of.get(pack, pack)),
            frozen=lambda pack: rule.frozen(of.get(pack, pack)),
        )
        return replace(plan, rule=its)

    @cached_property
    def taken(self) -> list[Taken]:
        """The steps, of packs."""
        return [replace(one, before=self.pack(one.before), grads=self.pack(one.grads), moved={}) for one in self._raw]

    def pack(self, params: Params) -> Params:
        """These, in packs."""
        packed = {}
        for pack, names in self.packs.items():
            if pack == names[0] and self._picks[pack] is None:
                packed[pack] = params[pack]
                continue
            whole = [np.ravel(params[n]) if self._picks[n] is None else self._thin(n, params[n]) for n in names]
            flat, axes = np.concatenate(whole), max(np.ndim(params[names[0]]), 1)
            packed[pack] = flat.reshape((1,) * (axes - 1) + (-1,))
        return packed

    def packs_of(self, names: frozenset[str]) -> frozenset[str]:
        """Those of which every tensor is among these."""
        return frozenset(pack for pack, its in self.packs.items() if names.issuperset(its))

    def part(self, name: str) -> slice:
        """Where a tensor stands in a row of `flat`."""
        return self._parts[name]

    def spread(self, pack: str, values: Mapping[str, float]) -> Array:
        """A number of each tensor, at each of its numbers. values : of the pack's tensors"""
        if len(values) == 1 or len({*values.values()}) == 1:
            return np.asarray(next(iter(values.values())))
        flat = np.repeat([values[name] for name in self.packs[pack]], [self._size[name] for name in self.packs[pack]])
        return flat.reshape(np.shape(self.taken[0].before[pack]))

    def mean(self, pack: str, x: Array) -> Array:
        """Of each tensor in a pack, at each of its numbers."""
        names = self.packs[pack]
        if len(names) == 1:
            return np.asarray(x.mean())
        return self.total(pack, x) / np.repeat([self._size[n] for n in names], [self._size[n] for n in names]).reshape(
            x.shape
        )

    def total(self, pack: str, x: Array) -> Array:
        """As `mean`, the sum."""
        names = self.packs[pack]
        if len(names) == 1:
            return np.asarray(x.sum())
        sizes = [self._size[name] for name in names]
        sums = np.add.reduceat(np.ravel(x), np.cumsum([0, *sizes[:-1]]))
        return np.repeat(sums, sizes).reshape(x.shape)

    def flat(self, moves: Moves) -> Array:
        """Moves of all packs: a row a step."""
        return np.stack([np.concatenate([np.ravel(moves[s, pack]) for pack in self.packs]) for s in self._labels])

    def off(self, found: Array) -> Array:
        """How far off each number is, in what is allowed."""
        with np.errstate(all="ignore"):
            off = np.where(found == self.got, 0.0, np.abs(found - self.got) / self.allowed)
        off[:, ~self._stands] = 0.0
        return np.where(np.isnan(off), np.inf, off)

    def sums(self, x: Array) -> Array:
        """Of each tensor, at each step."""
        return np.add.reduceat(np.asarray(x, np.float64), self.ends - self._sizes, axis=-1)

    def widened(self, x: Array) -> Array:
        """A number of each tensor, at each of its numbers."""
        return np.repeat(x, self._sizes, axis=-1)

    def worst(self, off: Array) -> Array:
        """Of each tensor the largest, over all steps."""
        return np.maximum.reduceat(off.max(0), self.ends - self._sizes)

    def left(self, off: Array) -> Array:
        """How far off each tensor is, at all steps together: its worst number, and all of it."""
        begins = self.ends - self._sizes
        total = np.add.reduceat(np.minimum(off, 1e100) ** 2, begins, axis=1) / self._sizes
        of = np.maximum.reduceat(off, begins, axis=1), np.sqrt(total)
        return np.asarray(sum(np.log(np.clip(x, 1e-2, 1e300)).sum(0) for x in of))

    def fits(self, off: Array, loosely: bool = False) -> Array:
        """Which tensors are right; loosely : but for a few numbers."""
        if not loosely:
            return self.worst(off) <= NEAR
        stray = np.add.reduceat((off > NEAR).sum(0), self.ends - self._sizes)
        count = self._sizes * len(off)
        return stray <= np.maximum(_STRAY * count, _FEW * (count > 2 * _FEW))

    def _flat(self, params: Mapping[str, Array], rest: float | None = None) -> Array:
        return np.concatenate([self._thin(name, params[name], rest) for name in self.names])

    def _thin(self, name: str, value: Array, rest: float | None = None) -> Array:
        flat, picks = np.ravel(value), self._picks[name]
        if picks is None:
            return flat
        left = np.delete(flat, picks)
        return np.append(flat[picks], np.sqrt(np.sum(left * left)) if rest is None else rest)
