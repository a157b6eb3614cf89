"""Is a loss wrong only where a tile divides the batch, or the width, so that no tail is left?

With rest = B % tile, x[-rest:] is the tail, and at rest = 0 the whole batch, which so counts twice; x[:-rest] is then
empty; tile - rest rows of padding are a whole tile; a loop over B // tile - 1 tiles and a tail leaves one out. Batches
that no tile divides show nothing of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.diagnosis.predict import EMBEDS, Context, by_tensor
from siglip_ref.check.engine.expected.exact import exact_loss
from siglip_ref.check.engine.expected.probes import Dims, Probe, Shape, read_dims
from siglip_ref.check.engine.seen import Seen, distance, is_wrong
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import places
from siglip_ref.report.data import Finding, FindingKind

TAIL, CUT = "tail-counted-twice", "beyond-a-tile"
DIRECTIONS = "both-directions-summed"  # everything times 2 at every shape
TILES = (2, 4, 8, 16, 32, 64, 128)
AXES = ("B", "D")
TWICE = ("2 times the right one", "as where similarities are 2 times the right ones")


def has_whole_tiles(probes: Iterable[Probe]) -> bool:
    """Whether there is a batch that every usual tile divides."""
    return any(probe.shape[0] % TILES[-1] == 0 for probe in probes)


def tail_finding(seen: Sequence[Seen], contexts: Mapping[str, Context], dims: Dims = None) -> Finding | None:
    """The finding, if something is wrong at exactly the calls whose B or D some tile divides; or, where `dims` leaves
    no other D, if similarities are twice the right ones at all of them. On ranks B is what each of them has.

    Parameters
    ----------
    seen : every tensor of the plain calls, right ones too; contexts : by label
    """
    wrong = [one for one in seen if is_wrong(one)]
    off = {one.probe for one in wrong}
    shapes = {one.probe: _shape(contexts[one.probe]) for one in seen}
    for axis, name in enumerate(AXES):
        tiles = [t for t in TILES if off == {label for label in shapes if shapes[label][axis] % t == 0} != set(shapes)]
        if off and tiles:
            right, there = (_numbers({shapes[label][axis] for label in some}) for some in (shapes.keys() - off, off))
            where = f"right at {name} = {right}, wrong at {name} = {there}, where tiles of {_span(tiles)} leave no tail"
            twice = _is_twice(wrong, contexts, axis)
            told = [TWICE[axis]] if twice else _places(wrong)
            return _finding(TAIL if twice else CUT, wrong, "; ".join([where, *told]))
    if off and read_dims(dims)[1] > 1 and _is_twice(wrong, contexts, axis=1):
        return _finding(TAIL, wrong, f"{TWICE[1]}, at every D that dims allows")
    return None


def with_a_tail(findings: list[Finding], dims: Dims) -> list[Finding]:
    """Where `dims` leaves no batch that a tile does not divide, no number tells a tail that counts twice from two
    directions that are added: both are named."""
    if [finding.id for finding in findings] != [DIRECTIONS] or read_dims(dims)[0] == 1:
        return findings
    evidence = f"{TWICE[0]} at every B that dims allows; with {DIRECTIONS} it is so at a B that no tile divides, too"
    told = f"{CATALOGUE[TAIL].text}; {findings[0].tensor}: {evidence}"
    return [Finding(TAIL, findings[0].tensor, "", told, CATALOGUE[TAIL].repair), *findings]


def _finding(id: str, wrong: Sequence[Seen], evidence: str) -> Finding:
    names = ", ".join(dict.fromkeys(one.name for one in wrong))
    # that it is twice the right one is reproduced; what else goes by tiles may be their labels, or a chunk of B
    kind: FindingKind = "mistake" if id == TAIL else "suspicion"
    return Finding(id, names, "", f"{CATALOGUE[id].text}; {names}: {evidence}", CATALOGUE[id].repair, kind)


def _shape(context: Context) -> Shape:
    """Pairs, of which a tile must divide those of every rank, and D."""
    return math.gcd(*context.sizes), context.probe.shape[1]


def _is_twice(wrong: Sequence[Seen], contexts: Mapping[str, Context], axis: int) -> bool:
    """Whether what is wrong is twice the right one (axis 0), or as where all similarities are twice theirs (axis 1)."""
    for one in wrong:
        to = 2 * one.exact if axis == 0 else _of_twice_the_similarity(contexts[one.probe])[one.name]
        grown = np.abs(to).max() / (np.abs(one.exact).max() or 1.0)  # and rounding with it
        if not distance(one, to) <= 2 * max(1.0, grown):
            return False
    return True


def _of_twice_the_similarity(context: Context) -> dict[str, Array]:
    probe = context.probe
    twice = replace(probe, log_scale=probe.log_scale + np.log(2), scale=2 * probe.scale)
    found = exact_loss(twice, context.convention)
    of_scale = (2 if context.convention.linear else 1) * found.d_log_scale
    return by_tensor(found._replace(d_log_scale=of_scale), context.convention)


def _places(wrong: Sequence[Seen]) -> list[str]:
    """Which rows of the embeddings' gradients, where it is not all."""
    first = {name: next((one for one in wrong if one.name == name), None) for name in EMBEDS}
    places = {name: far_off(one.got, one.exact) for name, one in first.items() if one is not None}
    return [f"d {name}: {place}" for name, place in places.items() if place]


def far_off(got: Array | None, exact: Array) -> str:
    """The rows that are zero, or off by half of their size and more, where others are not."""
    if got is None or np.shape(got) != exact.shape:
        return ""
    with np.errstate(all="ignore"):
        size, far = np.abs(exact).max(-1), np.abs(got - exact).max(-1)
        kinds = {"zero": (np.asarray(got) == 0).all(-1), "off by half of their size and more": ~(far < 0.5 * size)}
    found = ((kind, rows) for kind, rows in kinds.items() if rows.any() and not rows.all())
    return next((f"{places(rows, 'row')} {kind}" for kind, rows in found), "")


def _numbers(found: set[int]) -> str:
    return ", ".join(map(str, sorted(found)))


def _span(tiles: Sequence[int]) -> str:
    return f"{tiles[0]} to {tiles[-1]}" if len(tiles) > 1 else str(tiles[0])
