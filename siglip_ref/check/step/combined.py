"""One or two places at which a step is written otherwise: every place of the optimiser's text with its other forms.

All forms are put into one program, each behind a question, so that to try two together is a run, and no compilation.
What fits a few parameters is judged on all of them, at every step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.check.engine.edits import same
from siglip_ref.check.engine.seen import Seen, distance
from siglip_ref.check.step.derive import chosen_of
from siglip_ref.check.step.forms import ADAMW, BIG_VISION, OPTIM, PROCEDURES, Place
from siglip_ref.check.step.judge import LABELS, Judged, Moves, Plan, judge, predict
from siglip_ref.check.step.order import said_of
from siglip_ref.check.step.run import Taken
from siglip_ref.check.step.variations import arriving
from siglip_ref.errors import few
from siglip_ref.mistakes import Edit, Reference, reference
from siglip_ref.model.optim import AdamW, kernels, norm
from siglip_ref.ops.elementary import Array
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

_NEAR = 2.0  # of what is allowed
_PAIRS = 3_000  # that are tried, those of the nearest first
_STEPS = 3  # towards a schedule's factors
_LISTED = 3
_FROZEN, _STILL = "rest that is frozen", "rest that is still"
_HEADS = {OPTIM: "def norm(", PROCEDURES: "def accumulate("}  # before which the questions' answers stand
_ANSWERS = "_on: set[int] = set()\n_still: set[str] = set()\n\n\n"


@dataclass(frozen=True)
class Form:
    """What may be written at a place. number : turns it on; grads : of all steps, None: as they should be."""

    what: str
    repair: str
    place: str
    number: int = -1
    grads: tuple[Params, ...] | None = None


Made = tuple[Form, ...]


def together(taken: Sequence[Taken], plan: Plan, judged: Judged) -> Finding | None:
    """The one or two forms with which every step is right; or the factors of a schedule, with one form or none."""
    return _Search(taken, plan, judged).found()


class _Search:
    """A few parameters stand for all; of all others, the length of their gradients."""

    def __init__(self, taken: Sequence[Taken], plan: Plan, judged: Judged) -> None:
        self._taken, self._plan, self._judged = taken, plan, judged
        self._spec, forms = _program(ADAMW if isinstance(plan.rule, AdamW) else BIG_VISION)
        moved = {name for one in taken for name, move in one.moved.items() if np.any(move)}
        self._still = [name for name in taken[0].before if name not in moved and not plan.rule.frozen(name)]
        self._offers = [
            replace(one, what=one.what.format(still=few(self._still, _LISTED)))
            for one in forms
            if self._still or "{" not in one.what
        ]
        for one in arriving(taken, plan):
            said = f"{one.what}, {one.how}" if one.how else one.what
            self._offers.append(Form(said, one.repair, "gradients", grads=one.grads))
        self._chosen = chosen_of(judged, plan)
        self._seen = [one for one in judged.seen if one.name in self._chosen]
        frozen = plan.rule.frozen
        rule = replace(plan.rule, frozen=lambda name: _FROZEN in name or (_STILL not in name and frozen(name)))
        self._of_few = replace(plan, rule=rule)

    def found(self) -> Finding | None:
        """What fits, the plainest first."""
        before = self._off(())
        alone = [(self._off((one,)), one) for one in self._offers]
        alone = [(off, one) for off, one in alone if off != before]
        if fits := self._right([(one,) for off, one in alone if max(off) <= _NEAR]):
            return self._told(fits)
        if scheduled := self._of_a_schedule([(), *((one,) for _, one in alone if "schedule" not in one.place)]):
            return scheduled
        ranked = sorted(alone, key=lambda entry: float(np.sum(np.log(np.maximum(entry[0], 1e-3)))))
        pairs = sorted(combinations(range(len(ranked)), 2), key=sum)[:_PAIRS]
        near = list[Made]()
        for i, j in pairs:
            made = (ranked[i][1], ranked[j][1])
            if made[0].place != made[1].place and max(self._off(made)) <= _NEAR:
                near.append(made)
        return self._told(self._right(near))

    def _moves(self, made: Made, plan: Plan, whole: bool = False) -> Moves:
        steps = self._steps(made) if whole else [self._reduced(one) for one in self._steps(made)]
        with _made(self._spec, made, self._still):
            return predict(steps, plan, [one.grads for one in steps], spec=self._spec)

    def _off(self, made: Made) -> list[float]:
        try:
            moves = self._moves(made, self._of_few)
        except (ValueError, TypeError, ArithmeticError):  # two forms that are no program together
            return [np.inf]
        return [distance(one, moves[one.probe, one.name]) for one in self._seen]

    def _steps(self, made: Made) -> list[Taken]:
        given = next((one.grads for one in made if one.grads is not None), None)
        grads = given or tuple(one.grads for one in self._taken)
        return [replace(one, grads=one.grads | g) for one, g in zip(self._taken, grads, strict=False)]

    def _reduced(self, one: Taken) -> Taken:
        rests: dict[str, Params] = {}
        for name, g in one.grads.items():
            if name not in self._chosen:
                tower = f"{name.split('/')[0]}/" if "/" in name else ""
                which = _FROZEN if self._plan.rule.frozen(name) else _STILL if name in self._still else "rest"
                rests.setdefault(f"{tower}{which}{'/kernel' if kernels(name) else ''}", {})[name] = g
        grads = {n: one.grads[n] for n in self._chosen} | {n: np.asarray([float(norm(g))]) for n, g in rests.items()}
        before = {n: one.before[n] for n in self._chosen} | {n: np.ones(1) for n in rests}
        return replace(one, before=before, grads=grads)

    def _right(self, near: Sequence[Made], plan: Plan | None = None) -> list[tuple[Made, Moves]]:
        fits = []
        for made in near:
            with _made(self._spec, made, self._still):
                right = judge(self._steps(made), plan or self._plan, self._spec).right
            if right:
                fits.append((made, self._moves(made, self._plan, whole=True)))
        return fits

    def _of_a_schedule(self, near: Sequence[Made]) -> Finding | None:
        """A step is its schedule's factor times what it were with 1: so the factors are read off."""
        for made in near:
            factors, off = self._factors(made)
            if max(off) <= _NEAR and self._right([made], _scheduled(self._plan, factors)):
                said = said_of(factors, self._plan.schedule)
                beside = f" and with {made[0].what}" if made else ""
                read = "count optimiser steps from 0, and read the declared schedule at each"
                repair = "; ".join(dict.fromkeys([read, *(one.repair for one in made)]))
                return Finding(
                    DERIVED, self._judged.first_wrong, "", f"every step is right with {said}{beside}", repair
                )
        return None

    def _factors(self, made: Made) -> tuple[list[float], list[float]]:
        """Those that leave least, and how far off each tensor is with them."""
        factors = [1.0] * len(self._taken)
        for _ in range(_STEPS):  # what decays depends, a little, on the steps before
            moves = self._moves(made, _scheduled(self._of_few, factors))
            for k, label in enumerate(LABELS[: len(factors)]):
                here = [one for one in self._seen if one.probe == label]
                of = np.concatenate([np.ravel(moves[label, one.name] / _room(one)) for one in here])
                got = np.concatenate([np.ravel(one.got / _room(one)) for one in here])
                factors[k] *= float(of @ got / (of @ of)) if of.any() and np.isfinite(of).all() else 0.0
        moves = self._moves(made, _scheduled(self._of_few, factors))
        return factors, [distance(one, moves[one.probe, one.name]) for one in self._seen]

    def _told(self, fits: Sequence[tuple[Made, Moves]]) -> Finding | None:
        if not fits:
            return None
        first, moves = fits[0]
        alike = [made for made, other in fits[1:] if all(same(moves[key], other[key]) for key in moves)]
        rivals = [made for made, _ in fits[1:] if made not in alike]
        words = [" and ".join(dict.fromkeys(one.what for one in made)) for made in (first, *alike)]
        repair = "; ".join(dict.fromkeys(one.repair for one in first))
        if rivals:
            listed = ", or with ".join(
                [words[0], *(" and ".join(one.what for one in made) for made in rivals[:_LISTED])]
            )
            return Finding("unknown", "", "", f"measured: every step is right with {listed}: none is named", repair)
        said = f"every step is right with {words[0]}"
        said += f"; the same here: {'; '.join(words[1 : 1 + _LISTED])}" if alike else ""
        return Finding(DERIVED, self._judged.first_wrong, "", said, repair)


