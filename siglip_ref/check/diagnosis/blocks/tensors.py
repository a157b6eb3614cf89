"""Tensors of a loss over ranks as sums of parts; where those of an embedding's gradient lie, read off single calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from siglip_ref.check.diagnosis.blocks.groups import simple
from siglip_ref.check.diagnosis.blocks.parts import Call, Part, parts_of
from siglip_ref.check.diagnosis.blocks.times import Times, factor
from siglip_ref.check.diagnosis.blocks.ways import Way
from siglip_ref.check.diagnosis.blocks.weigh import Lies, common, weigh
from siglip_ref.check.diagnosis.predict import EMBEDS
from siglip_ref.check.engine.seen import distance
from siglip_ref.ops.elementary import Array

Met = Mapping[Part, float]
Forms = Mapping[int, Mapping[Part, Times]]  # by number of ranks

EXPERIMENT = "balanced"  # the point at which every part weighs
_NOTHING = 1e-3  # a weight of what does not lie there, beside large ones


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


class Basis(NamedTuple):
    """What a scalar may be the sum of, by number of ranks: how often each part, and times what."""

    met: Mapping[int, Met]
    forms: Forms = MappingProxyType({})


def side_of(used: Sequence[Call], side: int, worlds: Sequence[int], formed: bool = False) -> Tensor | None:
    """Where the parts of one embedding's gradient lie: in the largest call of each number of ranks. formed : each part
    may be multiplied by a form of its own"""
    if formed:
        return _formed(used, side, worlds)
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
    return _with_factor(used, side, Tensor(Times(), lies))


def _with_factor(used: Sequence[Call], side: int, tensor: Tensor) -> Tensor | None:
    """With the factor that all of it has."""
    found = []
    for call in used:
        right = rows_held(call, side, tensor)
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
    return _with_factor(used, side, Tensor(Times(), lies, forms=apart))


def rows_held(call: Call, side: int, tensor: Tensor) -> Array | None:
    """All that lies there; None where it is of another shape."""
    held = [np.zeros((size, call.probe.shape[1])) for size in call.sizes]
    forms = tensor.forms.get(call.world, {})
    for (holder, part), weight in (tensor.lies or {})[call.world].items():
        if call.sizes[part.owner(side)] != call.sizes[holder]:
            return None
        times = forms[part].at(call) if part in forms else 1.0
        held[holder] += times * weight * call.share(side, holder, part)
    return np.concatenate(held)


def met_of(world: int, source: Tensor, texts: Tensor | None) -> dict[Part, float]:
    """What was met: every part, wherever it lies; blocks against zeros are seen in the texts' gradient alone."""
    found = {part: 0.0 for part in parts_of(world)}
    for (_, part), weight in (source.lies or {}).get(world, {}).items():
        found[part._replace(rows=-1)] += weight
    for (_, part), weight in ((texts.lies if texts else None) or {}).get(world, {}).items():
        if part.kind == "zeros":
            found[part] = weight
    return found


def summed(call: Call, of: str, basis: Basis) -> float:
    forms = basis.forms.get(call.world, {})
    return sum(
        weight * call.parts[part].scalars[of] * (forms[part].at(call) if part in forms else 1.0)
        for part, weight in basis.met[call.world].items()
        if weight
    )


def gives(tensor: Tensor, call: Call, name: str) -> bool:
    factor, forms = tensor.times.at(call), tensor.forms.get(call.world, {})
    if tensor.lies is None:
        weights = dict((tensor.basis or {})[call.world])
        basis = Basis(tensor.basis or {}, tensor.forms)
        value: Array | None = np.array(summed(call, tensor.of or name, basis) if factor else 0.0)
    else:
        weights = {part: weight for (_, part), weight in tensor.lies[call.world].items()}
        value = rows_held(call, EMBEDS.index(name), tensor)
    top = max((abs(w) * (forms[part].at(call) if part in forms else 1.0) for part, w in weights.items()), default=1.0)
    seen = call.seen[name]
    if tensor.of in call.seen:  # rounds as that does
        seen = replace(seen, allowed=np.maximum(seen.allowed, call.seen[tensor.of].allowed))
    return value is not None and distance(seen, factor * value) <= 2 * max(1.0, abs(factor), abs(factor) * top)
