"""Which product of a loss is rounded to fewer bits, and to which: every rounding is made, and its numbers looked for.

A loss has three products: images by texts, and on the way back the logits' gradient by each of the two. Rounded may be
what goes into one, or what comes out; the scale and 1 / B may have been multiplied in before or not, which moves the
places where rounding cuts. A rounding is the one that happened if nearly all rows are what it makes of them, to within
float32's own noise: few numbers lie so close to the middle between two that noise throws them to the other side.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeVar

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.engine.expected.convention import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen, is_wrong
from siglip_ref.ops.elementary import Array, sigmoid, softplus

Place = Literal["inputs", "output"]
RoundedAt = Literal["", "similarity", "scaled", "logits"]
ScaleAt = Literal["after", "image", "text"]  # where the scale is multiplied in, on the way to the logits
GradientScale = Literal[
    "slopes", "other", "after"
]  # and on the way back: into the logits' gradient, the rows, or after

SIMILARITY, OF_IMAGE, OF_TEXT = "image_embed @ text_embed.T", "d_logits @ text_embed", "d_logits.T @ image_embed"
LOGITS = "scale * similarity + bias"
# A cast from float64 that rounds twice, as Torch's do: by way of float32, and to what. In a batch of many one number
# that comes out otherwise moves a whole row.
BY_FLOAT32 = {"bfloat16 by float32": "bfloat16", "float16 by float32": "float16"}
FORMS = {
    "float32": ("tf32", "bfloat16", "float16"),
    "float64": ("float32", "tf32", "bfloat16", "float16", *BY_FLOAT32),
}
OF_11_BITS = ("tf32", "float16")  # which only numbers below 2^-14 tell apart
EITHER = "tf32 or float16"  # what a part is called where none does
NEARLY_ALL = 0.8  # of the rows that are wrong, or would be
ALIKE = 0.01  # shares that chance may make differ
UNLIKE = 1.3  # times as far away, on average, is another format
SCREENED = 3  # probes at which a rounding must show before all are looked at
NEAR = 2.0  # times what is allowed: both sides round


@dataclass(frozen=True)
class Part:
    """One product that is rounded, where, and to what format."""

    product: str
    place: Place
    form: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it makes wrong."""
        return {OF_IMAGE: ("image_embed",), OF_TEXT: ("text_embed",)}.get(
            self.product, ("loss", "image_embed", "text_embed")
        )


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


_How = TypeVar("_How", Forward, Backward)


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


def rounded_products(
    seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention, dtype: str
) -> list[Part]:
    """The parts that explain nearly all rows of every tensor; empty if none do, or nothing is wrong.

    Parameters
    ----------
    seen : every tensor of the plain calls, right ones too; probes : by label
    dtype : of the loss, "float32" or "float64"
    """
    wrong = [one for one in seen if is_wrong(one)]
    if not wrong or dtype not in FORMS:
        return []
    by_name = {(one.probe, one.name): one for one in seen}
    numbers = {label: numbers_of(probe, convention) for label, probe in probes.items()}
    order = _telling_first(wrong, numbers)
    forward = _forward(by_name, numbers, order, dtype, convention)
    if forward is None:
        return []
    logits = {label: _logits(n, forward) for label, n in numbers.items()}
    found = {}
    for name in ("image_embed", "text_embed"):
        backward = _backward(name, by_name, numbers, logits, order, dtype)
        if backward is None:
            return []
        found[name] = backward
    return list(_parts(forward, found["image_embed"], found["text_embed"]))


def numbers_of(probe: Probe, convention: Convention) -> Numbers:
    """What the loss computes with, in float64."""
    images, texts = convention.unit(probe.image_embed), convention.unit(probe.text_embed)
    scale = probe.scale if convention.linear else float(np.exp(probe.log_scale))
    return Numbers(images.rows, texts.rows, scale, probe.bias, (images.back, texts.back), convention.linear)


def _telling_first(wrong: Sequence[Seen], numbers: Mapping[str, Numbers]) -> list[str]:
    """Labels of all probes: where something is wrong, the smaller ones first."""
    seen = {one.probe for one in wrong}
    return sorted(numbers, key=lambda label: (label not in seen, numbers[label].images.size))


