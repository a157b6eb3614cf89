"""Batches of a real size in a check of a loss: what they cost is seen from the smaller ones first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.check.call.frameworks import Outcome, Setting
from siglip_ref.check.call.resources import affordable, extrapolated, return_freed
from siglip_ref.check.diagnosis.product_findings import ROUNDINGS
from siglip_ref.check.diagnosis.seen import distance, is_wrong, seen_of
from siglip_ref.check.expected.expected import Convention, Truth, judge, truth
from siglip_ref.check.expected.probes import COLD, WIDE_FORMATS, Point
from siglip_ref.check.expected.repeated import MIDDLE, REAL, Repeated, Size, repeated_probe
from siglip_ref.check.expected.repeated_noise import LARGE
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Row, wrong_rows
from siglip_ref.report.data import Finding

if TYPE_CHECKING:
    from siglip_ref.check.loss.calls import Run

# a power of two, which tiles of 256 to 1,024 divide as well: no tail is left
WHOLE = Point("whole large tiles", (1024, 14), COLD, -10.5, full=True, hunts="a tail where none is left")
Outcomes = dict[str, tuple[Repeated, Outcome, Truth]]


def points_at(size: Size) -> tuple[Point, ...]:
    """The middle one always; where they are asked for, one of whole tiles and the real one."""
    return (MIDDLE, WHOLE, REAL) if size == "real" else (MIDDLE,)


def large_batches(run: "Run", convention: Convention, left_out: list[str]) -> Outcomes:
    """What came back at every batch that can be afforded, by label; else the reason, in `left_out`."""
    found: Outcomes = {}
    for point in points_at(run.size):
        probe = repeated_probe(point, run.dims, run.setting.dtype, run.setting.scalar_dtype)
        if probe is None:
            left_out.append(f"{point.name}: B = {point.shape[0]} is not among the given dims")
            continue
        if not _affordable(run, probe, convention, left_out):
            break
        outcome = run.call(probe, convention, "plain", probe.label)
        if not isinstance(outcome, Outcome):
            break
        found[probe.label] = probe, outcome, truth(probe, convention, run.setting)
    return found


def _affordable(run: "Run", probe: Repeated, convention: Convention, left_out: list[str]) -> bool:
    """Whether the batch costs too much, as far as the smaller ones tell."""
    if not run.costs:
        return False
    device, shape = run.setting.device, probe.shape
    cost = extrapolated(run.costs, *shape)
    if not affordable(cost, device):  # the first call of a shape may have compiled something
        last = max(run.costs, key=lambda cost: cost.pairs)
        again = next((p for p, _, _ in run.outcomes.values() if p.shape == (last.pairs, last.width)), None)
        if again is not None:
            run.costs.remove(last)
            return_freed()
            run.call(again, convention, "plain", again.label)
            cost = extrapolated(run.costs, *shape)
    if affordable(cost, device):
        return True
    left_out.append(f"{probe.label}: {cost}, as far as smaller batches tell; allowed are 20 s and half of what is free")
    return False


def looks_for(setting: Setting, outcomes: Outcomes, whole: bool) -> tuple[dict[str, bool], dict[str, str]]:
    """Of mistakes that no edit makes: whether this run did look for them; and where it need not, why.

    whole : there was a batch that tiles divide, see `siglip_ref.check.loss.tails`
    """
    wide = setting.dtype in WIDE_FORMATS
    real = any(len(probe.order) >= LARGE for probe, _, _ in outcomes.values())
    looked = {"beyond-a-tile": bool(outcomes), "gradient-wrong-at-tie": True, "tail-counted-twice": whole}
    looked |= {id: not setting.products for id in ROUNDINGS if wide} | (
        {} if wide else {"sums-cancel-in-16-bits": real}
    )
    reasons = dict.fromkeys(ROUNDINGS, "in float32 and float64") | {"sums-cancel-in-16-bits": "in 16 bits"}
    if setting.dtype == "float32":
        looked.pop("products-in-float32")
        reasons["products-in-float32"] = "in float64"
    return looked, {id: why for id, why in reasons.items() if id not in looked}


def judged(outcomes: Outcomes) -> list[Row]:
    """One row per tensor and batch."""
    return [row for label, (_, outcome, right) in outcomes.items() for row in judge(outcome, right, label)]


def large_findings(small: Sequence[Row], outcomes: Outcomes, narrow: bool) -> list[Finding]:
    """Where a loss is right in every small batch and wrong in a large one: which rows, or which sums.

    Parameters
    ----------
    narrow : the loss computes in 16 bits
    """
    wrong = [row for row in judged(outcomes) if row.verdict == "FAIL"]
    if not wrong or any(row.verdict == "FAIL" for row in small):
        return []
    label = wrong[0].probe
    here = [row for row in wrong if row.probe == label]
    _, outcome, right = outcomes[label]
    places = {name: far_off(outcome.gradients.get(name), right.exact[name]) for name in ("image_embed", "text_embed")}
    told = [f"d {name}: {place}" for name, place in places.items() if place]
    names = ", ".join(row.name if row.kind == "value" else f"d {row.name}" for row in here)
    others = [size for size in outcomes if size not in {row.probe for row in wrong}]
    alone = label.startswith(WHOLE.name) and others  # what is left of a batch by tiles is right, and no tail is wrong
    told += [f"right at {', '.join(others)}, where a tail is left"] if alone else []
    seen = [one for one in seen_of(label, outcome, right) if is_wrong(one)]
    twice = alone and all(distance(one, 2 * one.exact) <= 2 for one in seen)
    evidence = "; ".join([f"right at up to 131 pairs, wrong at {label}: {names}", *told])
    id = "sums-cancel-in-16-bits" if narrow and not told else "beyond-a-tile"
    id = "tail-counted-twice" if twice else id
    return [Finding(id, here[0].name, here[0].rows, evidence, CATALOGUE[id].repair)]


def far_off(got: Array | None, exact: Array) -> str:
    """The rows that are zero, or off by half of their size and more, where others are not."""
    if got is None or np.shape(got) != exact.shape:
        return ""
    with np.errstate(all="ignore"):
        size, far = np.abs(exact).max(-1), np.abs(got - exact).max(-1)
        kinds = {"zero": (np.asarray(got) == 0).all(-1), "off by half of their size and more": ~(far < 0.5 * size)}
    for kind, rows in kinds.items():
        if rows.any() and not rows.all():
            return wrong_rows(rows[:, None]).replace("wrong, the rest right", kind)
    return ""
