"""A loss over ranks as a sum of parts: of each block the positives, the negatives, and what mistakes make of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.predict import EMBEDS, Context
from siglip_ref.check.engine.expected.convention import Convention, Unit
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen
from siglip_ref.ops.elementary import Array, sigmoid, softplus

Kind = Literal["positives", "negatives", "diagonal", "zeros"]


class Part(NamedTuple):
    """Of the block of one rank's images and another's texts. kind: its diagonal as positives, all other pairs as
    negatives, its diagonal as negatives, or all pairs as they are where the texts are zeros."""

    images: int
    texts: int
    kind: Kind

    def owner(self, side: int) -> int:
        """Whose rows its gradient belongs to."""
        return self.texts if side else self.images

    @property
    def block(self) -> tuple[int, int]:
        """Whose images and whose texts."""
        return self.images, self.texts

    @property
    def usual(self) -> bool:
        """Whether SigLIP's loss has it, once."""
        return self.kind == "negatives" or self.kind == ("positives" if self.images == self.texts else "diagonal")


class Transit(NamedTuple):
    """What is rounded on its way to the product. what: one of SENT; form: of FORMATS of arithmetic.rounded."""

    what: str
    form: str

    def texts(self, rows: Array, remote: bool) -> Array:
        """As they arrive, at their own rank or at another."""
        return (
            self._in(rows) if self.what in ("texts", "images and texts") or (remote and self.what == SENT[0]) else rows
        )

    def images(self, rows: Array) -> Array:
        """As they arrive."""
        return self._in(rows) if self.what in ("images", "images and texts") else rows

    def _in(self, rows: Array) -> Array:
        return round_to(rows, FORMATS[self.form])


SENT = ("texts of other ranks", "texts", "images", "images and texts")
EXACT = Transit("", "float64")
TRANSITS = (EXACT, *(Transit(what, form) for what in SENT for form in ("bfloat16", "float16")))


class Amount(NamedTuple):
    """What a part gives: rows to the images and to the texts, by whose rank it is; numbers to the three scalars."""

    rows: tuple[Array, Array]
    scalars: Mapping[str, float]


@dataclass(frozen=True)
class Call:
    """One collective call: its inputs, what came of it, and the parts that it may be made of.

    lost : what came in another shape, or is not finite; back : by side and rank, what becomes of a gradient of unit
    rows there
    """

    label: str
    probe: Probe
    sizes: tuple[int, ...]
    seen: Mapping[str, Seen]
    lost: tuple[str, ...]
    parts: Mapping[Part, Amount]
    back: tuple[Sequence[Callable[[Array], Array]], ...]

    @property
    def world(self) -> int:
        """Ranks."""
        return len(self.sizes)

    @property
    def even(self) -> bool:
        """Whether all ranks have as many pairs."""
        return len(set(self.sizes)) == 1

    def rows_of(self, side: int) -> tuple[list[Array], list[Array]]:
        """Of an embedding's gradient what came, and what is allowed, by rank."""
        one, ends = self.seen[EMBEDS[side]], np.cumsum(self.sizes)[:-1]
        allowed = np.broadcast_to(one.allowed, np.shape(one.exact))
        return np.split(np.asarray(one.got, np.float64), ends), np.split(allowed, ends)

    def share(self, side: int, holder: int, part: Part) -> Array:
        """What a part gives to one side, as it would be in the rows of a rank."""
        return self.back[side][holder](self.parts[part].rows[side])


def calls_of(seen: Sequence[Seen], contexts: Mapping[str, Context], transit: Transit = EXACT) -> list[Call]:
    """All calls over ranks from which an embedding's gradient came."""
    by_label: dict[str, dict[str, Seen]] = {}
    lost: dict[str, list[str]] = {}
    for one in seen:
        if np.shape(one.got) == np.shape(one.exact) and np.isfinite(one.got).all():
            by_label.setdefault(one.probe, {})[one.name] = one
        else:
            lost.setdefault(one.probe, []).append(one.name)
    found = []
    for label, tensors in by_label.items():
        context = contexts.get(label)
        if context is not None and len(context.sizes) > 1 and set(EMBEDS) & set(tensors):
            found.append(_call(label, context, tensors, lost.get(label, ()), transit))
    return found


def _call(label: str, context: Context, tensors: Mapping[str, Seen], lost: Sequence[str], transit: Transit) -> Call:
    probe, convention, sizes = context.probe, context.convention, context.sizes
    back = tuple([unit.back for unit in side] for side in _units(probe, convention, sizes))
    return Call(label, probe, sizes, tensors, tuple(lost), amounts(probe, convention, sizes, transit), back)


def _units(probe: Probe, convention: Convention, sizes: Sequence[int]) -> list[list[Unit]]:
    """Images and texts of each rank, as the loss works on them."""
    ends = np.cumsum(sizes)[:-1]
    sides = (np.split(np.asarray(rows, np.float64), ends) for rows in (probe.image_embed, probe.text_embed))
    return [[convention.unit(rows) for rows in side] for side in sides]


def amounts(probe: Probe, convention: Convention, sizes: Sequence[int], transit: Transit = EXACT) -> dict[Part, Amount]:
    """What every part gives, in gradients of unit rows, divided by B."""
    images, texts = ([unit.rows for unit in side] for side in _units(probe, convention, sizes))
    scale = float(probe.scale if convention.linear else np.exp(probe.log_scale))
    of_scale = 1.0 if convention.linear else scale
    parts: dict[Part, Amount] = {}
    for i, j in product(range(len(images)), range(len(texts))):
        x, y = transit.images(images[i]), transit.texts(texts[j], remote=i != j)
        similarity = x @ y.T
        logits = scale * similarity + probe.bias
        own = np.eye(len(x), len(y), dtype=bool)
        met = sigmoid(np.full_like(logits, probe.bias))
        slopes: dict[Kind, tuple[Array, Array]] = {
            "positives": (np.where(own, softplus(-logits), 0), np.where(own, -sigmoid(-logits), 0)),
            "negatives": (np.where(own, 0, softplus(logits)), np.where(own, 0, sigmoid(logits))),
            "diagonal": (np.where(own, softplus(logits), 0), np.where(own, sigmoid(logits), 0)),
            "zeros": (softplus(np.full_like(logits, probe.bias)), met),
        }
        for kind, (losses, slope) in slopes.items():
            to = 0.0 if kind == "zeros" else 1.0  # nothing goes to images, or to the scale, from zeros
            numbers = {
                "loss": losses.sum(),
                convention.scale_name: to * of_scale * (slope * similarity).sum(),
                "bias": slope.sum(),
            }
            pairs = sum(sizes)
            rows = (to * scale * (slope @ y) / pairs, scale * (slope.T @ x) / pairs)
            parts[Part(i, j, kind)] = Amount(rows, {name: float(n) / pairs for name, n in numbers.items()})
    return parts
