"""Work out what a loss over ranks computes: two calls of each number of ranks are taken apart, all others prove it.

Images stay at home in most rings, so their gradient says who met whom, as what, and how often; the texts' gradient says
where the share of every block ended. The three scalars are sums of what was met, times a number.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, product
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from siglip_ref.check.diagnosis.blocks.parts import Call, Part, parts_of
from siglip_ref.check.diagnosis.blocks.ways import EXACT, Way, ways
from siglip_ref.check.diagnosis.blocks.weigh import Lies, common, weigh
from siglip_ref.check.diagnosis.predict import EMBEDS
from siglip_ref.check.diagnosis.terms import simple
from siglip_ref.check.engine.seen import distance
from siglip_ref.ops.elementary import Array

EXPERIMENT, SCALED = "balanced", "small scale"  # the point at which every part weighs; one of another scale
Met = Mapping[Part, float]
Forms = Mapping[int, Mapping[Part, "Times"]]  # by number of ranks

_NEAR = 1e-3  # of a factor; it was found by least squares
_NOTHING = 1e-3  # a weight of what does not lie there, beside large ones
_MANY = 1e3  # times that a part lies somewhere: it is none of the parts
_BITS = {"float16": 10, "bfloat16": 7}  # a part's rounding is less than 2 to minus so much
_ABOUT = 0.03  # of a weight that was read off rounded numbers
_MANY_ROUNDINGS, _MANY_NUMBERS, _OF_PARTS = 32, 20, 0.15
_TINY = 1e-300
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


@dataclass(frozen=True)
class Tensor:
    """One of the five. lies: of an embedding's gradient, by number of ranks, whose part lies where; basis: of a scalar,
    by number of ranks, the parts of which it is the sum; of: what is summed of them, where it is not what is due;
    forms: by number of ranks, what parts are multiplied by that is no number."""

    times: Times
    lies: Mapping[int, Lies] | None = None
    basis: Mapping[int, Met] | None = None
    of: str = ""
    forms: Forms = field(default_factory=dict)


def _some() -> list[Callable[[Part, int], bool]]:
    """Of which blocks a scalar's gradient may be the sum: all; those of some hops (own, first, last, others), as one
    that is kept from block to block; those of some ranks' images (of rank 0, the last, others)."""
    hops = [set(hops) for size in (4, 3, 2, 1) for hops in combinations(range(4), size)]
    ranks = [set(ranks) for size in (3, 2, 1) for ranks in combinations(range(3), size)]
    return [partial(_among, of_hops, of_ranks) for of_ranks, of_hops in product(ranks, hops)]


def _among(hops: set[int], ranks: set[int], part: Part, world: int) -> bool:
    hop = (part.texts - part.images) % world
    of_hop = 0 if hop == 0 else 2 if hop == world - 1 else 1 if hop == 1 else 3
    return of_hop in hops and (0 if part.images == 0 else 1 if part.images == world - 1 else 2) in ranks


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
    if set(EMBEDS) & found.wrong or (set(EMBEDS) - set(found.tensors)):
        formed = derive(calls, formed=True)
        found = formed if formed.certain or len(formed.wrong) < len(found.wrong) else found
    for _ in range(2):
        ends = {label for _, label in found.failed}
        unequal = bool(ends) and all(not call.even for call in calls if call.label in ends)
        given = {name: one for name, one in found.tensors.items() if name not in found.wrong}
        best = _uneven(calls, found) if unequal else None
        for way in ways(unequal=False) if found.failed and not unequal else ():
            made = [replace(call, way=way) for call in calls]
            if (best is None or best.failed) and _promising(made, found):
                one = derive(made, given)
                if one.wrong < found.wrong and (best is None or len(one.wrong) < len(best.wrong)):
                    won = tuple(name for name in one.tensors if name in found.wrong - one.wrong)
                    best = replace(one, varied=(*found.varied, (way, won)))
        if best is None:
            break
        found = best
    return _rounded(calls, found) if found.failed else found


def _rounded(calls: Sequence[Call], found: Blocks) -> Blocks:
    """With embeddings' gradients that are as they should be but for roundings of their parts, with which no part goes:
    how far they lie off says to what they are rounded."""
    for side, name in (one for one in enumerate(EMBEDS) if one[1] in found.wrong and found.met):
        met = {w: {(p.owner(side), p): weight for p, weight in of.items() if weight} for w, of in found.met.items()}
        loose = [_loosely(call, name) for call in calls if call.even and call.probe.name == EXPERIMENT]
        about = _side(loose, side, sorted(met, reverse=True))
        tensors = found.tensors.get(name), Tensor(Times(), met), _plain(about) if about else None
        for tensor, way in product(filter(None, tensors), (EXACT, *(way for way, _ in found.varied))):
            made = [replace(call, way=way) for call in calls if name in call.seen]
            most = max((one for call in made for one in _off(call, side, tensor)), default=np.inf)
            form = next((form for form, bits in _BITS.items() if most < 2.0**-bits < _MANY_ROUNDINGS * most), "")
            if form:
                failed = tuple(one for one in found.failed if one[0] != name)
                varied = (*found.varied, (Way("rounded back", "", form), (name,)))
                found = replace(found, tensors={**found.tensors, name: tensor}, failed=failed, varied=varied)
                break
    return found


