"""How often each part lies with each rank: least squares over the rows of one embedding's gradient, in one call."""

from collections.abc import Mapping, Sequence

import numpy as np

from siglip_ref.check.diagnosis.blocks.groups import simple
from siglip_ref.check.diagnosis.blocks.parts import Call, Part, parts_of
from siglip_ref.ops.elementary import Array

Lies = dict[tuple[int, Part], float]  # by the rank that holds it and the part, how many times; nothing: it does not

_APART = 1e-5  # of the largest singular value: parts that are more alike cannot be told apart
_SURE = 0.02  # of a weight: one that is known less well is not known
_FITS = 2.0  # times what is allowed: both sides round
_DIGITS = 1e-9
_LARGE = 1e5  # a weight; columns of next to nothing, times enough, are anything


def weigh(call: Call, side: int, of: int | None = None) -> Lies | None:
    """Of parts of the rank's own rows, if they give everything that came; else of all ranks' parts, or of the slopes of
    one's own blocks times any rank's rows. None where none does, or where parts are too much alike. of : of this rank
    alone, the first of these."""
    got, allowed = call.rows_of(side)
    found: Lies = {}
    silent = set[tuple[int, Part]]()  # parts of no pair: as often as the others
    for holder in range(call.world) if of is None else (of,):
        # where other pairs match, a block may have one, which is the same rows as a match or not
        only = call.way.kind == "matching"
        every = parts_of(call.world)
        full = [part for part in every if part.kind != "zeros" and (part.usual or not only)]
        mine = [part for part in full if part.owner(side) == holder]
        zeros = [part for part in every if part.kind == "zeros" and part.owner(side) == holder and side == 1]
        # of other ranks' rows only what is as it should be: a diagonal's two kinds differ by the same rows everywhere
        others = [
            p for p in full if p.owner(side) != holder and p.usual and call.sizes[p.owner(side)] == call.sizes[holder]
        ]
        crossed = [
            part if rows == part.owner(1 - side) else part._replace(rows=rows)
            for part in mine
            for rows in range(call.world)
            if part.usual and call.even
        ]
        for parts in (mine, mine + zeros, mine + others, crossed)[: None if of is None else 1]:
            weights = _solved([call.share(side, holder, part) for part in parts], got[holder], allowed[holder])
            if weights is not None:
                found |= {(holder, p): w for p, w in zip(parts, weights, strict=True) if w is not None and w}
                silent |= {(holder, p) for p, w in zip(parts, weights, strict=True) if w is None and p.usual}
                break
        else:
            return None
    return found | dict.fromkeys(silent, common(found) or 1.0)


def _solved(columns: Sequence[Array], got: Array, allowed: Array) -> list[float | None] | None:
    """Weights under which the columns add up to what came, each as a simple number where it may be one; None of columns
    of zeros."""
    matrix = np.stack([(column / allowed).ravel() for column in columns], -1)
    wanted = (got / allowed).ravel()
    if np.abs(wanted).max() <= _FITS:
        return [0.0] * len(columns)
    there = (matrix != 0).any(0)
    if not there.any():
        return None
    if not there.all():
        found = _solved([column for column, is_there in zip(columns, there, strict=True) if is_there], got, allowed)
        weighed = iter(found or ())
        return None if found is None else [next(weighed) if is_there else None for is_there in there]
    norms = np.sqrt((matrix * matrix).sum(0))
    left, singular, right = np.linalg.svd(matrix / norms, full_matrices=False)
    if len(wanted) < len(columns) or singular[-1] < _APART * singular[0]:
        return None
    weights = right.T @ ((left.T @ wanted) / singular) / norms
    loose = np.sqrt(((right / singular[:, None]) ** 2).sum(0)) / norms  # if all that came is off by what is allowed
    top = max(float(np.abs(weights).max()), 1e-300)
    if (loose > _SURE * top).any() or top > _LARGE:
        return None
    rounded: list[float | None] = [
        _rounded(w, max(d, _DIGITS * top)) for w, d in zip(weights.tolist(), loose.tolist(), strict=True)
    ]
    return rounded if np.abs(matrix @ np.array(rounded, np.float64) - wanted).max() <= _FITS * max(1.0, top) else None


def _rounded(weight: float, loose: float) -> float:
    near = simple(weight)
    return near if abs(near - weight) <= 3 * loose else weight


def common(weights: Mapping[tuple[int, Part], float]) -> float:
    """What the others are told by: 1 where a part lies there once, else the weight that most have; 0 where nothing
    arrived."""
    values = list(weights.values())
    if not values or any(abs(one - 1) < 1e-3 for one in values):
        return 1.0 if values else 0.0
    return max(values, key=lambda one: sum(abs(other - one) <= 1e-3 * abs(one) for other in values))
