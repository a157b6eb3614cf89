"""Batches of a real size in a check of a loss: what they cost is seen from the smaller ones first."""

from typing import TYPE_CHECKING

from siglip_ref.check.call import resources
from siglip_ref.check.call.resources import extrapolated, return_freed
from siglip_ref.check.diagnosis.product_findings import ROUNDINGS
from siglip_ref.check.engine.expected.labelled import MOST
from siglip_ref.check.engine.expected.probes import COLD, WIDE_FORMATS, Point, Shape
from siglip_ref.check.engine.expected.repeated import MIDDLE, REAL, Size
from siglip_ref.check.engine.expected.repeated_noise import LARGE
from siglip_ref.check.engine.seen import distance, is_wrong
from siglip_ref.check.loss.behaviour import seen_of
from siglip_ref.check.loss.tails import far_off, has_whole_tiles
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.report.data import Finding, FindingKind

if TYPE_CHECKING:
    from siglip_ref.check.loss.subject import ComparedLoss, LossSubject

# a power of two, which tiles of 256 to 1,024 divide as well: no tail is left
WHOLE = Point("whole large tiles", (1024, 14), COLD, -10.5, full=True, hunts="a tail where none is left")


def points_at(size: Size) -> tuple[Point, ...]:
    """The middle one always; where they are asked for, one of whole tiles and the real one."""
    return (MIDDLE, WHOLE, REAL) if size == "real" else (MIDDLE,)


def affordable(subject: "LossSubject", compared: "ComparedLoss", shape: Shape, label: str) -> bool:
    """Whether the batch does not cost too much, as far as the smaller ones tell; else the reason, in `left_out`."""
    if not subject.costs:
        return False
    pairs = shape[0] ** 2 * subject.objective.per_image
    if subject.objective.labelled and pairs > MOST:
        compared.left_out.append(f"{label}: {pairs:,} labels and weights are more than a check holds")
        return False
    device = subject.setting.device
    cost = extrapolated(subject.costs, *shape)
    if not resources.affordable(cost, device):  # the first call of a shape may have compiled something
        last = max(subject.costs, key=lambda cost: cost.pairs)
        plain = (one.probe for one in compared.plain.values())
        again = next((probe for probe in plain if probe.shape == (last.pairs, last.width)), None)
        if again is not None:
            subject.costs.remove(last)
            return_freed()
            subject.call(again, compared.convention, again.label)
            cost = extrapolated(subject.costs, *shape)
    if resources.affordable(cost, device):
        return True
    compared.left_out.append(
        f"{label}: {cost}, as far as smaller batches tell; allowed are 20 s and half of what is free"
    )
    return False


def looks_for(compared: "ComparedLoss") -> tuple[dict[str, bool], dict[str, str]]:
    """Of mistakes that no edit makes: whether this run did look for them; and where it need not, why."""
    setting = compared.setting
    wide = setting.dtype in WIDE_FORMATS
    real = any(one.probe.shape[0] >= LARGE for one in compared.large.values())
    whole = has_whole_tiles(one.probe for one in (compared.plain | compared.clauses).values())
    looked = {"beyond-a-tile": bool(compared.large), "gradient-wrong-at-tie": True, "tail-counted-twice": whole}
    looked |= {id: not setting.products for id in ROUNDINGS if wide} | (
        {} if wide else {"sums-cancel-in-16-bits": real}
    )
    reasons = dict.fromkeys(ROUNDINGS, "in float32 and float64") | {"sums-cancel-in-16-bits": "in 16 bits"}
    if setting.dtype == "float32":
        looked.pop("products-in-float32")
        reasons["products-in-float32"] = "in float64"
    return looked, {id: why for id, why in reasons.items() if id not in looked}


def large_findings(compared: "ComparedLoss") -> list[Finding]:
    """Where a loss is right in every small batch and wrong in a large one: which rows, or which sums."""
    wrong = compared.wrong
    if not wrong or any(row.probe not in compared.large for row in wrong):
        return []
    label = wrong[0].probe
    here = [row for row in wrong if row.probe == label]
    one = compared.large[label]
    exact = one.right.exact
    spots = {name: far_off(one.outcome.gradients.get(name), exact[name]) for name in ("image_embed", "text_embed")}
    told = [f"d {name}: {place}" for name, place in spots.items() if place]
    names = ", ".join(row.name if row.kind == "value" else f"d {row.name}" for row in here)
    others = [size for size in compared.large if size not in {row.probe for row in wrong}]
    alone = one.probe.name == WHOLE.name and others  # what tiles leave of a batch is right, and no tail is wrong
    told += [f"right at {', '.join(others)}, where a tail is left"] if alone else []
    seen = [tensor for tensor in seen_of(label, one.outcome, one.right) if is_wrong(tensor)]
    twice = alone and all(distance(tensor, 2 * tensor.exact) <= 2 for tensor in seen)
    evidence = "; ".join([f"right at up to 131 pairs, wrong at {label}: {names}", *told])
    narrow = compared.setting.dtype not in WIDE_FORMATS
    id = "sums-cancel-in-16-bits" if narrow and not told else "beyond-a-tile"
    id = "tail-counted-twice" if twice else id
    kind: FindingKind = "mistake" if twice or told or narrow else "suspicion"
    return [Finding(id, here[0].name, here[0].rows, evidence, CATALOGUE[id].repair, kind)]
