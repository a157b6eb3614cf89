"""Work out what a loss over ranks computes: two calls of each number of ranks are taken apart, all others prove it.

Images stay at home in most rings, so their gradient says who met whom, as what, and how often; the texts' gradient says
where the share of every block ended. The three scalars are sums of what was met, times a number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.blocks.parts import Call, Part
from siglip_ref.check.diagnosis.blocks.ways import Way, ways
from siglip_ref.check.diagnosis.blocks.weigh import Lies, common, weigh
from siglip_ref.check.diagnosis.predict import EMBEDS
from siglip_ref.check.diagnosis.terms import simple
from siglip_ref.check.engine.seen import distance
from siglip_ref.ops.elementary import Array

EXPERIMENT = "balanced"  # the point at which every part weighs
Met = Mapping[Part, float]

_NEAR = 1e-3  # of a factor; it was found by least squares
_MANY = 1e3  # times that a part lies somewhere: it is none of the parts
_NICE = (1.0, 2.0, 0.5, np.log(2), 1 / np.log(2))


@dataclass(frozen=True)
class Times:
    """A factor: a number times powers of W, of b (pairs a rank), of t (the scale)."""

    number: float = 1.0
    ranks: int = 0
    pairs: int = 0
    scale: int = 0

    def __str__(self) -> str:
        """1/W, 2B, 0.37.

        >>> str(Times(1.0, -1)), str(Times(2.0, 1, 1)), str(Times(-1.0, 0, 0, 1))
        ('1/W', '2B', '-t')
        """
        powers = {"W": self.ranks, "b": self.pairs, "t": self.scale}
        if self.ranks == self.pairs != 0:
            powers = {"B": self.ranks, "t": self.scale}
        above, below = (
            "".join(name if abs(p) == 1 else f"{name}^{abs(p)}" for name, p in powers.items() if p * sign > 0)
            for sign in (1, -1)
        )
        number = f"{self.number:.6g}"
        if above or below:
            number = {"1": "" if above else "1", "-1": "-" if above else "-1"}.get(number, number)
        return f"{number}{above}" + (f"/{below}" if below else "")

    def over(self, other: "Times") -> "Times":
        """What is left of it, divided by another."""
        powers = self.ranks - other.ranks, self.pairs - other.pairs, self.scale - other.scale
        return Times(self.number / other.number, *powers)

    def at(self, call: Call) -> float:
        """What it comes to."""
        each = sum(call.sizes) / call.world
        powers = float(call.world) ** self.ranks * each**self.pairs
        return self.number * powers * call.scale**self.scale


@dataclass(frozen=True)
class Tensor:
    """One of the five. lies: of an embedding's gradient, by number of ranks, whose part lies where; basis: of a scalar,
    by number of ranks, the parts of which it is the sum; of: what is summed of them, where it is not what is due."""

    times: Times
    lies: Mapping[int, Lies] | None = None
    basis: Mapping[int, Met] | None = None
    of: str = ""


# Of which blocks a scalar's gradient may be the sum, by hop and number of ranks: one that is kept from block to block.
HOPS: Mapping[str, Callable[[int, int], bool]] = {
    "": lambda hop, world: True,
    "own": lambda hop, world: hop == 0,
    "remote": lambda hop, world: hop > 0,
    "last": lambda hop, world: hop == world - 1,
    "first remote": lambda hop, world: hop == 1,
    "all but the last": lambda hop, world: hop < world - 1,
}


@dataclass(frozen=True)
class Blocks:
    """What a loss over ranks computes. met: by number of ranks, how often each part was; failed: tensors and calls that
    it does not give; compared: tensors at calls of which nothing was used; varied: in which tensors what is made in
    which other way."""

    met: Mapping[int, Met]
    tensors: Mapping[str, Tensor]
    failed: tuple[tuple[str, str], ...]
    compared: int
    varied: tuple[tuple[Way, tuple[str, ...]], ...] = ()

    @property
    def certain(self) -> bool:
        """Whether it gives everything, at calls that no experiment used, too."""
        return bool(self.met) and not self.failed and self.compared > 0

    @property
    def wrong(self) -> set[str]:
        """Tensors that it does not give everywhere."""
        return {name for name, _ in self.failed}


def worked_out(calls: Sequence[Call]) -> Blocks:
    """What comes of these calls, as far as it can be told; where parts made as usual do not give a tensor, in another
    way if that does: one way for all such tensors, or two."""
    found = derive(calls)
    for _ in range(2):
        ends = {label for _, label in found.failed}
        unequal = all(not call.even for call in calls if call.label in ends)
        given = {name: one for name, one in found.tensors.items() if name not in found.wrong}
        best: Blocks | None = None
        for way in ways(unequal) if found.failed else ():
            made = [replace(call, way=way) for call in calls]
            if (best is None or best.failed) and (unequal or _promising(made, found)):
                one = derive(made, given)
                if one.wrong < found.wrong and (best is None or len(one.wrong) < len(best.wrong)):
                    won = tuple(name for name in one.tensors if name in found.wrong - one.wrong)
                    best = replace(one, varied=(*found.varied, (way, won)))
        if best is None:
            break
        found = best
    return found


def _promising(calls: Sequence[Call], before: Blocks) -> bool:
    """Whether the parts give in the smallest calls what they did not give before."""
    worlds = sorted({call.world for call in calls})
    small = [_experiments(calls, world)[-1] for world in worlds if _experiments(calls, world)]
    sides = [side for side, name in enumerate(EMBEDS) if name in before.wrong]
    if sides and small:
        found = [weigh(call, side) for side in sides for call in [c for c in small if EMBEDS[side] in c.seen][:1]]
        return any(one is not None and max(map(abs, one.values()), default=0.0) < _MANY for one in found)
    if not small or small[0].way.kind == "matching":
        return False
    bases = [before.met, {world: right_of(world) for world in worlds}]
    return any(_sum_of(small, name, name, basis) for name in before.wrong - set(EMBEDS) for basis in bases if basis)


def _experiments(calls: Sequence[Call], world: int) -> list[Call]:
    """Of one number of ranks, or all (0): the calls that are taken apart, the largest first."""
    used = [call for call in calls if call.even and call.probe.name == EXPERIMENT and world in (0, call.world)]
    return sorted(used, key=lambda call: -sum(call.sizes))


def derive(calls: Sequence[Call], given: Mapping[str, Tensor] | None = None) -> Blocks:
    """What comes of these calls if their parts are made as they say. given : what is known of some tensors already."""
    given = given or {}
    worlds = sorted({call.world for call in calls}, reverse=True)
    used = [call for call in calls if call.even and call.probe.name == EXPERIMENT]
    known = dict(given)
    for side, name in enumerate(EMBEDS):
        if name not in known and (of_side := _side(used, side, worlds)) is not None:
            known[name] = of_side
    image, text = (known.get(name) for name in EMBEDS)
    source = image if image and image.times.number else text
    met = {world: _met(world, source, text) for world in worlds} if source else {}
    every = {world: right_of(world) for world in worlds}
    other = {world: _met(world, text, text) for world in worlds} if text and text.times.number else every
    names = list(dict.fromkeys(name for call in used for name in call.seen))
    for name in (name for name in names if name not in EMBEDS and name not in known and met):
        found = _scalar(used, name, (met, every, other))
        if found:
            known[name] = found
    loss = known.get("loss")
    if loss and loss.basis and not loss.of:  # the value may meet pairs from which no gradient comes
        met = next((basis for basis in (met, every, other) if loss.basis == basis), met)
    known = {name: known[name] for name in names if name in known}
    failed = [
        (name, call.label)
        for call in calls
        for name in call.seen
        if name not in given and (name not in known or not _gives(known[name], call, name))
    ]
    failed += [(name, call.label) for call in calls for name in call.lost]
    compared = sum(len(call.seen) for call in calls if not any(call is one for one in used))
    return Blocks(met, known, tuple(failed), compared)


def _side(used: Sequence[Call], side: int, worlds: Sequence[int]) -> Tensor | None:
    """Where the parts of one embedding's gradient lie: in the largest call of each number of ranks."""
    lies: dict[int, Lies] = {}
    used = [call for call in used if EMBEDS[side] in call.seen]
    for world in worlds:
        for call in sorted((c for c in used if c.world == world), key=lambda c: -sum(c.sizes)):
            weights = weigh(call, side)
            if weights is not None:
                own = common(weights)
                lies[world] = {key: simple(w / own) for key, w in weights.items()} if own else {}
                break
        else:
            return None
    found = []
    for call in used:
        right = _rows(call, side, lies[call.world])
        got = np.concatenate(call.rows_of(side)[0])
        size = float((right * right).sum()) if right is not None else 0.0
        found.append((call, float((right * got).sum()) / size if right is not None and size else 0.0))
    times = factor(found)
    return None if times is None else Tensor(times, lies)