# --- the way to the logits


def _forwards(dtype: str) -> Iterator[Forward]:
    yield Forward()
    neither, both = (False, False), (True, True)
    places: list[tuple[tuple[bool, bool], RoundedAt]] = [(both, ""), ((True, False), ""), ((False, True), "")]
    places += [(neither, "similarity"), (neither, "scaled"), (neither, "logits"), (both, "similarity")]
    scales: tuple[ScaleAt, ...] = ("after", "image", "text")
    for form, (inputs, at), scale_at in product(FORMS[dtype], places, scales):
        if at != "scaled" or scale_at == "after":
            yield Forward(form, inputs, at, scale_at)


def _logits(n: Numbers, how: Forward) -> Logits:
    x, y = n.images, n.texts
    if how.scale_at == "image":
        x = n.scale * x
    elif how.scale_at == "text":
        y = n.scale * y
    x, y = (_round(rows, how.form) if flag else rows for rows, flag in zip((x, y), how.inputs, strict=True))
    out = x @ y.T
    if how.at == "similarity":
        out = _round(out, how.form)
    logits = n.scale * out if how.scale_at == "after" else out
    logits = (_round(logits, how.form) if how.at == "scaled" else logits) + n.bias
    logits = _round(logits, how.form) if how.at == "logits" else logits
    own = np.eye(len(x), dtype=bool)
    with np.errstate(all="ignore"):
        loss = softplus(np.where(own, -logits, logits)).sum() / len(x)
        slopes = np.where(own, -sigmoid(-logits), sigmoid(logits))
    return Logits(loss, slopes, out if how.scale_at == "after" else out / n.scale, (x, y))


def _forward(
    by_name: Mapping[tuple[str, str], Seen],
    numbers: Mapping[str, Numbers],
    order: Sequence[str],
    dtype: str,
    convention: Convention,
) -> Forward | None:
    """The roundings under which the loss and the scalars' gradients are what came."""
    scale = convention.scale_name

    def misses(how: Forward, labels: Sequence[str]) -> Array:
        found = []
        for label in labels:
            n = numbers[label]
            logits = _logits(n, how)
            slopes = [logits.slopes / len(n.images)]
            if how.at in ("scaled", "logits"):  # on the way back a cast rounds too, with the scale and 1 / B or without
                slopes += [_round(slopes[0], how.form), _round(logits.slopes, how.form) / len(n.images)]
            factor = 1.0 if n.linear else n.scale
            options = {
                "loss": [logits.loss],
                scale: [factor * (d * logits.product).sum() for d in slopes],
                "bias": [d.sum() for d in slopes],
            }
            for name, values in options.items():
                one = by_name.get((label, name))
                if one is not None:
                    counts = is_wrong(one) or any(_misses(one, value) > 1 for value in values)
                    found.append(min(_misses(one, value) for value in values) if counts else np.nan)
        return np.array(found)

    return _best(list(_forwards(dtype)), misses, order)


# --- the way back


def _backwards(dtype: str) -> Iterator[Backward]:
    yield Backward()
    kinds = [flags for flags in product((True, False), repeat=3) if any(flags)]
    scales: tuple[GradientScale, ...] = ("slopes", "other", "after")
    for form, flags, scale, share in product(FORMS[dtype], kinds, scales, (True, False)):
        yield Backward(form, flags, scale, share)


def _gradient(n: Numbers, logits: Logits, how: Backward, name: str) -> Array:
    side = 0 if name == "image_embed" else 1
    slopes = logits.slopes if side == 0 else logits.slopes.T
    other = (n.texts, n.images)[side]
    slopes = slopes / len(slopes) if how.share else slopes
    slopes = n.scale * slopes if how.scale == "slopes" else slopes
    other = n.scale * other if how.scale == "other" else other
    slopes, other = (_round(v, how.form) if flag else v for v, flag in zip((slopes, other), how.rounded, strict=False))
    out = slopes @ other
    out = _round(out, how.form) if how.rounded[2] else out
    out = n.scale * out if how.scale == "after" else out
    out = out if how.share else out / len(slopes)
    return n.back[side](out)


