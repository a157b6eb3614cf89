"""Work out what a loss over ranks computes: two calls of each number of ranks are taken apart, all others prove it.

Images stay at home in most rings, so their gradient says who met whom, as what, and how often; the texts' gradient says
where the share of every block ended. The three scalars are sums of what was met, times a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from siglip_ref.check.diagnosis.blocks.parts import Call
from siglip_ref.check.diagnosis.blocks.rounded import rounded_back
from siglip_ref.check.diagnosis.blocks.scalars import right_of, scalar_of, sum_of
from siglip_ref.check.diagnosis.blocks.tensors import EXPERIMENT, Basis, Blocks, Tensor, gives, met_of, side_of
from siglip_ref.check.diagnosis.blocks.ways import ways
from siglip_ref.check.diagnosis.blocks.weigh import weigh
from siglip_ref.check.diagnosis.predict import EMBEDS

SCALED = "small scale"  # a point of another scale than that of the experiments
_MANY = 1e3  # times that a part lies somewhere: it is none of the parts


def derive(calls: Sequence[Call], given: Mapping[str, Tensor] | None = None, formed: bool = False) -> Blocks:
    """What comes of these calls if their parts are made as they say. given : what is known of some tensors already;
    formed : each part may be multiplied by a form of its own, which takes a call at another scale, too."""
    given = given or {}
    worlds = sorted({call.world for call in calls}, reverse=True)
    used = [call for call in calls if call.even and call.probe.name in (EXPERIMENT, SCALED if formed else EXPERIMENT)]
    known = dict(given)
    for side, name in enumerate(EMBEDS):
        if name not in known and (of_side := side_of(used, side, worlds, formed)):
            known[name] = of_side
    image, text = (known.get(name) for name in EMBEDS)
    source = image if image and image.times.number else text
    met = Basis(
        {world: met_of(world, source, text) for world in worlds} if source else {}, source.forms if source else {}
    )
    every = Basis({world: right_of(world) for world in worlds})
    others = Basis({world: met_of(world, text, text) for world in worlds}, text.forms) if text else every
    other = others if text and text.times.number else every
    names = list(dict.fromkeys(name for call in used for name in call.seen))
    for name in (name for name in names if name not in EMBEDS and name not in known and met.met):
        found = scalar_of(used, name, (met, every, other))
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
        if name not in given and (name not in known or not gives(known[name], call, name))
    ]
    failed += [(name, call.label) for call in calls for name in call.lost]
    compared = sum(len(call.seen) for call in calls if not any(call is one for one in used))
    return Blocks(met.met, known, tuple(failed), compared)


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
    return rounded_back(calls, found) if found.failed else found


def _uneven(calls: Sequence[Call], found: Blocks) -> Blocks | None:
    """What is right where shards are equal, with another way where they are not."""
    lost = {label for _, label in found.failed}
    for way in ways(unequal=True):
        made = [replace(call, way=way) for call in calls if call.label in lost]
        pairs = [(name, call) for call in made for name in call.seen if (name, call.label) in found.failed]
        if all(name in found.tensors and gives(found.tensors[name], call, name) for name, call in pairs):
            failed = tuple((name, call.label) for call in made for name in call.lost)
            return replace(
                found, failed=failed, varied=(*found.varied, (way, tuple(dict.fromkeys(n for n, _ in pairs))))
            )
    return None


def _promising(calls: Sequence[Call], before: Blocks) -> bool:
    """Whether the parts give in the smallest calls what they did not give before."""
    worlds = sorted({call.world for call in calls})
    small = [experiments(calls, world)[-1] for world in worlds if experiments(calls, world)]
    sides = [side for side, name in enumerate(EMBEDS) if name in before.wrong]
    if sides and small:
        found = [weigh(call, side, 1) for side in sides for call in [c for c in small if EMBEDS[side] in c.seen][:1]]
        return any(one is not None and max(map(abs, one.values()), default=0.0) < _MANY for one in found)
    if not small or small[0].way.kind in ("matching", "labels", "pairs", "transposed"):
        return False
    bases = [Basis(before.met), Basis({world: right_of(world) for world in worlds})]
    return any(sum_of(small, name, name, basis) for name in before.wrong - set(EMBEDS) for basis in bases if basis.met)


def experiments(calls: Sequence[Call], world: int) -> list[Call]:
    """Of one number of ranks, or all (0): the calls that are taken apart, the largest first."""
    used = [call for call in calls if call.even and call.probe.name == EXPERIMENT and world in (0, call.world)]
    return sorted(used, key=lambda call: -sum(call.sizes))