def _rows(call: Call, side: int, lies: Lies) -> Array | None:
    """All that lies there; None where it is of another shape."""
    held = [np.zeros((size, call.probe.shape[1])) for size in call.sizes]
    for (holder, part), weight in lies.items():
        if call.sizes[part.owner(side)] != call.sizes[holder]:
            return None
        held[holder] += weight * call.share(side, holder, part)
    return np.concatenate(held)


def _met(world: int, source: Tensor, texts: Tensor | None) -> dict[Part, float]:
    """What was met: every part, wherever it lies; blocks against zeros are seen in the texts' gradient alone."""
    found = {part: 0.0 for part in _parts(world)}
    for (_, part), weight in (source.lies or {}).get(world, {}).items():
        found[part] += weight
    for (_, part), weight in ((texts.lies if texts else None) or {}).get(world, {}).items():
        if part.kind == "zeros":
            found[part] = weight
    return found


def _parts(world: int) -> list[Part]:
    kinds = ("positives", "negatives", "diagonal", "zeros")
    return [Part(i, j, kind) for i, j, kind in product(range(world), range(world), kinds)]  # type: ignore[arg-type]  # of a tuple of kinds


def right_of(world: int) -> dict[Part, float]:
    """What SigLIP's loss meets."""
    return {part: float(part.usual) for part in _parts(world)}


