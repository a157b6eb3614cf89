"""Numbers by which moves differ from a program's: a schedule's factors, the same in all tensors; a rate of some, the
same at all steps; or both. They are read off tensor by tensor and step by step, and proven.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.check.step.diagnosis.order import is_reading, said_of
from siglip_ref.check.step.diagnosis.packed import Packed
from siglip_ref.check.step.diagnosis.where import whose
from siglip_ref.check.step.judge import Plan
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.ops.elementary import Array

_ROUNDED = 1e-4  # nearer to the declared schedule a factor is rounding
_NEAR = 0.02  # relative: what may be left before what decays is counted in, and numbers that are one
_GROUPS = 3  # different rates at most
_STEPS = 4  # towards the numbers: what decays depends, a little, on the steps before
_READ = "count optimiser steps from 0, and read the declared schedule at each"


@dataclass(frozen=True)
class Rates:
    """factors : of the schedule, one a step; groups : rates that are not 1, and whose they are, beside the declared."""

    factors: tuple[float, ...]
    groups: tuple[tuple[float, frozenset[str]], ...] = ()
    spots = frozenset(["rate", "rates", "schedule"])

    def plan(self, plan: Plan) -> Plan:
        """With these."""
        own, last, rates = {n: rate for rate, its in self.groups for n in its}, len(self.factors) - 1, plan.rule.rates
        rule = replace(plan.rule, rates=lambda name: own.get(name, 1.0) * rates(name))
        return replace(plan, rule=rule, schedule=lambda k: self.factors[min(max(k, 0), last)])

    def plainly(self, plan: Plan, known: Sequence[frozenset[str]]) -> list["Rates"]:
        """The plainest first: of two digits, with the declared factors where all are near, in groups that are known."""
        usual = self._usual(plan)
        factors = usual if np.allclose(self.factors, usual, rtol=_NEAR, atol=_ROUNDED) else self.factors
        plain = tuple((float(f"{rate:.2g}"), its) for rate, its in self.groups)
        near = [(x, _nearest(its, known)) for x, its in plain]
        ways = (Rates(factors, tuple(near)), Rates(factors, plain), self)
        return [one for one in ways if all(rate != 1 for rate, _ in one.groups)]

    def told(self, names: Sequence[str], plan: Plan) -> tuple[list[str], list[str]]:
        """What differs from the plan, and the repairs."""
        other = not np.allclose(self.factors, self._usual(plan), rtol=_ROUNDED, atol=_ROUNDED)
        said = [said_of(self.factors, plan.schedule)] * other
        said += [f"{rate:.4g} times the learning rate in {whose(its, names, plan)}" for rate, its in self.groups]
        return said, [_READ] * other + [CATALOGUE["lr-of-a-group"].repair] * bool(self.groups)

    def _usual(self, plan: Plan) -> tuple[float, ...]:
        return tuple(float(plan.schedule(k)) for k in range(len(self.factors)))


def read_off(packed: Packed, plan: Plan, of: Callable[[Rates], Array | None]) -> Rates | None:
    """The rates with which next to nothing is left; None where there are none, or only the declared ones.

    of : what is moved with these
    """
    ones = Rates((1.0,) * len(packed.got))
    rates = _grouped(packed, of(ones), plan)
    for _ in range(_STEPS if rates else 0):
        assert rates is not None
        more = _times(packed, of(rates))
        if more is None:
            return None
        by = dict(zip(packed.names, np.where(more[1] <= _NEAR * np.abs(more[0]), more[0], np.nan).T, strict=True))
        apart = {name for _, its in rates.groups for name in its}
        whole = _middle([by[n] for n in by if n not in apart])
        own = [(rate * float(_middle([by[n] / whole for n in its]).mean()), its) for rate, its in rates.groups]
        rates = Rates(tuple(np.array(rates.factors) * whole), tuple(own))
    return rates if rates is not None and rates.told(packed.names, plan)[0] else None


def _times(packed: Packed, flat: Array | None) -> tuple[Array, Array] | None:
    """How many times this each tensor's moves (a column) are at each step (a row), and how surely; None where they are
    no multiple."""
    if flat is None or not np.isfinite(flat).all():
        return None
    got, room = packed.got, np.where(packed.allowed > 0, packed.allowed, np.inf)
    size = np.maximum(packed.sums((flat / room) ** 2), 1e-300)
    found = packed.sums(flat * got / room**2) / size
    left = packed.sums(((got - packed.widened(found) * flat) / room) ** 2)
    most = np.maximum(_NEAR**2 * packed.sums((got / room) ** 2), packed.sums(np.isfinite(room)))
    return (found, 1 / np.sqrt(size)) if np.all(left <= most) else None


def _grouped(packed: Packed, flat: Array | None, plan: Plan) -> Rates | None:
    """The factors that most tensors have, best those of the schedule; and the rates of those that have others."""
    usual, times = np.array([float(plan.schedule(k)) for k in range(len(packed.got))]), _times(packed, flat)
    if times is None:
        return None
    found, about = (x.T for x in times)
    largest = np.max(np.abs(found), initial=0.0, where=about < 1)
    sure = np.all(about <= _NEAR * np.where(np.abs(found) <= about, largest, np.abs(found)), axis=1)
    rows: list[Array] = []
    for row in found[sure]:
        if not any(_alike(known, row) for known in rows):
            rows.append(row)
    if not 0 < len(rows) <= _GROUPS:
        return None
    off = np.stack([np.max(np.abs(found - row) / (_NEAR * np.abs(row) + about), axis=1) for row in rows])
    whose = np.argmin(off, axis=0)
    read = [_alike(row, usual) + is_reading(row, plan.schedule) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-read[i], -int(np.sum(whose == i))))
    factors, *others = (rows[i] for i in order)
    if not factors.any():
        return None
    rates = [float(row @ factors / (factors @ factors)) for row in others]
    names = [frozenset(n for n, k in zip(packed.names, whose, strict=True) if k == i) for i in order[1:]]
    alike = all(_alike(rate * factors, row) for rate, row in zip(rates, others, strict=True))
    return Rates(tuple(factors), tuple(zip(rates, names, strict=True))) if alike else None


def _alike(known: Array, row: Array) -> bool:
    return bool(np.all(np.abs(row - known) <= _NEAR * np.abs(known) + _ROUNDED))


def _middle(rows: Sequence[Array]) -> Array:
    """Of each step; 1 where nothing is known."""
    known = [column[np.isfinite(column)] for column in np.stack(rows, axis=1)]
    return np.array([np.median(column) if column.size else 1.0 for column in known])


def _nearest(its: frozenset[str], known: Sequence[frozenset[str]]) -> frozenset[str]:
    return max(known, key=lambda names: len(its & names) / len(its | names), default=its)
