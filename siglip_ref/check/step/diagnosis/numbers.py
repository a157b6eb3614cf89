"""Numbers of a step that are read off: by which a gradient, a moment, an update, a parameter is multiplied, in which of
the steps and in which tensors; told where with them every tensor is right at every step.

Each is an unknown of every step (and, where that is needed, of every tensor), solved by least squares: far fewer than
there are numbers that moved, so what is left over proves it or refutes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from siglip_ref.check.engine.seen import is_wrong
from siglip_ref.check.step.diagnosis.forms import Form, program
from siglip_ref.check.step.diagnosis.packed import Packed
from siglip_ref.check.step.diagnosis.where import whose
from siglip_ref.check.step.judge import Judged, Plan, judge, predict
from siglip_ref.check.step.run import Taken
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.model.optim import AdamW, norm
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

_RIGHT = 2.0  # of what is allowed
_ITERATIONS, _BESIDE = 10, 1e-4
_SPARE = 1.5  # numbers for each unknown at least
_ENOUGH = 3  # numbers of a tensor for each unknown of its own
_ALIKE = 2e-3  # relative: numbers so near are one
_LISTED = 4
_SOME, _VARIED = 3, 1.5  # tensors at least, and how far apart they are, that show a law


_PAIRED = "gluedb"  # kinds of which two are tried together

Kinds = tuple[Form, ...]  # with a number of each step
Values = dict[str, Array]  # by tensor, of each kind and step: one row


@dataclass(frozen=True)
class Read:
    """What was found. kinds : whose numbers; values : by tensor; own : whether each tensor has its own."""

    kinds: Kinds
    values: Values
    own: bool


def read_off(taken: Sequence[Taken], plan: Plan, judged: Judged, at_once: int = 1) -> Finding | None:
    """Which numbers, one set for all tensors, or for those that are wrong, or for each its own, make every step right.

    at_once : kinds of them

    Nothing is said where two kinds of them do, with other words for the same.
    """
    search = _Search(taken, plan, judged)
    kinds = search.kinds
    paired = [one for one in kinds if one.key in _PAIRED]
    groups = [search.names, *([search.wrong] if search.wrong != search.names else [])]
    pairs = [(one, other) for one, other in combinations(paired, 2) if not one.spots & other.spots]
    sets: list[Kinds] = [(one,) for one in kinds] if at_once == 1 else [*pairs]
    for own in (False, True)[: 3 - at_once]:
        found = [
            Read(made, values, own)
            for made in sets
            for names in ([search.wrong] if own else groups)
            if (values := search.solved(made, names, own)) is not None
        ]
        if found:  # of one kind the plainest alone
            return search.told([one for k, one in enumerate(found) if one.kinds not in [f.kinds for f in found[:k]]])
    return None


class _Search:
    """The optimiser's text with a number at each place, and what the program's tensors did."""

    def __init__(self, taken: Sequence[Taken], plan: Plan, judged: Judged) -> None:
        self._taken, self._plan, self._judged = taken, plan, judged
        self._spec, forms, self._asked = program("adamw" if isinstance(plan.rule, AdamW) else "big_vision")
        self.kinds = [form for form in forms if form.key]
        self.names = [n for n in taken[0].grads if not plan.rule.frozen(n)]
        wrong = {one.name for one in judged.seen if is_wrong(one)}
        self.wrong = [name for name in self.names if name in wrong]
        its = {*self.wrong}
        self._packed = Packed(taken, plan, judged, lambda name: name in its)

    def solved(self, kinds: Kinds, names: Sequence[str], own: bool) -> Values | None:
        """Gauss and Newton's steps, from what is usual; None where a tensor is wrong with what they find."""
        usual = np.concatenate([one.usual[: len(self._taken)] for one in kinds])
        unknowns = len(usual)
        sizes = {name: sum(np.size(one.grads[name]) for one in self._taken) for name in names}
        if sum(sizes.values()) < _SPARE * unknowns:  # of which nothing could be proven
            return None
        small = own and any(size < _ENOUGH * unknowns for size in sizes.values())
        values = {name: usual.copy() for name in names}
        best = np.inf
        for _ in range(_ITERATIONS):
            here = self._left(kinds, values)
            if not all(np.isfinite(x).all() for x in here.values()):
                return None
            slopes = []
            for i in range(unknowns):
                moved = {name: row + _BESIDE * np.eye(unknowns)[i] for name, row in values.items()}
                beside = self._left(kinds, moved)
                slopes.append({name: (beside[name] - here[name]) / _BESIDE for name in names})
            grams, sides = {}, {}
            for name in names:
                slope = np.stack([one[name] for one in slopes], 1)
                grams[name], sides[name] = slope.T @ slope, slope.T @ here[name]
            if not own:
                gram, side = sum(grams.values()), sum(sides.values())
                grams, sides = dict.fromkeys(names, gram), dict.fromkeys(names, side)
            far = 0.0
            for name in names:
                if not (np.isfinite(grams[name]).all() and np.isfinite(sides[name]).all()):
                    return None
                move = -np.linalg.lstsq(grams[name], sides[name], rcond=1e-9)[0]
                far = max(far, float(np.max(np.abs(move))))
                most = 1.0 + np.abs(values[name])
                values[name] = values[name] + np.clip(move, -most, most)
            if far < 1e-7 or (best <= far < 1e-3):
                break
            best = min(best, far)
        values = self._plain(kinds, values)
        if not self.right(kinds, values):
            return None
        # a tensor of a few numbers fits anything: what it has proves something only where one law gives it
        return None if small and not all(self._law(values, i) for i in range(len(kinds))) else values

    def right(self, kinds: Kinds, values: Values) -> bool:
        """Whether every tensor is, at every step."""
        if not np.max(np.abs(self._off(kinds, values))) <= _RIGHT:
            return False
        with self._with(kinds, values):
            return judge(self._taken, self._plan, self._spec).right

    @contextmanager
    def _with(self, kinds: Kinds, values: Mapping[str, Sequence[Any] | Array]) -> Iterator[None]:
        """With these numbers in the optimiser's text."""
        steps = range(len(self._taken))
        for i, kind in enumerate(kinds):
            self._asked.on[kind.number] = (frozenset(values), None)
            its = {(name, k): row[i * len(steps) + k] for name, row in values.items() for k in steps}
            self._asked.own[kind.number] = its
        try:
            yield
        finally:
            self._asked.on.clear()
            self._asked.own.clear()

    def told(self, found: Sequence[Read]) -> Finding | None:
        """In words; of several that fit, all; None of numbers that are hardly others than they should be."""
        said = list(filter(None, dict.fromkeys(self._words(one) for one in found)))
        if not said:
            return None
        first = found[0]
        repair = "; ".join(dict.fromkeys(kind.repair for kind in first.kinds))
        if len(said) > 1:
            listed = "; or ".join(said[:_LISTED])
            evidence = f"measured: every step is right with one of these, which nothing here tells apart: {listed}"
            return Finding(DERIVED, self._judged.first_wrong, "", evidence, repair)
        evidence = f"every step is right where {said[0]}"
        if self._clipped_otherwise(first):
            mistake = CATALOGUE["grad-clip-local-norm"]
            return Finding(mistake.id, "", "", f"{mistake.text}, or another part: {evidence}", mistake.repair)
        return Finding(DERIVED, self._judged.first_wrong, "", evidence, repair)

    def _words(self, read: Read) -> str:
        steps = len(self._taken)
        groups: list[tuple[Array, list[str]]] = []
        for name, row in read.values.items():
            its = next((g for g in groups if np.allclose(g[0], row, rtol=_ALIKE, atol=_ALIKE * 1e-3)), None)
            if its:
                its[1].append(name)
            else:
                groups.append((row, [name]))
        said = []
        for i, kind in enumerate(read.kinds):
            mine = slice(i * steps, (i + 1) * steps)
            usual = np.asarray(kind.usual[:steps])
            changed = [
                (row[mine], names) for row, names in groups if not np.allclose(row[mine], usual, rtol=1e-6, atol=1e-9)
            ]
            if read.own and (law := self._law(read.values, i)):
                said.append(f"{kind.what} {law}")
                continue
            for row, names in changed[:_LISTED]:
                said_of = f", in {whose(frozenset(names), self.names, self._plan)}"
                said_of += self._of_a_clip(row, names) if kind.key == "g" else ""
                said.append(f"{kind.what} {_at(row, usual)}{said_of}")
            if len(changed) > _LISTED:
                said.append(f"{len(changed) - _LISTED} more groups of tensors have other numbers")
        return ", and ".join(said)

    def _law(self, values: Values, number: int) -> str:
        """What each tensor's own numbers follow, if they follow one thing that a tensor has."""
        for words, of in _LAWS:
            ratios = []
            sizes = [float(of(self._taken[0], name)) for name in values]
            if len(sizes) < _SOME or max(sizes) < _VARIED * min(sizes):  # any number would follow it
                continue
            for name, row in values.items():
                with np.errstate(all="ignore"):
                    has = np.array([of(one, name) for one in self._taken], np.float64)
                    ratios.append(row[number * len(has) : (number + 1) * len(has)] / has)
            every = np.stack(ratios)
            middle = float(np.median(every))
            if np.isfinite(every).all() and middle and np.all(np.abs(every / middle - 1) <= 5 * _ALIKE):
                times = "" if abs(middle - 1) <= 5 * _ALIKE else f"{middle:.4g} times "
                return f"{times}{words}, of each tensor, at each step"
        return ""

    def _clipped_otherwise(self, read: Read) -> bool:
        """Whether all gradients are as after a clip by a length of their own, another part of theirs at each step."""
        limit, row = self._plan.rule.max_norm, next(iter(read.values.values()))
        if [kind.key for kind in read.kinds] != ["g"] or read.own or limit is None or {*read.values} != {*self.names}:
            return False
        made = row * [min(1.0, limit / float(norm({n: one.grads[n] for n in self.names}))) for one in self._taken]
        odd = np.abs(row - 1) > 10 * _ALIKE
        return bool(np.all(made <= 1 + 1e-3) and np.ptp(row[odd]) > 10 * _ALIKE if odd.sum() > 1 else False)

    @np.errstate(all="ignore")  # a ratio of nothing to nothing is none
    def _of_a_clip(self, row: Array, names: Sequence[str]) -> str:
        """Whether the factors are those of a clip by the length of some of the gradients; Adam sees ratios alone."""
        limit, rest = self._plan.rule.max_norm, [name for name in self.names if name not in names]
        whole = np.array([float(norm({n: one.grads[n] for n in self.names})) for one in self._taken])
        made = row * (np.minimum(1.0, limit / whole) if limit is not None else 1.0)
        if limit is not None and np.all(np.abs(made / made[0] - 1) <= 10 * _ALIKE):
            return ": as if they were not clipped"
        for words, chosen in (("these", names), ("the others", rest)):
            lengths = np.array([float(norm({n: one.grads[n] for n in chosen})) for one in self._taken])
            at = limit if limit is not None else float((made * lengths)[np.argmin(made)])
            ratio = made / np.minimum(1.0, at / np.maximum(lengths, 1e-300))
            if np.all(np.abs(ratio / ratio[0] - 1) <= 10 * _ALIKE):
                return f": as by a clip at {at:.4g} that counts only {words}"
        return ""

    def _plain(self, kinds: Kinds, values: Values) -> Values:
        """Round numbers where they do as well; and of what is free, most of the steps as usual."""
        steps = len(self._taken)
        made = {name: row.copy() for name, row in values.items()}
        for i, kind in enumerate(kinds):
            mine = slice(i * steps, (i + 1) * steps)
            for row in made.values():
                if kind.common and np.all(row[mine] != 0):
                    counts = [int(np.sum(np.abs(row[mine] / x - 1) <= _ALIKE)) for x in row[mine]]
                    row[mine] /= row[mine][int(np.argmax(counts))]
                usual = np.asarray(kind.usual[:steps])
                row[mine] = np.where(np.abs(row[mine] - usual) <= 1e-3 * np.maximum(usual, 1e-3), usual, row[mine])
        rounded = {name: np.array([_round(x) for x in row]) for name, row in made.items()}
        for one in (rounded, made):
            if self.right(kinds, one):
                return one
        return values

    def _left(self, kinds: Kinds, values: Values) -> dict[str, Array]:
        """Of each tensor, how far off each number is at each step, in what is allowed."""
        packed, off = self._packed, self._off(kinds, values)
        return {name: off[:, packed.part(name)].ravel() for name in values}

    def _off(self, kinds: Kinds, values: Values) -> Array:
        packed, steps = self._packed, self._packed.taken
        usual = np.concatenate([one.usual[: len(steps)] for one in kinds])
        spread = {
            pack: [packed.spread(pack, {n: values.get(n, usual)[i] for n in names}) for i in range(len(usual))]
            for pack, names in packed.packs.items()
            if any(name in values for name in names)
        }
        with self._with(kinds, spread):
            moves = predict(steps, packed.plan, [one.grads for one in steps], spec=self._spec)
        off = (packed.flat(moves) - packed.got) / np.where(packed.allowed > 0, packed.allowed, np.inf)
        return np.asarray(off)


