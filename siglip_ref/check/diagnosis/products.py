"""Which product of a loss is rounded to fewer bits, and to which: every rounding is made, and its numbers looked for.

A loss has three products: images by texts, and on the way back the logits' gradient by each of the two. Rounded may be
what goes into one, or what comes out; the scale and 1 / B may have been multiplied in before or not, which moves the
places where rounding cuts. A rounding is the one that happened if nearly all rows are what it makes of them, to within
float32's own noise: few numbers lie so close to the middle between two that noise throws them to the other side.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from siglip_ref.check.diagnosis import roundings
from siglip_ref.check.diagnosis.roundings import Backward, Forward, Logits, Numbers, numbers_of, rounded, target
from siglip_ref.check.engine.expected.convention import Convention
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.seen import Seen, is_wrong
from siglip_ref.ops.elementary import Array

Place = Literal["inputs", "output"]
SIMILARITY, OF_IMAGE, OF_TEXT = "image_embed @ text_embed.T", "d_logits @ text_embed", "d_logits.T @ image_embed"
LOGITS, SUMS = "scale * similarity + bias", "sums of products"
OF_11_BITS = ("tf32", "float16")  # which only numbers below 2^-14 tell apart
EITHER = "tf32 or float16"  # what a part is called where none does
NEARLY_ALL = 0.8  # of the rows that are wrong, or would be
ALIKE = 0.01  # shares that chance may make differ
UNLIKE = 1.3  # times as far away, on average, is another format
SCREENED = 3  # probes at which a rounding must show before all are looked at
_FLOAT32 = 2.0 ** (53 - 24)  # its noise, in units of float64's
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


_How = TypeVar("_How", Forward, Backward)


def rounded_products(
    seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention, dtype: str
) -> list[Part]:
    """The parts that explain nearly all rows of every tensor; empty if none do, or nothing is wrong.

    Parameters
    ----------
    seen : every tensor of the plain calls, right ones too; probes : by label
    dtype : of the loss, "float32" or "float64"; of the latter sums may be in float32, in any order
    """
    parts = _rounded_products(seen, probes, convention, dtype)
    if parts or dtype != "float64":
        return parts
    in_float32 = [replace(one, allowed=one.allowed * _FLOAT32) for one in seen]
    parts = _rounded_products(in_float32, probes, convention, dtype)
    return [*parts, Part(SUMS, "output", "float32")] if parts else []


def _rounded_products(
    seen: Sequence[Seen], probes: Mapping[str, Probe], convention: Convention, dtype: str
) -> list[Part]:
    wrong = [one for one in seen if is_wrong(one)]
    if not wrong or dtype not in roundings.FORMS:
        return []
    numbers = {label: numbers_of(probe, convention) for label, probe in probes.items()}
    by_name = {(one.probe, one.name): one for one in seen}
    search = _Search(by_name, numbers, _telling_first(wrong, numbers), convention.scale_name)
    forward = _best(list(roundings.forwards(dtype)), search.of_scalars, search.order)
    if forward is None:
        return []
    logits = {label: roundings.logits_of(n, forward) for label, n in numbers.items()}
    ways = (partial(search.of_rows, name, logits) for name in ("image_embed", "text_embed"))
    image, text = (_best(list(roundings.backwards(dtype)), way, search.order) for way in ways)
    return list(_parts(forward, image, text)) if image and text else []


def _telling_first(wrong: Sequence[Seen], numbers: Mapping[str, Numbers]) -> list[str]:
    """Labels of all probes: where something is wrong, the smaller ones first."""
    seen = {one.probe for one in wrong}
    return sorted(numbers, key=lambda label: (label not in seen, numbers[label].images.size))


@dataclass(frozen=True)
class _Search:
    """What was seen, by label and tensor; the probes' numbers by label, in which order they are looked at."""

    seen: Mapping[tuple[str, str], Seen]
    numbers: Mapping[str, Numbers]
    order: Sequence[str]
    scale: str

    def of_scalars(self, how: Forward, labels: Sequence[str]) -> Array:
        """Misses of the loss and the scalars' gradients, by what the way to the logits rounds."""
        found = []
        for label in labels:
            n = self.numbers[label]
            logits = roundings.logits_of(n, how)
            slopes = [logits.slopes / len(n.images)]
            if how.at in ("scaled", "logits"):  # on the way back a cast rounds too, with the scale and 1 / B or without
                slopes += [rounded(slopes[0], how.form), rounded(logits.slopes, how.form) / len(n.images)]
            factor = 1.0 if n.linear else n.scale
            options = {
                "loss": [logits.loss],
                self.scale: [factor * (d * logits.product).sum() for d in slopes],
                "bias": [d.sum() for d in slopes],
            }
            for one, values in ((self.seen.get((label, name)), values) for name, values in options.items()):
                if one is not None:
                    counts = is_wrong(one) or any(_misses(one, value) > 1 for value in values)
                    found.append(min(_misses(one, value) for value in values) if counts else np.nan)
        return np.array(found)

    def of_rows(self, name: str, logits: Mapping[str, Logits], how: Backward, labels: Sequence[str]) -> Array:
        """Misses of an embedding's gradient, by what its way back rounds."""
        found = [np.zeros(0)]
        for label in (label for label in labels if (label, name) in self.seen):
            one = self.seen[label, name]
            with np.errstate(all="ignore"):
                made = roundings.gradient_of(self.numbers[label], logits[label], how, name)
            off, should = _row_misses(one, made), np.maximum(_row_misses(one, one.exact), _apart(one, made))
            found.append(np.where(should > 1, off, np.nan))
        return np.concatenate(found)


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
