"""Steps that are right at another time, or with other tensors in the decay: no formula is wrong, its inputs are."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from siglip_ref.check.engine.seen import distance
from siglip_ref.check.step.judge import Judged, Plan, judge, predict
from siglip_ref.check.step.run import Taken
from siglip_ref.checkpoint.tables.mismatch import few
from siglip_ref.report.data import Finding
from siglip_ref.report.edits import DERIVED

SPLITS = (2, 4, 8)  # numbers of micro-batches that are tried
_LISTED = 4


def at_another_time(taken: Sequence[Taken], plan: Plan) -> Finding | None:
    """What all steps are right with, where that is the schedule or the gradients of another step."""
    for words, other in _schedules(plan):
        if judge(taken, other).right:
            evidence = f"every step is right with {words} in place of schedule(k), k = 0 at the first"
            return Finding(
                DERIVED, "", "", evidence, "count optimiser steps, from 0: one for each call of the optimiser"
            )
    before = [{name: 0 * g for name, g in taken[0].grads.items()}, *(one.grads for one in taken[:-1])]
    late = [replace(one, grads=grads) for one, grads in zip(taken, before, strict=True)]
    if judge(late, plan).right or (
        len(taken) > 1
        and _nothing_moves(taken[0])
        and _right(late[1:], replace(plan, schedule=partial(_at, plan, 1, 1)))
    ):
        evidence = "every step is right with the gradients of the step before; the first has none"
        return Finding(DERIVED, "", "", evidence, "call backward() before the optimiser's step, on the same batch")
    return None


def in_the_decay(taken: Sequence[Taken], plan: Plan, judged: Judged) -> Finding | None:
    """Which tensors decay, where all steps are right with another choice of them than the declared one."""
    grads = [one.grads for one in taken]
    names = [name for name in grads[0] if not plan.rule.frozen(name)]
    fits: list[set[str]] = []
    for all_decay in (False, True):
        rule = replace(plan.rule, decays=partial(_always, all_decay))
        moves = predict(taken, replace(plan, rule=rule), grads)
        off = {one.name for one in judged.seen if not distance(one, moves[one.probe, one.name]) <= 2}
        fits.append({name for name in names if name not in off})
    never, always = fits
    chosen = {name for name in names if (name in always and name not in never) or _either(name, fits, plan)}
    more = [name for name in names if name in chosen and not plan.rule.decays(name)]
    less = [name for name in names if name not in chosen and plan.rule.decays(name)]
    if not (more or less) or not judge(taken, replace(plan, rule=replace(plan.rule, decays=chosen.__contains__))).right:
        return None
    said = [f"{few(group, _LISTED)} {verb}" for group, verb in ((more, "decay, too"), (less, "do not decay")) if group]
    repair = "choose by name what decays, as it was declared; if this is meant, declare it: decays=lambda name: ..."
    return Finding(DERIVED, (more or less)[0], "", f"every step is right where {' and '.join(said)}", repair)


def _schedules(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The schedule read at another step: one late, or advanced by every micro-batch."""
    times = {"schedule(k - 1)": (1, -1)}
    for parts in sorted({plan.parts, *SPLITS} - {1}):
        times |= {f"schedule({parts} k)": (parts, 0), f"schedule({parts} (k + 1))": (parts, parts)}
        times[f"schedule({parts} k + {parts - 1})"] = (parts, parts - 1)
    for words, (factor, more) in times.items():
        yield words, replace(plan, schedule=partial(_at, plan, factor, more))


def _at(plan: Plan, factor: int, more: int, k: int) -> float:
    return plan.schedule(max(0, factor * k + more))


def _right(taken: Sequence[Taken], plan: Plan) -> bool:
    """Whether the steps that are given are right."""
    return all(row.right for row in judge(taken, plan).rows if row.verdict != "not checked")


def _always(answer: bool, name: str) -> bool:
    return answer


def _nothing_moves(one: Taken) -> bool:
    return not any(np.any(move) for move in one.moved.values())


def _either(name: str, fits: Sequence[set[str]], plan: Plan) -> bool:
    return name in fits[0] and name in fits[1] and plan.rule.decays(name)