_LAWS = (
    ("the root mean square of its numbers", lambda one, name: np.sqrt(np.mean(one.before[name] ** 2))),
    ("the length of its numbers", lambda one, name: np.sqrt(np.sum(one.before[name] ** 2))),
    ("the largest of its numbers", lambda one, name: np.max(np.abs(one.before[name]))),
    ("its length over its gradient's (as LARS)",
     lambda one, name: np.sqrt(np.sum(one.before[name] ** 2) / np.sum(one.grads[name] ** 2))),
    ("its length over its move's (as LAMB)",
     lambda one, name: np.sqrt(np.sum(one.before[name] ** 2) / np.sum(one.moved[name] ** 2))),
    ("one over its gradient's length", lambda one, name: 1 / np.sqrt(np.sum(one.grads[name] ** 2))),
    ("one over the root of its number of inputs", lambda one, name: len(np.atleast_1d(one.grads[name])) ** -0.5),
    ("one over its number of inputs", lambda one, name: 1 / len(np.atleast_1d(one.grads[name]))),
    ("one over the root of how many numbers it has", lambda one, name: np.size(one.grads[name]) ** -0.5),
)  # fmt: skip


def _round(x: float) -> float:
    """Two digits, or one over few, where that is near."""
    for near in (float(f"{x:.2g}"), *(1 / n for n in (3, 6, 7, 9, 12, 16, 32) if x)):
        if abs(near - x) <= 1e-3 * abs(x):
            return near
    return x


def _at(row: Array, usual: Array) -> str:
    """The numbers, with the steps at which they are others than usual."""
    listed = ", ".join(f"{x:.4g}" for x in row)
    if np.allclose(row, row[0], rtol=1e-6) and np.allclose(usual, usual[0]):
        return f"{row[0]:.4g} at each step"
    off = [k for k in range(len(row)) if abs(row[k] - usual[k]) > 1e-6]
    if len(off) == 1:
        return f"{row[off[0]]:.4g} at step {off[0] + 1} alone" + (
            f" (not {usual[off[0]]:.4g})" if usual[off[0]] != 1 else ""
        )
    where = ", ".join(str(k + 1) for k in range(len(row)))
    return f"{listed} at steps {where}" + (
        f" (not {', '.join(f'{x:.4g}' for x in usual)})" if usual[0] != usual[-1] else ""
    )
