"""A loss in which a product is rounded to fewer bits: what goes into it, or what comes out, before the scale or after.

The way to the logits and the way back to each embedding, each with its roundings; all of them can be listed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.engine.expected.convention import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.ops.elementary import Array, sigmoid, softplus

RoundedAt = Literal["", "similarity", "scaled", "logits"]
ScaleAt = Literal["after", "image", "text"]  # where the scale is multiplied in, on the way to the logits
GradientScale = Literal[
    "slopes", "other", "after"
]  # and on the way back: into the logits' gradient, the rows, or after

# A cast from float64 that rounds twice, as Torch's do: by way of float32, and to what. In a batch of many one number
# that comes out otherwise moves a whole row.
BY_FLOAT32 = {"bfloat16 by float32": "bfloat16", "float16 by float32": "float16"}
FORMS = {"float32": ("tf32", "bfloat16", "float16"), "float64": ("float32", "tf32", "bfloat16", "float16", *BY_FLOAT32)}


@dataclass(frozen=True)
class Forward:
    """The way to the logits. inputs: whether images and texts are rounded; at: what is rounded of what comes out; told:
    whether the format is told from the other one of as many bits."""

    form: str = ""
    inputs: tuple[bool, bool] = (False, False)
    at: RoundedAt = ""
    scale_at: ScaleAt = "after"
    told: bool = True


@dataclass(frozen=True)
class Backward:
    """The way back to one embedding. rounded: the logits' gradient, the other embedding's rows, what comes out;
    told: as in `Forward`."""

    form: str = ""
    rounded: tuple[bool, ...] = (False, False, False)
    scale: GradientScale = "after"
    share: bool = True  # 1 / B is in the logits' gradient already
    told: bool = True


@dataclass(frozen=True)
class Numbers:
    """A probe's, in float64, normalised if the loss does that; back: from a gradient to that of the rows as given."""

    images: Array
    texts: Array
    scale: float
    bias: float
    back: tuple[Callable[[Array], Array], Callable[[Array], Array]]
    linear: bool


@dataclass(frozen=True)
class Logits:
    """What the way back starts from. slopes: the gradient of the logits, not yet divided by B."""

    loss: Array
    slopes: Array
    product: Array  # before the scale
    rows: tuple[Array, Array]  # as they went in


def numbers_of(probe: Probe, convention: Convention) -> Numbers:
    """What the loss computes with, in float64."""
    images, texts = convention.unit(probe.image_embed), convention.unit(probe.text_embed)
    scale = probe.scale if convention.linear else float(np.exp(probe.log_scale))
    return Numbers(images.rows, texts.rows, scale, probe.bias, (images.back, texts.back), convention.linear)


def forwards(dtype: str) -> Iterator[Forward]:
    """All ways to the logits, that without a rounding first."""
    yield Forward()
    neither, both = (False, False), (True, True)
    places: list[tuple[tuple[bool, bool], RoundedAt]] = [(both, ""), ((True, False), ""), ((False, True), "")]
    places += [(neither, "similarity"), (neither, "scaled"), (neither, "logits"), (both, "similarity")]
    scales: tuple[ScaleAt, ...] = ("after", "image", "text")
    for form, (inputs, at), scale_at in product(FORMS[dtype], places, scales):
        if at != "scaled" or scale_at == "after":
            yield Forward(form, inputs, at, scale_at)


def logits_of(n: Numbers, how: Forward) -> Logits:
    """The loss, and what its way back starts from."""
    x, y = n.images, n.texts
    if how.scale_at == "image":
        x = n.scale * x
    elif how.scale_at == "text":
        y = n.scale * y
    x, y = (rounded(rows, how.form) if flag else rows for rows, flag in zip((x, y), how.inputs, strict=True))
    out = x @ y.T
    if how.at == "similarity":
        out = rounded(out, how.form)
    logits = n.scale * out if how.scale_at == "after" else out
    logits = (rounded(logits, how.form) if how.at == "scaled" else logits) + n.bias
    logits = rounded(logits, how.form) if how.at == "logits" else logits
    own = np.eye(len(x), dtype=bool)
    with np.errstate(all="ignore"):
        loss = softplus(np.where(own, -logits, logits)).sum() / len(x)
        slopes = np.where(own, -sigmoid(-logits), sigmoid(logits))
    return Logits(loss, slopes, out if how.scale_at == "after" else out / n.scale, (x, y))


def backwards(dtype: str) -> Iterator[Backward]:
    """All ways back, that without a rounding first."""
    yield Backward()
    kinds = [flags for flags in product((True, False), repeat=3) if any(flags)]
    scales: tuple[GradientScale, ...] = ("slopes", "other", "after")
    for form, flags, scale, share in product(FORMS[dtype], kinds, scales, (True, False)):
        yield Backward(form, flags, scale, share)


def gradient_of(n: Numbers, logits: Logits, how: Backward, name: str) -> Array:
    """Of one embedding."""
    side = 0 if name == "image_embed" else 1
    slopes = logits.slopes if side == 0 else logits.slopes.T
    other = (n.texts, n.images)[side]
    slopes = slopes / len(slopes) if how.share else slopes
    slopes = n.scale * slopes if how.scale == "slopes" else slopes
    other = n.scale * other if how.scale == "other" else other
    slopes, other = (rounded(v, how.form) if flag else v for v, flag in zip((slopes, other), how.rounded, strict=False))
    out = slopes @ other
    out = rounded(out, how.form) if how.rounded[2] else out
    out = n.scale * out if how.scale == "after" else out
    out = out if how.share else out / len(slopes)
    return n.back[side](out)


def target(form: str) -> str:
    """The format that numbers end in.

    >>> target("float16 by float32"), target("tf32")
    ('float16', 'tf32')
    """
    return BY_FLOAT32.get(form, form)


def rounded(values: Array, form: str) -> Array:
    """To a format, by way of float32 where it says so."""
    values = round_to(values, FORMATS["float32"]) if form in BY_FLOAT32 else values
    return np.asarray(round_to(values, FORMATS[target(form)]))