def _plain(tensor: Tensor) -> Tensor:
    """With weights that are whole numbers, or one over one, where they are nearly that."""

    def plain(weight: float) -> float:
        if abs(weight) < _ABOUT:
            return 0.0
        near = float(round(weight)) or 1 / round(1 / weight)
        inverse = 1 / (round(1 / weight) or 1)
        return next((one for one in (near, inverse) if abs(one / weight - 1) < _ABOUT), weight)

    lies = {world: {key: plain(w) for key, w in of.items() if plain(w)} for world, of in (tensor.lies or {}).items()}
    return replace(tensor, lies=lies, times=replace(tensor.times, number=plain(tensor.times.number)))


def _loosely(call: Call, name: str) -> Call:
    """As if everything was allowed that rounds to bfloat16."""
    seen = call.seen.get(name)
    if seen is None:
        return call
    allowed = np.full_like(seen.exact, 2.0**-9 * float(np.abs(seen.got).max()), dtype=float)
    return replace(call, seen={**call.seen, name: replace(seen, allowed=np.maximum(allowed, seen.allowed))})


def _off(call: Call, side: int, tensor: Tensor) -> Iterator[float]:
    """By rank, how far its rows are off, in units of all that was added up; infinite, if that is so much of some part:
    roundings are no such sum."""
    times, forms = tensor.times.at(call), tensor.forms.get(call.world, {})
    for holder, got in enumerate(call.rows_of(side)[0]):
        lies = [(p, w) for (rank, p), w in (tensor.lies or {})[call.world].items() if rank == holder]
        weights = [times * w * forms.get(part, Times()).at(call) for part, w in lies]
        parts = [w * call.share(side, holder, part) for w, (part, _) in zip(weights, lies, strict=True)]
        if not parts:
            yield np.inf
            continue
        off, size = got - sum(parts), sum(map(np.abs, parts)) + _TINY
        columns = np.stack([part.ravel() for part in parts], -1)
        told = columns @ np.linalg.lstsq(columns, off.ravel())[0]
        many = len(off.ravel()) > _MANY_NUMBERS * columns.shape[1]
        yield np.inf if many and told @ told > _OF_PARTS * (off * off).sum() else float(np.abs(off / size.max()).max())


def _uneven(calls: Sequence[Call], found: Blocks) -> Blocks | None:
    """What is right where shards are equal, with another way where they are not."""
    lost = {label for _, label in found.failed}
    for way in ways(unequal=True):
        made = [replace(call, way=way) for call in calls if call.label in lost]
        pairs = [(name, call) for call in made for name in call.seen if (name, call.label) in found.failed]
        if all(name in found.tensors and _gives(found.tensors[name], call, name) for name, call in pairs):
            failed = tuple((name, call.label) for call in made for name in call.lost)
            return replace(
                found, failed=failed, varied=(*found.varied, (way, tuple(dict.fromkeys(n for n, _ in pairs))))
            )
    return None


def _promising(calls: Sequence[Call], before: Blocks) -> bool:
    """Whether the parts give in the smallest calls what they did not give before."""
    worlds = sorted({call.world for call in calls})
    small = [_experiments(calls, world)[-1] for world in worlds if _experiments(calls, world)]
    sides = [side for side, name in enumerate(EMBEDS) if name in before.wrong]
    if sides and small:
        found = [weigh(call, side, 1) for side in sides for call in [c for c in small if EMBEDS[side] in c.seen][:1]]
        return any(one is not None and max(map(abs, one.values()), default=0.0) < _MANY for one in found)
    if not small or small[0].way.kind in ("matching", "labels", "pairs", "transposed"):
        return False
    bases = [Basis(before.met), Basis({world: right_of(world) for world in worlds})]
    return any(_sum_of(small, name, name, basis) for name in before.wrong - set(EMBEDS) for basis in bases if basis.met)


def _experiments(calls: Sequence[Call], world: int) -> list[Call]:
    """Of one number of ranks, or all (0): the calls that are taken apart, the largest first."""
    used = [call for call in calls if call.even and call.probe.name == EXPERIMENT and world in (0, call.world)]
    return sorted(used, key=lambda call: -sum(call.sizes))


