"""Does a function prepare images as a SigLIP wants them? If not: which filter, shape and range it has instead."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from PIL import Image

from siglip_ref.check.call.target import called_by
from siglip_ref.check.files.preprocess_naflex import check_patches, is_naflex
from siglip_ref.check.files.preprocess_output import called, pixels_of
from siglip_ref.check.files.preprocess_ports import ORDERS, area, bicubic_without_antialias
from siglip_ref.errors import lookup
from siglip_ref.mistakes import CATALOGUE
from siglip_ref.process.isolated import as_it_was
from siglip_ref.report.compare import Row
from siglip_ref.report.data import Finding, Report
from siglip_ref.use.pictures import Pixels
from siglip_ref.use.preprocess import FILTERS, PREPROCESS, Preprocess, levels, resize

Geometry = Literal["squash", "crop", "crop first", "pad"]
# Shown to the function: larger and smaller than a model's input, tall and wide, and never square, because squashing and
# cropping do the same to a square.
SHAPES = ((301, 487), (520, 253), (90, 140), (33, 21))
# filters of ports; they shrink by their own means
PORTED = {"area": area, "bicubic without antialias": bicubic_without_antialias}
GEOMETRIES: tuple[Geometry, ...] = ("squash", "crop", "crop first", "pad")
# Mean distance in levels of 255 up to which two pipelines are the same: torchvision's bytes differ from Pillow's by up
# to 0.3, two different filters by at least 2.
SAME = 0.75
RANGES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "-1/2 to 1/2, no division by the deviation": ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "-1 to 509, not rescaled by 1/255": ((0.5 / 255,) * 3, (0.5 / 255,) * 3),
    "-1 to -0.992, rescaled by 1/255 twice": ((127.5,) * 3, (127.5,) * 3),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "ImageNet's mean and deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's mean and deviation": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Guess:
    """One way to preprocess, as what may go wrong sees it."""

    filter: str
    geometry: Geometry = "squash"
    range: str = "-1 to 1"
    channels: str = "RGB"


@np.errstate(all="ignore")  # pixels may be anything
def check_preprocess(
    fn: Callable[[Image.Image], Any] | str,
    convention: str | Preprocess = "huggingface",
    size: int | tuple[int, int] | None = None,
) -> Report:
    """Judge a preprocessing function, and name what it does instead.

    Parameters
    ----------
    fn : takes one Pillow image (RGB); gives an array or tensor (3, S, S), (S, S, 3), either in a batch of one, or a
        dict with "pixel_values"; for a NaFlex model with "pixel_attention_mask" and "spatial_shapes", too. A string
        names it: "module:name", "file.py:name"
    convention : a name in `siglip_ref.use.preprocess.PREPROCESS`
    size : height and width that the model wants, or one number for both; None: whatever fn gives, if always the same

    Returns
    -------
    Report; its rows are the test images, errors in units of the pixel range

    Examples
    --------
    >>> from siglip_ref.use.preprocess import PREPROCESS, pixels
    >>> check_preprocess(lambda image: pixels(image, (64, 64), PREPROCESS["huggingface"])).verdict
    'PASS'
    """
    how = convention
    if not isinstance(how, Preprocess):
        how = lookup(PREPROCESS, how, "preprocessing", 'sr.check_preprocess(fn, "huggingface")')
    images, fn = [picture(*shape) for shape in SHAPES], called_by(fn)
    with as_it_was():
        if is_naflex(first := called(fn, images[0])):
            outs = [first, *(called(fn, image) for image in images[1:])]
            rows, found = check_patches(outs, images, how, SAME)
            return Report(f"preprocessing for NaFlex, as {how.name}", "FAIL" if found else "PASS", rows, findings=found)
        given = [pixels_of(first), *(pixels_of(called(fn, image)) for image in images[1:])]  # every answer counts
        again = [pixels_of(called(fn, image)) for image in images[:2]]
    unsteady = _unsteady(given[:2], again, how)
    rows = [_row(image, got, how) for image, got in zip(images, given, strict=True)]
    wrong_size = _wrong_size(given, size)
    title = f"preprocessing, as {how.name}"
    report = Report(title, "PASS" if all(row.right for row in rows) else "FAIL", rows, conventions=_words(how))
    if unsteady:
        report.verdict = "FAIL"
        report.findings.append(unsteady)
    elif wrong_size:
        report.verdict = "FAIL"
        report.findings.append(wrong_size)
    elif not report.passed:
        _explain(report, images, given, how)
    return report


def picture(height: int, width: int) -> Image.Image:
    """A test image: waves slow and fast, edges, three channels that differ; made from whole numbers."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    red, green = (x * x // 9 + y * 2) % 256, (x * 5 + y * y // 7) % 256
    blue = ((x // 7 + y // 4) % 2) * 180 + (x * y // 31) % 76
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def _row(image: Image.Image, got: Pixels, how: Preprocess) -> Row:
    size = (got.shape[0], got.shape[1])
    in_order, wanted = _nearest_order(image, got, how)
    unit = np.ptp(levels(how))  # the range of pixels
    error, most = float(np.abs(got - wanted).mean() / unit), float(np.abs(got - wanted).max() / unit)
    same = error <= SAME / 255
    note = "bit for bit" if most <= 1e-6 else f"at most {most * 255:.0f} levels off" if same else ""
    if note and in_order:
        note += f"; {in_order}"
    with np.errstate(all="ignore"):
        ratio = float((got * wanted).sum() / (wanted * wanted).sum())
        cosine = float((got * wanted).sum() / np.sqrt((got * got).sum() * (wanted * wanted).sum()))
    name = f"{image.height} x {image.width} to {size[0]} x {size[1]}"
    return Row(name, "value", error, SAME / 255, ratio, cosine, "", "pass" if same else "FAIL", note)


def _nearest_order(image: Image.Image, got: Pixels, how: Preprocess) -> tuple[str, Pixels]:
    """What is declared, with the passes in the order that came: Pillow 13 and those before differ by up to 14 levels.

    A resize is one pass along rows and one along columns, with whole bytes between them; both orders are right.
    """
    height, width = size = (got.shape[0], got.shape[1])
    ways = {"": resize(image, size, how)}
    if how.antialias:
        rows_first = Image.fromarray(resize(image, (image.height, width), how))
        columns_first = Image.fromarray(resize(image, (height, image.width), how))
        ways["along rows first, as Pillow before 13"] = resize(rows_first, size, how)
        ways["along columns first, as Pillow 13 with tall images"] = resize(columns_first, size, how)
    found = {words: levels(how)[way, np.arange(3)].astype(np.float64) for words, way in ways.items()}
    words = min(found, key=lambda words: np.nan_to_num(np.abs(got - found[words]).mean(), nan=np.inf))
    if not words:  # the installed Pillow's, which is one of them
        words = next((other for other in found if other and np.array_equal(found[other], found[""])), "")
    return words, found[words]


def _explain(report: Report, images: list[Image.Image], given: list[Pixels], how: Preprocess) -> None:
    """The guess that fits best; what it has and the declared convention has not, are the findings."""
    best, distance = min(_distances(images, given), key=lambda found: found[1])
    if not distance <= 2 * SAME:
        ordered = _other_order(images, given, how)
        if ordered:
            report.findings.append(ordered)
            return
        filters = len(FILTERS) + 1 + len(PORTED)
        tried = f"{filters} filters, {len(GEOMETRIES)} shapes, {len(RANGES)} ranges and 2 channel orders"
        evidence = f"of {tried} none is nearer than {distance:.1f} levels"
        report.findings.append(Finding("unknown", "pixels", "", evidence, "compare the steps one by one"))
        return
    wanted = Guess(_filter(how), "squash", _range(how))
    if best == wanted:  # nothing is nearer than what was declared, and yet it is not that
        report.findings.append(_beside(images, given, how, distance))
        return
    other = next((p.name for p in PREPROCESS.values() if Guess(_filter(p), "squash", _range(p)) == best), None)
    evidence = f"{distance:.2f} levels from: {best.filter}, {best.geometry}, {best.range}, {best.channels}"
    if other:
        report.verdict = "OTHER CONVENTION"
        repair = f'sr.check_preprocess(fn, "{other}"), if this is what the weights want'
        report.findings.append(Finding("convention", "pixels", "", evidence, repair))
        return
    for field, id_, repair in (
        ("filter", "resize-filter-antialias", f"resize with {wanted.filter}"),
        ("geometry", "squash-vs-crop", "resize both sides to the model's size, whatever the shape"),
        ("range", "mean-std", f"pixels from {wanted.range}"),
        ("channels", "unknown", "red first"),
    ):
        if getattr(best, field) != getattr(wanted, field):
            found = f"{field}: {getattr(best, field)}, not {getattr(wanted, field)} ({distance:.2f} levels from it)"
            report.findings.append(Finding(id_, "pixels", "", found, repair))


def _beside(images: list[Image.Image], given: list[Pixels], how: Preprocess, distance: float) -> Finding:
    """What follows the declared steps nearly: pixels beyond their range, or else how far it is off."""
    table = levels(how).astype(np.float64)
    unit, low, high = np.ptp(table), table.min(0), table.max(0)
    beyond = [np.maximum(low - got, got - high).max() / unit * 255 for got in given]
    wanted = [table[resize(image, got.shape[:2], how), np.arange(3)] for image, got in zip(images, given, strict=True)]
    clipped = [np.clip(got, low, high) for got in given]
    left = max(float(np.abs(a - b).mean() / unit * 255) for a, b in zip(clipped, wanted, strict=True))
    if max(beyond) > 1:
        mistake = CATALOGUE["resize-not-clipped"]
        evidence = f"{mistake.text}: up to {max(beyond):.0f} levels beyond it; {distance:.2f} levels off in the mean"
        evidence += f", {left:.2f} when clipped"
        return Finding(mistake.id, "pixels", "", evidence, mistake.repair)
    most = max(float(np.abs(a - b).max() / unit * 255) for a, b in zip(given, wanted, strict=True))
    evidence = f"nothing is nearer than what was declared, {distance:.2f} levels off in the mean, {most:.0f} at most"
    repair = f"look at how {how.filter} is computed: its weights, whether bytes are rounded or cut, the corners"
    return Finding("unknown", "pixels", "", evidence, repair)


def _distances(images: list[Image.Image], given: list[Pixels]) -> Iterator[tuple[Guess, float]]:
    """Every guess, and its mean distance in levels."""
    for filter_, geometry in product([*FILTERS, "bilinear without antialias", *PORTED], GEOMETRIES):
        shaped = [_shape(image, got.shape[:2], filter_, geometry) for image, got in zip(images, given, strict=True)]
        for (name, (mean, std)), channels in product(RANGES.items(), ("RGB", "BGR")):
            table = levels(replace(PREPROCESS["open_clip"], mean=mean, std=std)).astype(np.float64)
            order = np.arange(3) if channels == "RGB" else np.arange(3)[::-1]
            off = [
                np.abs(got - table[bytes_[..., order], np.arange(3)]).mean() / np.ptp(table) * 255
                for got, bytes_ in zip(given, shaped, strict=True)
            ]
            distance = float(np.max(off))
            yield Guess(filter_, geometry, name, channels), distance if distance >= 0 else np.inf


def _shape(image: Image.Image, size: tuple[int, ...], filter_: str, geometry: str) -> Pixels:
    """uint8 (S, S, 3): the image squashed, cropped in the middle after or before its resize, or padded to a square."""
    height, width = size
    if geometry == "crop first":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if geometry in ("squash", "crop first"):
        return _resized(image, (height, width), filter_)
    scale = (max if geometry == "crop" else min)(height / image.height, width / image.width)
    scaled = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    whole = _resized(image, scaled, filter_)
    top, left = abs(scaled[0] - height) // 2, abs(scaled[1] - width) // 2
    if geometry == "crop":
        return whole[top : top + height, left : left + width]
    rest = (top, height - scaled[0] - top), (left, width - scaled[1] - left), (0, 0)
    return np.pad(whole, rest)


def _resized(image: Image.Image, size: tuple[int, int], filter_: str) -> Pixels:
    if filter_ in PORTED:
        return PORTED[filter_](image, size)
    antialias = filter_ in FILTERS
    how = Preprocess("", filter_ if antialias else "bilinear", antialias)  # type: ignore[arg-type]  # a name in FILTERS
    return resize(image, size, how)


def _other_order(images: list[Image.Image], given: list[Pixels], how: Preprocess) -> Finding | None:
    """The declared pixels in another order, if that is what came."""
    unit = np.ptp(levels(how))
    for words, made in ORDERS.items():
        if any(got.shape[0] != got.shape[1] for got in given):
            return None
        wanted = [
            made(levels(how)[resize(image, got.shape[:2], how), np.arange(3)])
            for image, got in zip(images, given, strict=True)
        ]
        off = max(float(np.abs(a - b).mean() / unit * 255) for a, b in zip(given, wanted, strict=True))
        if off <= 2 * SAME:
            evidence = f"the declared pixels, {words} ({off:.2f} levels from it)"
            return Finding("derived", "pixels", "", evidence, "rows from the top, columns from the left, moved axes")
    return None


def _wrong_size(given: list[Pixels], size: int | tuple[int, int] | None) -> Finding | None:
    """Pixels of another size than the model's, or than those of other images."""
    sizes = sorted({(got.shape[0], got.shape[1]) for got in given})
    wanted = (size, size) if isinstance(size, int) else size
    if len(sizes) > 1:
        evidence = f"images come out in {len(sizes)} sizes: {', '.join(f'{h} x {w}' for h, w in sizes[:4])}"
        repair = "resize both sides to the model's size"
    elif wanted is not None and sizes != [wanted]:
        evidence = f"images come out {sizes[0][0]} x {sizes[0][1]}, the model wants {wanted[0]} x {wanted[1]}"
        repair = f"resize to height {wanted[0]}, width {wanted[1]}"
    else:
        return None
    return Finding("derived", "pixels", "", evidence, repair)


def _unsteady(first: list[Pixels], again: list[Pixels], how: Preprocess) -> Finding | None:
    """Two calls with the same image that differ: augmentation."""
    most = 2 * SAME / 255 * np.ptp(levels(how))

    def alike(a: Pixels, b: Pixels) -> bool:
        same = (a.shape == b.shape) and np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b)).mean() <= most
        return bool(same) or np.array_equal(a, b, equal_nan=True)  # infinities, too

    if all(alike(a, b) for a, b in zip(first, again, strict=True)):
        return None
    evidence = "two calls with the same image give other pixels: augmentation is on, or something random"
    return Finding("derived", "pixels", "", evidence, "the pipeline for evaluation, without random crops and flips")


def _filter(how: Preprocess) -> str:
    return how.filter if how.antialias else f"{how.filter} without antialias"


def _range(how: Preprocess) -> str:
    return next((name for name, pair in RANGES.items() if pair == (how.mean, how.std)), f"{how.mean}, {how.std}")


def _words(how: Preprocess) -> dict[str, str]:
    return {"resize": f"{_filter(how)}, squashed to the size", "pixels": _range(how), "channels": "RGB"}
