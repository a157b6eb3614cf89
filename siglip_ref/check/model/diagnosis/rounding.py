"""Which product of a model is computed in fewer bits than the model itself: bfloat16, float16, tf32, or float32.

One product at a time, and one side of it, is rounded in the reference, which starts from the model's own input to the
stage. Rounding to few bits is as good as a fingerprint: numbers that were rounded elsewhere, or to other bits, leave a
deviation as large as the one to be explained. A few numbers that lie next to a tie may round the other way in the
model, so what counts is the deviation that is left in the mean square.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.model.diagnosis.products import (
    ALL,
    ATTENTION,
    HEAD,
    LINEAR,
    MLP,
    PATCH,
    SIDES,
    Product,
    edits_of,
)
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.stages import stage_of, stage_values
from siglip_ref.mistakes import Edit, reference
from siglip_ref.ops.elementary import Array
from siglip_ref.report.words import WORDS

FOUND = 0.3  # of the deviation, in the mean square, that may be left
ALIKE = 3.0  # times what the best leaves: nothing tells these apart
_FLOOR = 0.01  # numbers next to a tie
_LARGEST = 0.1  # of a stage: more than one rounding of one product does
_ROWS = 1  # images or texts on which candidates are tried


@dataclass(frozen=True)
class Rounding:
    """One product of one stage, its side, and the formats that explain the stage alike.

    off : how far the stage is from what is right, in the mean square; left : what of that these formats leave
    """

    stage: str
    product: str
    side: str
    formats: tuple[str, ...]
    left: float
    off: float

    def __str__(self) -> str:
        bits = {FORMATS[form].bits for form in self.formats}
        how = f"{' or '.join(self.formats)} ({' or '.join(map(str, sorted(bits)))} bits)"
        return f"the {self.side} of {WORDS['products'].get(self.product, self.product)}, rounded to {how}"


def find_roundings(
    stage: str, shown: Mapping[str, Array], probe: Probe, cfg: Config, conventions: Conventions, dtype: str
) -> list[Rounding]:
    """What explains one wrong stage of a tower: usually one, several where nothing tells them apart; or nothing.

    Parameters
    ----------
    stage : name of the activation it leads to
    shown : the model's own activations
    probe, cfg, conventions, dtype : as in the check
    """
    products = _products(stage)
    if not products or stage not in shown:
        return []
    tower = stage.split("/")[0]
    given = {n: np.asarray(x[:_ROWS], np.float64) for n, x in shown.items() if n.startswith(f"{tower}/")}
    weights = {n: x for n, x in probe.params.items() if n.startswith(f"{tower}/")}
    weights |= {n: np.asarray(x, np.float64) for n, x in weights.items() if stage_of(n) == stage}
    images = np.asarray(probe.images[:_ROWS], np.float64)
    first = replace(probe, params=weights, images=images, tokens=probe.tokens[:_ROWS])
    if probe.grids is not None:
        first = replace(first, grids=probe.grids[:_ROWS])

    def computed(edits: tuple[Edit, ...] = ()) -> Array:
        return stage_values(reference(edits), tower, given, first, cfg, conventions, {stage})[stage]

    got, right = given[stage], computed()
    off = _size(got - right)
    if not 0 < off <= _LARGEST * _size(right):
        return []
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, side, form, edits in _candidates(products, dtype):
        left = _size(got - computed(edits)) / off
        of_side = found.setdefault((name, side), {})
        of_side[form] = min(left, of_side.get(form, np.inf))
    # nothing is coarser than bfloat16
    best = min((left for forms in found.values() for left in forms.values()), default=np.inf)
    if not best <= FOUND:
        return []
    limit = ALIKE * best + _FLOOR
    alike = [
        Rounding(
            stage, name, side, tuple(form for form, left in forms.items() if left <= limit), min(forms.values()), off
        )
        for (name, side), forms in found.items()
        if min(forms.values()) <= limit
    ]
    alone = [one for one in alike if one.product not in (LINEAR, ALL)]
    return sorted(alone, key=lambda one: one.left) or alike[:1]


def _candidates(products: Sequence[Product], dtype: str) -> Iterator[tuple[str, str, str, tuple[Edit, ...]]]:
    """Product, side, format, and the edits that make it: each product alone, then all linear layers, then all."""
    for form in _formats(dtype):
        for side in SIDES:
            for product in products:
                for edits in edits_of(product, side, form):
                    yield product.name, side, form, edits
            linear = [product for product in products if product.added]
            for name, some in ((LINEAR, linear), (ALL, [one for one in products if one.second])):
                ways = [list(edits_of(one, side, form)) for one in some] if len(some) > 1 else []
                for k in range(max(map(len, ways), default=0)):
                    yield name, side, form, tuple(edit for way in ways for edit in way[min(k, len(way) - 1)])


def _formats(dtype: str) -> tuple[str, ...]:
    """Those with fewer bits, the coarsest first."""
    names = ("bfloat16", "float16", "tf32", "float32")
    return tuple(name for name in names if FORMATS[name].bits < FORMATS[dtype].bits)


def _products(stage: str) -> tuple[Product, ...]:
    part = stage.split("/")[-1]
    if stage == "image/pool":
        return (*ATTENTION, *MLP)
    return {"+attn": ATTENTION, "+mlp": MLP, "stem": PATCH if stage.startswith("image") else (), "head": HEAD}.get(
        part, ()
    )


def _size(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))
