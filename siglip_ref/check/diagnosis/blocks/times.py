"""By what tensors of a loss over ranks are multiplied: a number, and powers of what a call has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.blocks.groups import simple
from siglip_ref.check.diagnosis.blocks.parts import Call

_NEAR = 1e-3  # of a factor; it was found by least squares
_DIGITS = 1e-9
_NICE = (1.0, 2.0, 0.5, np.log(2), 1 / np.log(2))


@dataclass(frozen=True)
class Times:
    """A factor: a number times powers of W, of b (pairs a rank), of t (the scale), and of B - 1."""

    number: float = 1.0
    ranks: int = 0
    pairs: int = 0
    scale: int = 0
    negatives: int = 0

    def __str__(self) -> str:
        """1/W, 2B, W/3, 0.37.

        >>> str(Times(1.0, -1)), str(Times(2.0, 1, 1)), str(Times(-1.0, 0, 0, 1)), str(Times(1 / 3, 1))
        ('1/W', '2B', '-t', 'W/3')
        """
        powers = {"W": self.ranks, "b": self.pairs, "t": self.scale, "(B - 1)": self.negatives}
        if self.ranks == self.pairs != 0:
            powers = {"B": self.ranks, "t": self.scale, "(B - 1)": self.negatives}
        above, below = (
            "".join(name if abs(p) == 1 else f"{name}^{abs(p)}" for name, p in powers.items() if p * sign > 0)
            for sign in (1, -1)
        )
        over = 1 / self.number if self.number else 0.0  # 1/3, not 0.333333
        of_whole = not below and abs(over) > 1 and abs(over - round(over)) < _DIGITS
        below = f"{abs(round(over))}" if of_whole else below
        number = f"{np.sign(over) if of_whole else self.number:.6g}"
        if above or below:
            number = {"1": "" if above else "1", "-1": "-" if above else "-1"}.get(number, number)
        return f"{number}{above}" + (f"/{below}" if below else "")

    def over(self, other: "Times") -> "Times":
        """What is left of it, divided by another."""
        mine, theirs = ((one.ranks, one.pairs, one.scale, one.negatives) for one in (self, other))
        return Times(self.number / other.number, *(p - q for p, q in zip(mine, theirs, strict=True)))

    def at(self, call: Call) -> float:
        """What it comes to."""
        each = sum(call.sizes) / call.world
        powers = float(call.world) ** self.ranks * each**self.pairs
        return self.number * powers * call.scale**self.scale * float(sum(call.sizes) - 1) ** self.negatives


def factor(found: Sequence[tuple[Call, float]], within: bool = False) -> Times | None:
    """The simplest form that gives these numbers, one of each call; None where there is none. within : of one number of
    ranks, of which no power is looked for."""
    if not found or not np.isfinite([number for _, number in found]).all():
        return None
    if all(abs(number) < _NEAR**3 for _, number in found):
        return Times(0.0)
    most = max(call.world for call, _ in found)
    forms = [Times(1.0, *powers) for powers in product(range(-2, 3), range(-2, 3), (0, -1, 1), (0,))]
    if within:
        forms = [Times(1.0, 0, *powers) for powers in product((0, -1, 1), range(1 - most, most + 1), (0, 1, -1))]
    forms.sort(key=length)
    for only_nice in (True, False):
        for form in forms:
            numbers = [number / form.at(call) for call, number in found]
            middle = float(np.median(numbers))
            near = next((s * n for n in _NICE for s in (1, -1) if abs(middle / (s * n) - 1) < _NEAR), None)
            if all(abs(n - middle) <= _NEAR * abs(middle) for n in numbers) and (near is not None or not only_nice):
                number = near if near is not None else simple(middle)
                return replace(form, number=number)
    return None


def length(form: Times) -> tuple[int, int]:
    """Symbols that it takes to write: W b is B."""
    together = min(abs(form.ranks), abs(form.pairs)) if form.ranks * form.pairs > 0 else 0
    return abs(form.ranks) + abs(form.pairs) - together + abs(form.scale) + abs(form.negatives), -together