def _scalar(used: Sequence[Call], name: str, bases: Sequence[Mapping[int, Met]]) -> Tensor | None:
    """What is due summed over what was met, against zeros too, or over every pair; or something else, or over less."""
    used = [call for call in used if name in call.seen]
    worlds = sorted({call.world for call in used}, reverse=True)
    tried: list[tuple[str, Mapping[int, Met]]] = []
    others = (*(other for other in _numbers(used) if other != name), "logit", "similarity")
    for of, hops in (*product((name,), HOPS), *product(others, ("",))):
        for basis, zeros in product(bases, (False, True)):
            summed = {world: _basis(basis[world], world, hops, zeros) for world in worlds}
            if (of, summed) not in tried:
                tried.append((of, summed))
                if found := _sum_of(used, name, of, summed):
                    return found
    return None


def _numbers(used: Sequence[Call]) -> list[str]:
    return [name for name in dict.fromkeys(name for call in used for name in call.seen) if name not in EMBEDS]


def _sum_of(used: Sequence[Call], name: str, of: str, basis: Mapping[int, Met]) -> Tensor | None:
    """A number times a sum, if that is what came."""
    used = [call for call in used if name in call.seen]
    found = []
    for call in used:
        total = _sum(call, of, basis[call.world])
        found.append((call, float(np.asarray(call.seen[name].got)) / total if total else 0.0))
    silent = all(not _sum(call, of, basis[call.world]) and not np.any(call.seen[name].got) for call in used)
    if (times := Times() if silent and found else factor(found)) is None:
        return None
    one = Tensor(times, basis=basis, of="" if of == name else of)
    return one if all(_gives(one, call, name) for call in used) else None


def _basis(met: Met, world: int, hops: str, zeros: bool) -> Met:
    """Of what a scalar is the sum. zeros : with blocks that nobody met as against zeros, of which texts learn
    nothing."""
    counts = HOPS[hops]
    if hops:
        met = {p: w * counts((p.texts - p.images) % world, world) for p, w in met.items()}
    if not zeros:
        return met
    seen = {part.block for part, weight in met.items() if weight}
    return {p: 1.0 if p.kind == "zeros" and p.block not in seen else weight for p, weight in met.items()}


def _sum(call: Call, of: str, met: Met) -> float:
    return sum(weight * call.parts[part].scalars[of] for part, weight in met.items() if weight)


def _gives(tensor: Tensor, call: Call, name: str) -> bool:
    factor = tensor.times.at(call)
    if tensor.lies is None:
        met = (tensor.basis or {})[call.world]
        value: Array | None = np.array(_sum(call, tensor.of or name, met) if factor else 0.0)
        top = 1.0
    else:
        lies = tensor.lies[call.world]
        value, top = _rows(call, EMBEDS.index(name), lies), max(map(abs, lies.values()), default=1.0)
    seen = call.seen[name]
    if tensor.of in call.seen:  # rounds as that does
        seen = replace(seen, allowed=np.maximum(seen.allowed, call.seen[tensor.of].allowed))
    return value is not None and distance(seen, factor * value) <= 2 * max(1.0, abs(factor), abs(factor) * top)


def factor(found: Sequence[tuple[Call, float]]) -> Times | None:
    """The simplest form that gives these numbers, one of each call; None where there is none."""
    if not found or not np.isfinite([number for _, number in found]).all():
        return None
    if all(abs(number) < _NEAR**3 for _, number in found):
        return Times(0.0)
    forms = [Times(1.0, *powers) for powers in product(range(-2, 3), range(-2, 3), (0, -1, 1))]
    forms.sort(key=_length)
    for only_nice in (True, False):
        for form in forms:
            numbers = [number / form.at(call) for call, number in found]
            middle = float(np.median(numbers))
            near = next((s * n for n in _NICE for s in (1, -1) if abs(middle / (s * n) - 1) < _NEAR), None)
            if all(abs(n - middle) <= _NEAR * abs(middle) for n in numbers) and (near is not None or not only_nice):
                number = near if near is not None else simple(middle)
                return Times(number, form.ranks, form.pairs, form.scale)
    return None


def _length(form: Times) -> tuple[int, int]:
    """Symbols that it takes to write: W b is B."""
    together = min(abs(form.ranks), abs(form.pairs)) if form.ranks * form.pairs > 0 else 0
    return abs(form.ranks) + abs(form.pairs) - together + abs(form.scale), -together