def derive(calls: Sequence[Call], given: Mapping[str, Tensor] | None = None, formed: bool = False) -> Blocks:
    """What comes of these calls if their parts are made as they say. given : what is known of some tensors already;
    formed : each part may be multiplied by a form of its own, which takes a call at another scale, too."""
    given = given or {}
    worlds = sorted({call.world for call in calls}, reverse=True)
    used = [call for call in calls if call.even and call.probe.name in (EXPERIMENT, SCALED if formed else EXPERIMENT)]
    known = dict(given)
    for side, name in enumerate(EMBEDS):
        if name not in known and (of_side := (_formed if formed else _side)(used, side, worlds)):
            known[name] = of_side
    image, text = (known.get(name) for name in EMBEDS)
    source = image if image and image.times.number else text
    met = Basis(
        {world: _met(world, source, text) for world in worlds} if source else {}, source.forms if source else {}
    )
    every = Basis({world: right_of(world) for world in worlds})
    others = Basis({world: _met(world, text, text) for world in worlds}, text.forms) if text else every
    other = others if text and text.times.number else every
    names = list(dict.fromkeys(name for call in used for name in call.seen))
    for name in (name for name in names if name not in EMBEDS and name not in known and met.met):
        found = _scalar(used, name, (met, every, other))
        if found:
            known[name] = found
    loss = known.get("loss")
    if loss and loss.basis and not loss.of:  # the value may meet pairs from which no gradient comes
        met = next((basis for basis in (met, every, other) if loss.basis == basis.met), met)
    known = {name: known[name] for name in names if name in known}
    failed = [
        (name, call.label)
        for call in calls
        for name in call.seen
        if name not in given and (name not in known or not _gives(known[name], call, name))
    ]
    failed += [(name, call.label) for call in calls for name in call.lost]
    compared = sum(len(call.seen) for call in calls if not any(call is one for one in used))
    return Blocks(met.met, known, tuple(failed), compared)


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
    return _times(used, side, Tensor(Times(), lies))


def _times(used: Sequence[Call], side: int, tensor: Tensor) -> Tensor | None:
    """With the factor that all of it has."""
    found = []
    for call in used:
        right = _rows(call, side, tensor)
        got = np.concatenate(call.rows_of(side)[0])
        size = float((right * right).sum()) if right is not None else 0.0
        found.append((call, float((right * got).sum()) / size if right is not None and size else 0.0))
    times = factor(found)
    return None if times is None else replace(tensor, times=times)


def _formed(used: Sequence[Call], side: int, worlds: Sequence[int]) -> Tensor | None:
    """The same, of several calls of each number of ranks, with what multiplies a part as a form: t, 1/b, B - 1."""
    lies: dict[int, Lies] = {}
    forms: dict[int, dict[Part, Times]] = {}
    used = [call for call in used if EMBEDS[side] in call.seen]
    for world in worlds:
        weighed = [(call, w) for call in used if call.world == world and (w := weigh(call, side))]
        lies[world], forms[world] = {}, {}
        for key in dict.fromkeys(key for _, weights in weighed for key in weights):
            each = [(call, weights.get(key, 0.0)) for call, weights in weighed]
            if all(abs(weight) < _NOTHING for _, weight in each):
                continue
            times = factor(each, within=True)
            form = times and replace(times, number=1.0)
            if times is None or form is None or forms[world].setdefault(key[1], form) != form:
                return None
            lies[world][key] = times.number
        if len(weighed) < 2:
            return None
    shared = [form for of_world in forms.values() for form in of_world.values()]
    most = Times() if Times() in shared else max(shared, key=shared.count, default=Times())
    apart = {w: {part: form.over(most) for part, form in of.items() if form != most} for w, of in forms.items()}
    return _times(used, side, Tensor(Times(), lies, forms=apart))


def _rows(call: Call, side: int, tensor: Tensor) -> Array | None:
    """All that lies there; None where it is of another shape."""
    held = [np.zeros((size, call.probe.shape[1])) for size in call.sizes]
    forms = tensor.forms.get(call.world, {})
    for (holder, part), weight in (tensor.lies or {})[call.world].items():
        if call.sizes[part.owner(side)] != call.sizes[holder]:
            return None
        times = forms[part].at(call) if part in forms else 1.0
        held[holder] += times * weight * call.share(side, holder, part)
    return np.concatenate(held)


def _met(world: int, source: Tensor, texts: Tensor | None) -> dict[Part, float]:
    """What was met: every part, wherever it lies; blocks against zeros are seen in the texts' gradient alone."""
    found = {part: 0.0 for part in parts_of(world)}
    for (_, part), weight in (source.lies or {}).get(world, {}).items():
        found[part._replace(rows=-1)] += weight
    for (_, part), weight in ((texts.lies if texts else None) or {}).get(world, {}).items():
        if part.kind == "zeros":
            found[part] = weight
    return found


