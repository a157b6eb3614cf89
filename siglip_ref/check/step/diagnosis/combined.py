"""Spots at which a step is written otherwise, or gradients that are others: one or two of them, in all tensors or in
some, at all steps or at some.

All forms are put into one program, each behind a question, so that to try two together is a run, and no compilation;
tensors that are treated alike stand in one array. In which tensors a form holds needs no search: what an optimiser does
in one tensor hangs on no other, but for the clip, so it is tried in all, and the tensors that it fits are read off.
What fits is judged on all tensors, at every step.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.engine.edits import same
from siglip_ref.check.engine.seen import distance, is_wrong
from siglip_ref.check.step.diagnosis.forms import Form, program
from siglip_ref.check.step.diagnosis.packed import NEAR, Packed
from siglip_ref.check.step.diagnosis.rates import Rates, read_off
from siglip_ref.check.step.diagnosis.sources import Names, Source, Steps, sources
from siglip_ref.check.step.diagnosis.where import at_steps, groups, limits, limits_of, numbers_of, stuck, units, whose
from siglip_ref.check.step.judge import LABELS, Judged, Moves, Plan, judge, predict
from siglip_ref.check.step.run import Taken, given
from siglip_ref.errors import few
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.model.optim import AdamW
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

_NEAREST = 24  # of which two are tried together
_BEAM, _FITTED = 8, 2  # of which each is tried with all others; of these with numbers of theirs, fitted anew
_SCHEDULED = 60  # with which a schedule is looked for
_OCTAVES = range(-18, 19, 2)  # a number that is not known is looked for among these powers of two, then between
_ROUND = (2.0, 0.5, 4.0, 0.25, 10.0, 0.1, 5.0, 0.2)
_GOLDEN, _CUTS = 0.618, 34
_JUDGED = 6  # different programs at most, of those that fit
LOCAL = "grad-clip-local-norm"
_ROUNDED = 1e-4  # relative: a number so near to a round one is round
_LISTED = 3
_APART = 0.05  # of what is allowed: two programs that are nearer to each other are one here
_UNEXPLAINED = 3  # partners of each tensor that are tried, where none explains any


@dataclass(frozen=True)
class Choice:
    """A form, or other gradients, in these tensors at these steps. group : what they are called, where they are chosen
    before it is tried."""

    of: Form | Source | Rates
    names: Names = None
    steps: Steps = None
    group: str = ""
    value: float = 1.0  # of a form that has a number
    more: str = ""  # of such a number, whether others do as well

    @property
    def local(self) -> bool:
        """Whether what it does in one tensor hangs on no other."""
        return isinstance(self.of, Form) and not (self.of.whole or self.of.groups)

    @property
    def spots(self) -> frozenset[str]:
        return frozenset(["gradients"]) if isinstance(self.of, Source) else self.of.spots


Made = tuple[Choice, ...]


@dataclass(frozen=True)
class Tried:
    """A choice, what it gives, and the tensors that it fits. left : how far off they are, together."""

    choice: Choice
    fits: Array
    left: float


class Search:
    """The one or two choices with which every step is right; or the factors of a schedule, with one or none."""

    def __init__(self, taken: Sequence[Taken], plan: Plan, judged: Judged) -> None:
        self._taken, self._plan, self._judged = taken, plan, judged
        self._spec, forms, self._asked = program("adamw" if isinstance(plan.rule, AdamW) else "big_vision")
        self._forms = [form for form in forms if not form.key]
        moved = {name for one in taken for name, move in one.moved.items() if np.any(move)}
        self._still = [name for name in taken[0].before if name not in moved and not plan.rule.frozen(name)]
        self._trained = [name for name in taken[0].before if not plan.rule.frozen(name)]
        wrong = frozenset(one.name for one in judged.seen if is_wrong(one))
        self._groups = groups(self._trained, plan)
        if wrong not in self._groups.values() and wrong < {*self._trained}:
            self._groups[whose(wrong, self._trained, plan)] = wrong
        still = frozenset(self._still)
        of = [*self._groups.values(), still]
        self._stuck, self._limits, self._units = stuck(taken, judged), limits(taken, wrong), units(taken, wrong)
        self._packed = Packed(taken, plan, judged, lambda name: tuple(name in its for its in of), self._units)
        first = min(LABELS.index(one.probe) for one in judged.seen if is_wrong(one))
        later = frozenset(range(first, len(taken)))
        self._times: list[Steps] = [None, *([later] * (first > 0))]
        self._idle = frozenset(k for k, one in enumerate(taken) if not any(np.any(move) for move in one.moved.values()))
        for steps in (frozenset([first]), self._idle):
            self._times += [steps] * (steps not in self._times and 0 < len(steps) < len(taken))
        self._base = self._flat(())
        assert self._base is not None
        self._right_now = self._packed.fits(self._packed.off(self._base))
        self._none = np.zeros(len(self._right_now), bool)

    @cached_property
    def alone(self) -> Finding | None:
        """With one choice, or with two in tensors of their own; or by the factors of a schedule."""
        fits = [made for one in self._all if (made := self._alone(one))] or list(self._apart(self._all))
        return (self._told(fits) if fits else None) or self._exchanged() or self._told([*self._with_rates()])

    def two(self) -> Finding | None:
        """With two choices."""
        pairs = combinations(self._all[:_NEAREST], 2)
        near = [made for one, other in pairs if (made := self._both(one, other))]
        some = (found for one in self._all[:_BEAM] if (found := list(self._beside(one))))
        return self._told([self._simply(made) for made in near or next(some, [])[:_JUDGED]])

    def _simply(self, made: Made) -> Made:
        """Each in all tensors, or in a group that trainers treat apart, where that does as well."""
        for i, one in enumerate(made):
            if one.names is None or one.group:
                continue
            known = sorted((its for its in self._groups.values() if one.names < its), key=len)
            for names in (None, *known):
                simple = (*made[:i], replace(one, names=names), *made[i + 1 :])
                flat = self._flat(simple)
                if flat is not None and self._packed.fits(self._off(flat, simple)).all():
                    made = simple
                    break
        return made

    def _beside(self, one: Tried) -> Iterator[Made]:
        """This with each other that is so at all steps, or at its own."""
        refit = one in self._all[:_FITTED]
        for other in self._all[_NEAREST if one in self._all[:_NEAREST] else 0 :]:
            at_its_steps = other.choice.steps in (None, one.choice.steps, self._idle)
            if at_its_steps and (made := self._both(one, other)):
                yield made
        for form in self._forms if refit else ():
            if form.free and not (one.choice.spots & form.spots):
                fitted = Tried(self._fitted(Choice(form), (one.choice,)), self._none, 0.0)
                if made := self._both(one, fitted):
                    yield made

    @cached_property
    def _all(self) -> list[Tried]:
        """All that change something, the nearest first."""
        tried = [one for choice in self._choices() if (one := self._tried(choice)) is not None]
        return sorted(tried, key=lambda one: one.left)

    def _choices(self) -> Iterator[Choice]:
        """All that is tried alone."""
        for steps in self._times:
            for form in self._forms:
                if form.groups:
                    yield from (Choice(form, its, steps, words) for words, its in self._groups.items())
                elif "{other}" not in form.what and (self._still or "{still}" not in form.what):
                    yield Choice(form, None, steps)
        for source in sources(self._taken, self._plan):
            for steps in self._times:
                yield Choice(source, None, steps)
                if source.part and steps is None:
                    yield from (Choice(source, its, steps, words) for words, its in self._groups.items())

    def _tried(self, choice: Choice) -> Tried | None:
        """None where it changes nothing."""
        if isinstance(choice.of, Form) and choice.of.free:
            choice = self._fitted(choice, ())
        flat = self._flat((choice,))
        if flat is None or self._base is None or np.allclose(flat, self._base, rtol=1e-12, atol=0, equal_nan=True):
            return None
        off = self._off(flat, (choice,))
        return Tried(choice, self._packed.fits(off, loosely=True), float(np.sum(self._packed.left(off))))

    def _off(self, flat: Array, made: Made) -> Array:
        """As `Packed.off`; of a tensor whose gradient is nothing but rounding here, nothing."""
        off, grads = self._packed.off(flat), self._grads(made)
        for name in self._packed.names if grads is not None else ():
            assert grads is not None
            large = [np.max(np.abs(g[name]), initial=0.0) for g in grads]
            if all(0 < x <= one.noise.get(name, 0.0) for x, one in zip(large, self._taken, strict=True)):
                off[:, self._packed.part(name)] = 0.0
        return off

    def _lefts(self, flat: Array, made: Made) -> Array:
        return self._packed.left(self._off(flat, made))

    def _fitted(self, choice: Choice, beside: Made) -> Choice:
        """With the number that leaves least: of two digits, where that does as well."""

        def left(exponent: float, most: Array | float = np.inf) -> float:
            flat = self._flat((*beside, replace(choice, value=2.0**exponent)))
            return np.inf if flat is None else float(np.sum(np.minimum(self._lefts(flat, beside), most)))

        without, near, helps = self._flat(beside), choice, 0
        if choice.local and without is not None and not beside:  # where it does not help, it is not in that tensor
            usual = self._lefts(without, beside)
            helped = {x: left(float(np.log2(x)), usual) for x in _ROUND}
            near = replace(choice, value=min(helped, key=lambda x: helped[x]))
            there = self._flat((*beside, near))
            helps = 0 if there is None else self._helped(there, beside)
        scores = {k: left(k) for k in _OCTAVES}
        middle = min(scores, key=lambda k: scores[k])
        if scores[middle] >= scores[0] and middle != 0:
            return near if helps else choice
        low, high = middle - 2.0, middle + 2.0
        one, other = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        of_one, of_other = left(one), left(other)
        for _ in range(_CUTS):
            if of_one <= of_other:
                high, other, of_other = other, one, of_one
                one = high - _GOLDEN * (high - low)
                of_one = left(one)
            else:
                low, one, of_one = one, other, of_other
                other = low + _GOLDEN * (high - low)
                of_other = left(other)
        best = min(of_one, of_other, scores[middle])
        value = 2.0 ** (middle if best == scores[middle] else one if of_one <= of_other else other)
        for plain in (2.0 ** round(np.log2(value)), float(f"{value:.1g}"), float(f"{value:.2g}")):
            if abs(plain / value - 1) < 0.02 and left(np.log2(plain)) <= best + 1e-2 * len(self._packed.names):
                value = plain
                break
        at = self._flat((*beside, replace(choice, value=value)))
        if helps and helps >= (0 if at is None else self._helped(at, beside)):
            return near
        beyond = [self._flat((*beside, replace(choice, value=value * factor))) for factor in (2.0, 0.5)]
        same = [at is not None and flat is not None and self._same(at, flat) for flat in beyond]
        more = " or more" if same[0] and not same[1] else " or less" if same[1] and not same[0] else ""
        return replace(choice, value=value, more=more)

    def _helped(self, flat: Array, beside: Made) -> int:
        """How many tensors are right with it, and not without."""
        return int(np.sum(self._packed.fits(self._off(flat, beside)) & ~self._right_now))

    def _alone(self, one: Tried) -> Made:
        """In all tensors, or in those that are wrong without it."""
        if one.fits.all():
            return (one.choice,)
        if one.choice.local and (one.fits | self._right_now).all():
            return (replace(one.choice, names=self._plainly(~self._right_now, one.fits)),)
        return ()

    def _apart(self, tried: Sequence[Tried]) -> Iterator[Made]:
        """Two, each in tensors of its own."""
        helping = [one for one in tried if one.choice.local and (one.fits & ~self._right_now).any()]
        for one, other in combinations(helping, 2):
            if (one.fits | other.fits | self._right_now).all():
                mine = one.fits & ~self._right_now
                theirs = self._plainly(~mine & ~self._right_now, other.fits & ~mine)
                yield replace(one.choice, names=self._plainly(mine, one.fits)), replace(other.choice, names=theirs)

    def _both(self, one: Tried, other: Tried) -> Made:
        """Together, where each is in the tensors that need it."""
        a, b = one.choice, other.choice
        if a.spots & b.spots or (flat := self._flat((a, b))) is None:
            return ()
        off = self._off(flat, (a, b))
        if self._packed.fits(off).all():
            return a, b
        both = self._packed.fits(off, loosely=True)
        nothing = np.zeros_like(both)
        none = self._right_now if a.local and b.local else nothing
        first = one.fits & ~none if b.local else nothing
        second = other.fits & ~none & ~first if a.local else nothing
        if not (none | first | second | both).all():
            return ()
        in_both = ~none & ~first & ~second
        return self._in(a, first | in_both), self._in(b, second | in_both)

    def _in(self, choice: Choice, chosen: Array) -> Choice:
        return replace(choice, names=self._where(chosen)) if choice.local and not chosen.all() else choice

    def _exchanged(self) -> Finding | None:
        """What belongs to other tensors: of each that is wrong, one of the same shape with whose it is right."""
        tries = [(form, steps) for form in self._forms if form.others for steps in self._times]
        return next((told for one in tries if (told := self._of_others(*one))), None)

    def _of_others(self, form: Form, steps: Steps) -> Finding | None:
        wrong = [n for n, right in zip(self._packed.names, self._right_now, strict=True) if not right]
        if not {*wrong} <= {*self._trained}:
            return None
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name in self._trained:
            shapes.setdefault(np.shape(self._taken[0].before[name]), []).append(name)
        partners = dict[str, list[str]]()
        for name in wrong:
            same_shape = shapes[np.shape(self._taken[0].before[name])]
            partners[name] = sorted((n for n in same_shape if n != name), key=partial(_unlike, name))
        by = {(one.probe, one.name): one for one in self._judged.seen}
        found: dict[str, str] = {}
        made = (Choice(form, None, steps),)
        for i in range(max(map(len, partners.values()), default=0)):
            self._asked.other = {n: its[i] for n, its in partners.items() if i < len(its) and n not in found}
            with self._made(made):
                moves = predict(self._taken, self._plan, [one.grads for one in self._taken], spec=self._spec)
            fit = {n: m for n, m in self._asked.other.items()
                   if all(distance(by[s, n], moves[s, n]) <= NEAR for s in LABELS[: len(self._taken)])}  # fmt: skip
            found |= fit
            if i >= _UNEXPLAINED and not found:
                break
        self._asked.other = found
        told = None
        if len(found) == len(wrong) > 1 and self._proven(made) is not None:
            what = form.what.replace("{other}", _exchange(found))
            said = f"every step is right with {what}{at_steps(steps, len(self._taken), self._plan.restarted)}"
            told = Finding(DERIVED, self._judged.first_wrong, "", said, form.repair)
        self._asked.other = {}
        return told

    def _same(self, one: Array, other: Array) -> bool:
        """Whether nothing that is allowed to a program could tell them apart."""
        off = np.abs(one - other) / np.where(self._packed.allowed > 0, self._packed.allowed, np.inf)
        return bool(np.max(off, initial=0.0) <= _APART) or same(one, other)

    def _plainly(self, needed: Array, fits: Array) -> frozenset[str]:
        """The smallest group that trainers treat apart, where it has all that need it, and fits; else those alone."""
        chosen, right = self._where(needed), self._where(fits)
        known = [its for its in groups(self._trained, self._plan).values() if chosen <= its <= right]
        return min(known, key=len, default=chosen)

    def _where(self, chosen: Array) -> frozenset[str]:
        return frozenset(name for name, its in zip(self._packed.names, chosen, strict=True) if its)

    def _flat(self, made: Made) -> Array | None:
        """What all packs are moved by; None where that is no program."""
        packed, grads = self._packed, self._grads(made)
        steps = packed.taken
        if grads is not None:
            steps = [replace(one, grads=packed.pack(g)) for one, g in zip(steps, grads, strict=True)]
        try:
            with self._made(made, in_packs=True):
                plan = self._planned(made)
                plan = packed.plan if plan is self._plan else packed.planned(plan)
                return packed.flat(predict(steps, plan, [one.grads for one in steps], spec=self._spec))
        except (ValueError, TypeError, ArithmeticError, KeyError):  # two forms that are no program together
            return None

    def _planned(self, made: Made) -> Plan:
        return next((one.of.plan(self._plan) for one in made if isinstance(one.of, Rates)), self._plan)

    def _grads(self, made: Made) -> tuple[dict[str, Array], ...] | None:
        of = [one for one in made if isinstance(one.of, Source)]
        return of[0].of.make(of[0].names, of[0].steps) if of and isinstance(of[0].of, Source) else None

    @contextmanager
    def _made(self, made: Made, in_packs: bool = False) -> Iterator[None]:
        """With these taken."""
        asked, packed = self._asked, self._packed
        for one in made:
            if isinstance(one.of, Form):
                names = packed.packs_of(one.names) if in_packs and one.names is not None else one.names
                asked.on[one.of.number] = (names, one.steps)
        asked.since = min((min(one.steps) for one in made if one.steps), default=0)
        asked.still.update(packed.packs_of(frozenset(self._still)) if in_packs else self._still)
        asked.schedule = self._plan.schedule
        asked.numbers = {one.of.number: one.value for one in made if isinstance(one.of, Form)}
        asked.units = self._units
        asked.stuck, asked.limits = self._packed_notes if in_packs else (self._stuck, self._limits)
        usual = asked.mean, asked.total
        if in_packs:
            asked.mean, asked.total = packed.mean, packed.total
        try:
            yield
        finally:
            asked.on.clear()
            asked.still.clear()
            asked.mean, asked.total = usual

    @cached_property
    def _packed_notes(self) -> tuple[Params, dict[str, tuple[Array, Array]]]:
        """What never moves, and the limits, of packs."""
        low, high = (self._packed.pack({n: its[i] for n, its in self._limits.items()}) for i in (0, 1))
        return self._packed.pack(self._stuck), {n: (low[n], high[n]) for n in low}

    def _proven(self, made: Made) -> Moves | None:
        """What it gives, where every tensor is right with it at every step."""
        grads = self._grads(made)
        steps = [given(one, g) for one, g in zip(self._taken, grads or [t.grads for t in self._taken], strict=True)]
        plan = self._planned(made)
        with self._made(made):
            if not judge(steps, plan, self._spec).right:
                return None
            return predict(steps, plan, [one.grads for one in steps], spec=self._spec)

    def _told(self, fits: Sequence[Made]) -> Finding | None:
        """What is proven; where two of them give other numbers, none is named."""

        def plainness(made: Made) -> tuple[int, int]:
            return sum((one.steps is not None) + (one.names is not None) for one in made), len(self._words(made))

        plain = sorted(fits, key=plainness)  # what is said in few words is what people do
        classes: list[tuple[Array, list[Made]]] = []
        for made in plain:
            flat = self._flat(made)
            assert flat is not None
            its = next((alike for known, alike in classes if self._same(known, flat)), None)
            if its is not None:
                its.append(made)
            else:
                classes.append((flat, [made]))
        proven = [alike for _, alike in classes[:_JUDGED] if self._proven(alike[0]) is not None]
        if not proven:
            return None
        proven = [[self._rounder(first), *rest] for first, *rest in proven]
        words = [list(dict.fromkeys(self._words(made) for made in alike)) for alike in proven]
        repair = "; ".join(dict.fromkeys(repair for one in proven[0][0] for repair in self._repairs(one)))
        if len(proven) > 1:
            listed = ", or with ".join(its[0] for its in words[:_LISTED])
            said = f"measured: every step is right with {listed}, which nothing here tells apart"
            return Finding("unknown", "", "", said, repair)
        said = f"every step is right with {words[0][0]}"
        forms = {one.of for one in proven[0][0]}
        other = [self._words(made) for made in proven[0][1:] if forms != {one.of for one in made}]
        said += f"; the same here: {'; '.join(dict.fromkeys(other[:_LISTED]))}" if other else ""
        if any("norm" in one.spots and _is_odd(one) for one in proven[0][0]):
            mistake = CATALOGUE[LOCAL]
            return Finding(LOCAL, "", "", f"{mistake.text}, or another part: {said}", mistake.repair)
        return Finding(DERIVED, self._judged.first_wrong, "", said, repair)

    def _rounder(self, made: Made) -> Made:
        """With numbers of few digits, where those are proven, too."""
        for i, one in enumerate(made):
            for value in (float(f"{one.value:.{digits}g}") for digits in (1, 2, 3)):
                other = (*made[:i], replace(one, value=value), *made[i + 1 :])
                near = value != one.value and abs(value - one.value) < 0.01 * abs(one.value)
                if near and self._proven(other) is not None:
                    made = other
                    break
        return made

    def _words(self, made: Made) -> str:
        return " and with ".join(self._word(one) for one in made)

    def _repairs(self, one: Choice) -> list[str]:
        return one.of.told(self._trained, self._plan)[1] if isinstance(one.of, Rates) else [one.of.repair]

    def _word(self, one: Choice) -> str:
        if isinstance(one.of, Rates):
            return " and with ".join(one.of.told(self._trained, self._plan)[0])
        of_tensors = ""
        if one.names is not None and not (isinstance(one.of, Form) and one.of.groups):
            of_tensors = f" in {one.group or whose(one.names, self._trained, self._plan)}"
        said = one.of.what.replace("{still}", few(self._still, _LISTED)).replace("{group}", one.group)
        number = f"{one.value:.4g}{one.more}"
        said = said.replace("NUMBER", number).replace("{stuck}", numbers_of(self._stuck))
        said = said.replace("{limits}", few(limits_of(self._limits, one.names), _LISTED))
        units = [f"{name} ({'as a whole' if axis is None else f'axis {axis}'})" for name, axis in self._units.items()]
        said = said.replace("{units}", few(units, _LISTED))
        return said + of_tensors + at_steps(one.steps, len(self._taken), self._plan.restarted)

    def _with_rates(self) -> Iterator[Made]:
        """Other factors of the schedule, and rates of some tensors, with one other choice, or alone."""
        always = [(one.choice,) for one in self._all if one.choice.steps is None and not one.choice.spots & Rates.spots]
        for made in ((), *always[:_SCHEDULED]):
            rates = read_off(self._packed, self._plan, partial(self._rated, made))
            ways = rates.plainly(self._plan, [*self._groups.values()]) if rates else []
            found = ((Choice(one), *made) for one in ways)
            fits = (both for both in found if (flat := self._flat(both)) is not None and self._fits(flat, both))
            if both := next(fits, None):
                yield both
                if not made:
                    return

    def _rated(self, made: Made, rates: Rates) -> Array | None:
        return self._flat((Choice(rates), *made))

    def _fits(self, flat: Array, made: Made) -> bool:
        return bool(self._packed.fits(self._off(flat, made)).all())


def _is_odd(one: Choice) -> bool:
    """Whether its number is one that nobody would set: that of the gradients at hand."""
    near = (float(f"{one.value:.2g}"), 1 / float(f"{1 / one.value:.2g}"), 2.0 ** round(np.log2(one.value)))
    return not one.more and all(abs(x / one.value - 1) > _ROUNDED for x in near)


def _unlike(one: str, other: str) -> int:
    """How little of two names is one, from the end."""
    return -next((k for k, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b), len(one))


def _exchange(found: Mapping[str, str]) -> str:
    """Whose state each tensor has, in words."""
    ends = {(n.partition("/")[2], m.partition("/")[2]) for n, m in found.items()}
    if all(one == other for one, other in ends):
        towers = sorted({(n.partition("/")[0], m.partition("/")[0]) for n, m in found.items()})
        said = ", and ".join(f"{n}/* has those of the same tensors of {m}/*" for n, m in towers)
        return f"{said} ({len(found)} tensors)"
    return few([f"{n} has those of {m}" for n, m in found.items()], _LISTED)