@contextmanager
def _made(spec: Reference, made: Made, still: Sequence[str]) -> Iterator[None]:
    """With these forms taken."""
    numbers = {one.number for one in made}
    for part in (spec.optim, spec.procedures):
        part._on.update(numbers)
        part._still.update({*still, _STILL, *(f"{tower}/{_STILL}{kind}" for tower in ("image", "text")
                                              for kind in ("", "/kernel"))})  # fmt: skip
    try:
        yield
    finally:
        for part in (spec.optim, spec.procedures):
            part._on.clear()
            part._still.clear()


@lru_cache(maxsize=2)
def _program(places: tuple[Place, ...]) -> tuple[Reference, tuple[Form, ...]]:
    """The specification with all forms of these places in it, and the forms."""
    edits = [Edit(file, head, _ANSWERS + head) for file, head in _HEADS.items()]
    forms = list[Form]()
    for place in places:
        new = place.old
        for what, text, repair in place.forms:
            new = f"(({text}) if {len(forms)} in _on else {new})"
            forms.append(Form(what, repair, place.context, len(forms)))
        edits.append(Edit(place.file, place.context, place.context.replace(place.old, new, 1)))
    return reference(edits), tuple(forms)


def _room(one: Seen) -> Array:
    return np.where(one.allowed > 0, one.allowed, np.inf)


def _scheduled(plan: Plan, factors: Sequence[float]) -> Plan:
    last, read = len(factors) - 1, tuple(factors)
    return replace(plan, schedule=lambda k: read[min(k, last)])