def right_of(world: int) -> dict[Part, float]:
    """What SigLIP's loss meets."""
    return {part: float(part.usual) for part in parts_of(world)}


class Basis(NamedTuple):
    """What a scalar may be the sum of, by number of ranks: how often each part, and times what."""

    met: Mapping[int, Met]
    forms: Forms = MappingProxyType({})


def _scalar(used: Sequence[Call], name: str, bases: Sequence[Basis]) -> Tensor | None:
    """What is due summed over what was met, against zeros too, or over every pair; or something else, or over less."""
    used = [call for call in used if name in call.seen]
    worlds = sorted({call.world for call in used}, reverse=True)
    every, *less = _some()
    others = (*(other for other in _numbers(used) if other != name), "logit", "similarity")
    for of, some in (*product((name, *others), (every,)), *product((name,), less)):
        fits: list[Tensor] = []
        for basis, zeros in product(bases, (False, True) if some is every else (False,)):
            summed = {world: _basis(basis.met[world], world, some, zeros) for world in worlds}
            if all(summed != one.basis for one in fits) and (
                one := _sum_of(used, name, of, Basis(summed, basis.forms))
            ):
                fits.append(one)
        if fits:
            return min(fits, key=lambda one: _length(one.times))
    return None


def _numbers(used: Sequence[Call]) -> list[str]:
    return [name for name in dict.fromkeys(name for call in used for name in call.seen) if name not in EMBEDS]


def _sum_of(used: Sequence[Call], name: str, of: str, basis: Basis) -> Tensor | None:
    """A number times a sum, if that is what came."""
    used = [call for call in used if name in call.seen]
    found = []
    for call in used:
        total = _sum(call, of, basis)
        found.append((call, float(np.asarray(call.seen[name].got)) / total if total else 0.0))
    silent = all(not _sum(call, of, basis) and not np.any(call.seen[name].got) for call in used)
    if (times := Times() if silent and found else factor(found)) is None:
        return None
    one = Tensor(times, basis=basis.met, of="" if of == name else of, forms=basis.forms)
    return one if all(_gives(one, call, name) for call in used) else None


def _basis(met: Met, world: int, some: Callable[[Part, int], bool], zeros: bool) -> Met:
    """Of what a scalar is the sum. zeros : with blocks that nobody met as against zeros, of which texts learn
    nothing."""
    met = {part: weight * some(part, world) for part, weight in met.items()}
    if not zeros:
        return met
    seen = {part.block for part, weight in met.items() if weight}
    return {p: 1.0 if p.kind == "zeros" and p.block not in seen else weight for p, weight in met.items()}


def _sum(call: Call, of: str, basis: Basis) -> float:
    forms = basis.forms.get(call.world, {})
    return sum(
        weight * call.parts[part].scalars[of] * (forms[part].at(call) if part in forms else 1.0)
        for part, weight in basis.met[call.world].items()
        if weight
    )


def _gives(tensor: Tensor, call: Call, name: str) -> bool:
    factor, forms = tensor.times.at(call), tensor.forms.get(call.world, {})
    if tensor.lies is None:
        weights = dict((tensor.basis or {})[call.world])
        basis = Basis(tensor.basis or {}, tensor.forms)
        value: Array | None = np.array(_sum(call, tensor.of or name, basis) if factor else 0.0)
    else:
        weights = {part: weight for (_, part), weight in tensor.lies[call.world].items()}
        value = _rows(call, EMBEDS.index(name), tensor)
    top = max((abs(w) * (forms[part].at(call) if part in forms else 1.0) for part, w in weights.items()), default=1.0)
    seen = call.seen[name]
    if tensor.of in call.seen:  # rounds as that does
        seen = replace(seen, allowed=np.maximum(seen.allowed, call.seen[tensor.of].allowed))
    return value is not None and distance(seen, factor * value) <= 2 * max(1.0, abs(factor), abs(factor) * top)


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
    forms.sort(key=_length)
    for only_nice in (True, False):
        for form in forms:
            numbers = [number / form.at(call) for call, number in found]
            middle = float(np.median(numbers))
            near = next((s * n for n in _NICE for s in (1, -1) if abs(middle / (s * n) - 1) < _NEAR), None)
            if all(abs(n - middle) <= _NEAR * abs(middle) for n in numbers) and (near is not None or not only_nice):
                number = near if near is not None else simple(middle)
                return replace(form, number=number)
    return None


def _length(form: Times) -> tuple[int, int]:
    """Symbols that it takes to write: W b is B."""
    together = min(abs(form.ranks), abs(form.pairs)) if form.ranks * form.pairs > 0 else 0
    return abs(form.ranks) + abs(form.pairs) - together + abs(form.scale) + abs(form.negatives), -together