def _backward(
    name: str,
    by_name: Mapping[tuple[str, str], Seen],
    numbers: Mapping[str, Numbers],
    logits: Mapping[str, Logits],
    order: Sequence[str],
    dtype: str,
) -> Backward | None:
    def misses(how: Backward, labels: Sequence[str]) -> Array:
        found = [np.zeros(0)]
        for label in labels:
            one = by_name.get((label, name))
            if one is None:
                continue
            with np.errstate(all="ignore"):
                made = _gradient(numbers[label], logits[label], how, name)
            off, should = _row_misses(one, made), np.maximum(_row_misses(one, one.exact), _apart(one, made))
            found.append(np.where(should > 1, off, np.nan))
        return np.concatenate(found)

    return _best(list(_backwards(dtype)), misses, order)


# --- what both need


def _best(
    candidates: Sequence[_How], misses: Callable[[_How, Sequence[str]], Array], order: Sequence[str]
) -> _How | None:
    """The candidate that explains most rows, if those are nearly all; of equals the nearest, and of those the first.

    Parameters
    ----------
    misses : how far from what came each row is, in units of what is allowed; NaN for those that are right, and would be
    """
    useful = [how for how in candidates if _share(misses(how, order[:SCREENED])) >= NEARLY_ALL]
    found = [(how, misses(how, order)) for how in useful]
    top = max((_share(off) for _, off in found), default=0.0)
    if top < NEARLY_ALL:
        return None
    near = {how: off for how, off in found if _share(off) > top - ALIKE}
    best = min(near, key=lambda how: _mean(near[how]))
    if target(best.form) not in OF_11_BITS:
        return best
    others = [off for how, off in near.items() if target(how.form) in {*OF_11_BITS} - {target(best.form)}]
    told = min(map(_mean, others), default=np.inf) > UNLIKE * _mean(near[best])
    return best if told else replace(best, form=OF_11_BITS[0], told=False)


def _share(misses: Array) -> float:
    """Of the rows that count, those that are explained."""
    counted = misses[~np.isnan(misses)]
    return float((counted <= NEAR).mean()) if counted.size else 1.0


def _mean(misses: Array) -> float:
    counted = misses[~np.isnan(misses)]
    return float(np.minimum(counted, NEAR).mean()) if counted.size else 0.0


def target(form: str) -> str:
    """The format that numbers end in.

    >>> target("float16 by float32"), target("tf32")
    ('float16', 'tf32')
    """
    return BY_FLOAT32.get(form, form)


def _round(values: Array, form: str) -> Array:
    values = round_to(values, FORMATS["float32"]) if form in BY_FLOAT32 else values
    return np.asarray(round_to(values, FORMATS[target(form)]))


def _misses(one: Seen, value: Array) -> float:
    """How far a number is from what came, in units of what is allowed."""
    return float(np.max(_row_misses(one, np.asarray(value))))


def _row_misses(one: Seen, made: Array) -> Array:
    return _in_units(one, np.asarray(one.got, np.float64) - made)


def _apart(one: Seen, made: Array) -> Array:
    return _in_units(one, made - one.exact)


def _in_units(one: Seen, off: Array) -> Array:
    """By row, in units of what is allowed; infinite for what is no number."""
    with np.errstate(all="ignore"):
        units = np.where(off == 0, 0.0, np.abs(off) / one.allowed)
    units = np.where(np.isnan(units), np.inf, units)
    return units.max(-1) if units.ndim > 1 else np.atleast_1d(units)


def _parts(forward: Forward, image: Backward, text: Backward) -> Iterator[Part]:
    def named(how: Forward | Backward) -> str:
        return target(how.form) if how.told else EITHER

    if any(forward.inputs):
        yield Part(SIMILARITY, "inputs", named(forward))
    if forward.at:
        what = {"similarity": SIMILARITY, "scaled": f"scale * ({SIMILARITY})", "logits": LOGITS}[forward.at]
        yield Part(what, "output", named(forward))
    for what, back in ((OF_IMAGE, image), (OF_TEXT, text)):
        if any(back.rounded[:2]):
            yield Part(what, "inputs", named(back))
        if back.rounded[2]:
            yield Part(what, "output", named(back))
