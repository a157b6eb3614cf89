"""Whether what was asked of the parameters arrived. In few bits it may not: an update that is smaller than half the
distance to the next number is rounded away, in every step anew, while losses and gradients look right.

Asked: what the rule does in float64 with the gradients at the program's own weights. Amounts are compared without
signs, so that a gradient's noise, which may turn a sign, counts neither way. A program that keeps what is lost in some
other place, in float32 weights beside or in a compensation, moves its weights once enough has come together; one that
rounds stochastically moves them by chance, as far on average. Both are told by weights for which one step is too
small.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.arithmetic.rounded import FORMATS, Format
from siglip_ref.check.step.judge import LABELS, Plan, Rule, only_noise, predict
from siglip_ref.check.step.run import Taken
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding

LOST = "update-lost-to-rounding"
ARRIVES = 0.5  # of what was asked, at least
SURELY = 0.9  # of half the distance: who is never asked for more than this does not move, whatever noise adds
TOGETHER = 1.1  # of half the distance: who is asked for more in all moves, if what each step lost was kept
KEPT = 0.15  # of those: at least so many move where it is kept; by chance about half of them; where it is dropped none
SHOWING = 24  # of those a tensor must have to speak for itself; for all of a format together, a third is enough
NARROW = ("bfloat16", "float16")  # formats that need looking after
EVERY = 5  # every so manieth number of a tensor gets a size at which a kept update shows
LARGEST = 4.0  # times the median of a tensor such a size is at most, where a model has to live with it
RARE = 16  # tensors with fewer numbers are left as they are


@dataclass(frozen=True)
class Lost:
    """One tensor that got less than ARRIVES. share : of what was asked; still : its numbers that never moved."""

    name: str
    share: float
    still: int
    size: int
    format: str


def lost(taken: Sequence[Taken], plan: Plan, formats: Mapping[str, str]) -> list[Lost]:
    """The tensors whose updates were rounded away.

    Parameters
    ----------
    formats : of each parameter, as the program stores it
    """
    moves = predict(taken, plan, [one.given for one in taken])
    found: list[Lost] = []
    told: dict[str, dict[str, tuple[int, int]]] = {}
    for name in taken[0].before:
        wanted = np.stack([moves[step, name] for step in LABELS[: len(taken)]])
        moved = np.stack([one.moved[name] for one in taken])
        total = np.abs(wanted).sum()
        if not 0 < total < np.inf or not np.isfinite(moved).all() or any(only_noise(one, name) for one in taken):
            continue
        form = _format(formats[name], [one.before[name] + one.moved[name] for one in taken], moved)
        half = np.stack([_half(one.before[name], form) for one in taken])
        told.setdefault(form.name, {})[name] = _kept(wanted, moved, half)
        share = float(np.abs(moved).sum() / total)
        small = float(np.abs(wanted)[np.abs(wanted) <= half].sum() / total)
        if share < ARRIVES and small >= ARRIVES:
            still = int((moved == 0).all(0).sum())
            found.append(Lost(name, share, still, wanted[0].size, form.name))
    return [one for one in found if not _is_kept(told[one.format][one.name], told[one.format].values())]


def rows_of(found: Iterable[Lost]) -> list[Row]:
    """What is missing of each tensor's movement, over all steps."""
    nan = float("nan")
    return [
        Row(
            one.name, "value", 1 - one.share, 1 - ARRIVES, one.share, nan, "", "FAIL",
            f"{one.still} of {one.size} numbers stand still", "all steps",
        )
        for one in found
    ]  # fmt: skip


def finding_of(found: Sequence[Lost], rule: Rule) -> Finding:
    """All of them together, with the one that got least."""
    least = min(found, key=lambda one: one.share)
    still, size = sum(one.still for one in found), sum(one.size for one in found)
    form = " and ".join(dict.fromkeys(one.format for one in found))
    evidence = (
        f"{still / size:.0%} of the numbers of {len(found)} tensors stand still: with lr {rule.lr:g} a step is less "
        f"than half the distance between two numbers of {form}; {least.name} moved {least.share:.2g} times as far as "
        "asked, either way"
    )
    return Finding(LOST, least.name, "", evidence, CATALOGUE[LOST].repair)


def showing(start: Params, steps: Sequence[float], form: str, largest: float = LARGEST) -> Params:
    """Start weights of which some have a size at which a kept update shows: one step is too small to move them, all of
    them together are not.

    Parameters
    ----------
    steps : how far each step moves a number, about
    largest : how many times the median of a tensor such a size may be
    """
    longest, together = max(steps), sum(steps)
    if form not in NARROW or not 0 < longest < together:
        return start
    exponent = np.round(np.log2(np.sqrt(longest * together))) + FORMATS[form].bits
    size = 1.5 * 2.0**exponent
    changed = {}
    for name, value in start.items():
        flat = np.array(value).ravel()
        if flat.size >= RARE and size < largest * np.median(np.abs(flat)):
            flat[::EVERY] = np.where(flat[::EVERY] < 0, -size, size)
        changed[name] = flat.reshape(np.shape(value))
    return changed


def _half(values: Array, form: Format) -> Array:
    """Half the distance to the next number towards zero, where the numbers lie closer."""
    mantissa, exponent = np.frexp(np.abs(values))
    exponent = np.maximum(exponent - (mantissa == 0.5), form.lowest + 1)
    return np.ldexp(1.0, exponent - form.bits - 1)


def _format(declared: str, afterwards: Sequence[Array], moved: Array) -> Format:
    """The format in which a parameter is kept: the declared one, or a narrower one that all its new values are of."""
    narrower = [FORMATS[name] for name in NARROW if FORMATS[name].bits < FORMATS[declared].bits]
    for form in narrower if moved.any() else ():
        mantissa, _ = np.frexp(np.concatenate([np.ravel(values) for values in afterwards]))
        if not np.any(np.ldexp(mantissa, form.bits) % 1):
            return form
    return FORMATS[declared]


def _kept(asked: Array, moved: Array, half: Array) -> tuple[int, int]:
    """Of the numbers for which each step is surely too small, and all of them together are not: those that moved."""
    shown = (SURELY * half > np.abs(asked)).all(0) & (np.abs(asked.sum(0)) > TOGETHER * half[0])
    return int((moved[:, shown] != 0).any(0).sum()), int(shown.sum())


def _is_kept(own: tuple[int, int], alike: Iterable[tuple[int, int]]) -> bool:
    """By the tensor itself, where it shows enough, else by all of its format together."""
    moved, shown = own
    if shown < SHOWING:
        moved, shown = (sum(numbers) for numbers in zip(*alike, strict=True))
    return 3 * shown >= SHOWING and moved >= KEPT * shown
