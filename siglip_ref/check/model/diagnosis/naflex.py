"""What goes wrong in NaFlex ports: the table of positions resized otherwise, and padding that is seen."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.one_tower import sides_of
from siglip_ref.architecture.sizes import Config
from siglip_ref.check.model.adapters import Run
from siglip_ref.check.model.diagnosis.findings import and_more
from siglip_ref.check.model.diagnosis.stages.inputs import resizes
from siglip_ref.check.model.judge import Judge
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import doubled, readable, stage_values
from siglip_ref.mistakes import reference
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops, Pair
from siglip_ref.report.compare import compare
from siglip_ref.report.data import Finding

_RESIZE = "resize-filter-antialias"


@dataclass(frozen=True)
class _Wrong:
    """One way to be wrong. id: of the catalogue, or "derived"; make: the operations with it."""

    id: str
    text: str
    repair: str
    make: Callable[[Ops], Ops]


def of_naflex(
    found: Sequence[Finding], run: Run, judge: Judge, probe: Probe, cfg: Config, conventions: Conventions
) -> list[Finding]:
    """What was found, with a name for what only NaFlex towers can have."""
    if not cfg.naflex or "image" not in sides_of(cfg):
        return list(found)
    shown = readable(run.activations, judge.exact.activations, np.float64)
    ground = doubled(probe)
    spec = reference()

    def wrong(ops: Ops) -> dict[str, bool]:
        values = stage_values(replace(spec, ops=ops), "image", shown, ground, cfg, conventions)
        return {n: not compare(n, shown[n], x, judge.of_value[n]).right for n, x in values.items() if n in shown}

    open_ = {name for name, is_wrong in wrong(spec.ops).items() if is_wrong}
    named = []
    for one in _ways() if open_ else ():
        explained = sorted(name for name, still in wrong(one.make(spec.ops)).items() if name in open_ and not still)
        if explained:
            theirs = f" ({run.names[explained[0]]})" if explained[0] in run.names else ""
            places = f"{', '.join(explained[:3])}{and_more(len(explained) - 3)}{theirs}"
            evidence = f"{one.text}: with it made in the reference, {places} is the model's"
            named.append(Finding(one.id, explained[0], "", evidence, one.repair))
            open_ -= set(explained)
    if not named:
        return list(found)
    rest = [] if not open_ else [one for one in found if one.tensor not in {name.tensor for name in named}]
    return named + rest


def _ways() -> Iterator[_Wrong]:
    for words, weights in resizes():
        yield _Wrong(_RESIZE, f"the table of positions is resized {words}", _SIGLIP2, _resized(weights))
    yield _Wrong(
        "derived", "the table of positions is resized to columns and rows exchanged", "rows first", _transposed
    )
    seen = "padding is seen: the mask does not reach"
    yield _Wrong(
        "derived",
        f"{seen} the pooling head",
        "give the mask to the pooling head, too",
        lambda ops: replace(ops, map_head=_unmasked(ops.map_head, 5)),
    )
    yield _Wrong(
        "derived",
        f"{seen} the blocks' attention",
        "give the mask to every block, for its keys",
        lambda ops: replace(ops, attention=_unmasked(ops.attention, 4)),
    )


_SIGLIP2 = 'interpolate(mode="bilinear", antialias=True, align_corners=False), from the stored table each time'


def _unmasked(pair: Pair, at: int) -> Pair:
    """Without its mask, the parameter of that number."""
    return Pair(lambda *given: pair.forward(*given[:at], None), pair.backward)


def _resized(weights: Callable[[int, int], Array]) -> Callable[[Ops], Ops]:
    def forward(table: Array, height: int, width: int) -> tuple[Array, Any]:
        down, across = weights(table.shape[0], height), weights(table.shape[1], width)
        return np.einsum("hi,wj,ijc->hwc", down, across, table).reshape(height * width, -1), None

    return lambda ops: replace(ops, position_resize=Pair(forward, ops.position_resize.backward))


def _transposed(ops: Ops) -> Ops:
    resize = ops.position_resize
    return replace(ops, position_resize=Pair(lambda table, h, w: resize.forward(table, w, h), resize.backward))
