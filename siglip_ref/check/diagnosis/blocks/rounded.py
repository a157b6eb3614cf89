"""Embeddings' gradients that are as they should be but for roundings of their parts, with which no part goes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from siglip_ref.check.diagnosis.blocks.parts import Call
from siglip_ref.check.diagnosis.blocks.tensors import EXPERIMENT, Blocks, Tensor, side_of
from siglip_ref.check.diagnosis.blocks.times import Times
from siglip_ref.check.diagnosis.blocks.ways import EXACT, Way
from siglip_ref.check.diagnosis.predict import EMBEDS

_BITS = {"float16": 10, "bfloat16": 7}  # a part's rounding is less than 2 to minus so much
_ABOUT = 0.03  # of a weight that was read off rounded numbers
_MANY_ROUNDINGS, _MANY_NUMBERS, _OF_PARTS = 32, 20, 0.15
_TINY = 1e-300


def rounded_back(calls: Sequence[Call], found: Blocks) -> Blocks:
    """With embeddings' gradients that are as they should be but for roundings of their parts, with which no part goes:
    how far they lie off says to what they are rounded."""
    for side, name in (one for one in enumerate(EMBEDS) if one[1] in found.wrong and found.met):
        met = {w: {(p.owner(side), p): weight for p, weight in of.items() if weight} for w, of in found.met.items()}
        loose = [_loosely(call, name) for call in calls if call.even and call.probe.name == EXPERIMENT]
        about = side_of(loose, side, sorted(met, reverse=True))
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
