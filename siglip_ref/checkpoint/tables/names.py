"""What other libraries call our parameters, and how they lay them out: tables as data, one walker for all of them.

A table lists `Entry(ours, theirs, layout, part)`. Several entries may fill one of their tensors: fused projections
hold q, k and v as equal parts of the first axis.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import Any, Literal, cast

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.params import shapes
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.checkpoint.tables.mismatch import mismatch
from siglip_ref.checkpoint.tables.wrapped import about
from siglip_ref.errors import UsageError, few

# same: equal numbers in equal order, up to axes of length 1 or split axes; turned: (in, out) is stored as (out, in);
# patch: (row, column, channel; out) is stored as a convolution's (out, channel, row, column)
Layout = Literal["same", "turned", "patch"]
Tensor = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One of our parameters in another library: their name, the layout, and (which, of how many) parts of axis 0.

    shape: that of their whole tensor, where it does not follow from ours.
    """

    ours: str
    theirs: str
    layout: Layout = "same"
    part: tuple[int, int] = (0, 1)
    shape: tuple[int, ...] | None = None


Table = tuple[Entry, ...]


def entries(file: str, cfg: Config, stacked: Collection[str] = ()) -> Table:
    """The table of a format whose names stand in FILE.toml, for a model of these sizes.

    A row is ours, theirs, kind. kind: a layout; "dense", "norm": a linear layer, a layer norm; "qkv", "kv": projections
    stacked on the first axis, whose names end where those of "weight" and "bias" begin.

    stacked : sides whose blocks are one tensor, with a leading axis
    """
    described = about(file)
    left_out = ("text/widen",) * (not cfg.bottleneck) + ("text/head",) * (not cfg.text_head)
    rows = [row for row in described["names"] if not row[0].startswith(left_out)]
    found: list[Entry] = []
    for block, group in groupby(rows, key=lambda row: row[0].partition("{}")[0] if "{}" in row[0] else ""):
        side, listed = block.partition("/")[0], list(group)
        depth = (cfg.image if side == "image" else cfg.text).depth if block else 1
        for i, (ours, theirs, *kind) in product(range(depth), listed):
            name = theirs.replace("_{}", "") if side in stacked else theirs.replace("{}", str(i))
            part = (i, depth) if side in stacked else (0, 1)
            found += _of_row(described, ours.replace("{}", f"{i:02d}"), name, part, *kind)
    return tuple(found)


def _of_row(
    described: Mapping[str, Any], ours: str, theirs: str, part: tuple[int, int], kind: str = "same"
) -> Iterator[Entry]:
    if kind == "norm":
        yield from norm(ours, theirs, part, described["gamma"], described["bias"])
    elif kind == "dense":
        yield from dense(ours, theirs, part, described["kernel"], described["bias"], described["layout"])
    elif kind in ("qkv", "kv"):
        yield from fused(ours, theirs[:-1], kind, theirs[-1])
    else:
        yield Entry(ours, theirs, cast(Layout, kind), part)


def dense(
    ours: str,
    theirs: str,
    part: tuple[int, int] = (0, 1),
    kernel: str = ".weight",
    bias: str = ".bias",
    layout: Layout = "turned",
) -> Iterator[Entry]:
    """A torch Linear, or one part of a fused one."""
    yield Entry(f"{ours}/kernel", f"{theirs}{kernel}", layout, part)
    yield Entry(f"{ours}/bias", f"{theirs}{bias}", "same", part)


def norm(
    ours: str, theirs: str, part: tuple[int, int] = (0, 1), gamma: str = ".weight", beta: str = ".bias"
) -> Iterator[Entry]:
    """A torch LayerNorm."""
    yield Entry(f"{ours}/gamma", f"{theirs}{gamma}", part=part)
    yield Entry(f"{ours}/beta", f"{theirs}{beta}", part=part)


def fused(ours: str, theirs: str, parts: str = "qkv", joint: str = ".") -> Iterator[Entry]:
    """Projections stacked on the first axis; `joint` is "." for a Linear, "_" for torch's own in_proj."""
    for place, part in enumerate(parts):
        yield from dense(f"{ours}/{part}", theirs, (place, len(parts)), f"{joint}weight", f"{joint}bias")


def to_theirs(array: Tensor, entry: Entry, patch: int) -> Tensor:
    """One of our parameters, or its gradient, in their axis order (not yet in their shape where layout is "same")."""
    if entry.layout == "turned":
        return array.T
    if entry.layout == "patch":
        return array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
    return array


def to_ours(array: Tensor, entry: Entry, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_theirs`; `shape` is ours."""
    which, parts = entry.part
    if parts > 1:
        array = array.reshape(parts, -1, *array.shape[1:])[which]
    if entry.layout == "turned":
        return array.T.reshape(shape)
    if entry.layout == "patch":
        return array.transpose(2, 3, 1, 0).reshape(shape)
    return array.reshape(shape)


def made(image: Mapping[str, Any], text: Mapping[str, Any], conventions: Conventions) -> Config:
    """A configuration of what was found of each tower.

    Parameters
    ----------
    image, text : fields of a Config; empty for a tower that is not there, which then has width and depth 1. A text
        tower's "embed" is the length of its vectors
    """
    one = Tower(1, 1, 1, 1)
    width = text.get("embed") or text["text"].width if text else 1
    fields: dict[str, Any] = {"image": replace(one, width=width), "image_size": (1, 1), "patch": 1} | dict(image)
    fields |= {"text": one, "vocabulary": 1, "text_length": 1} | {k: v for k, v in text.items() if k != "embed"}
    height, across = fields["image_size"]
    size = f"{height} px" if height == across else f"{height} x {across} px"
    if image and text:
        name = f"{fields['image'].width} wide, {fields['image'].depth} + {fields['text'].depth} blocks, {size}"
    elif image:
        name = f"an image tower alone, {fields['image'].width} wide, {fields['image'].depth} blocks, {size}"
    else:
        name = f"a text tower alone, {fields['text'].width} wide, {fields['text'].depth} blocks"
    return Config(name, **fields, conventions=conventions)


def _implausible(expected: str, got: str) -> UsageError:
    cause = "settings that belong to no model, or a broken file of settings"
    return UsageError(expected, got, cause, "take the settings from the model's own page")


MOST = {"depth": 1_000}  # anything else: 10 million


def plausible(cfg: Config) -> Config:
    """The configuration, if every size in it is a whole number that some model could have; else a UsageError.

    A file may claim 10^12 layers; without this the walk over their names would never end.
    """
    sizes = {
        "width": (cfg.image.width, cfg.text.width),
        "depth": (cfg.image.depth, cfg.text.depth),
        "MLP": (cfg.image.mlp, cfg.text.mlp),
        "heads": (cfg.image.heads, cfg.text.heads),
        "image size": cfg.image_size,
        "patch, vocabulary and text length": (cfg.patch, cfg.vocabulary, cfg.text_length),
    }
    for name, numbers in sizes.items():
        if not all(type(n) is int and 1 <= n <= MOST.get(name, 10**7) for n in numbers):
            raise _implausible("sizes that a model can have", f"{name}: {', '.join(map(str, numbers))}"[:200])
    for side, tower in (("images", cfg.image), ("texts", cfg.text)):
        if tower.width % tower.heads:
            got = f"{tower.heads} heads of the tower of {side}, which is {tower.width} wide"
            raise _implausible("heads that divide the width", got)
    if type(cfg.bottleneck) is not int or not 0 <= cfg.bottleneck <= 10**7:
        raise _implausible("a token table of some columns", f"{cfg.bottleneck} columns"[:200])
    if min(cfg.grid) < 1:
        raise _implausible("images of at least one patch", f"{cfg.image_size} pixels, patches of {cfg.patch}")
    how = cfg.conventions
    for side, eps in (("images", how.image_norm_eps), ("texts", how.text_norm_eps)):
        if not 0 < eps < 1:
            raise _implausible("an eps of the layer norms between 0 and 1", f"{eps:g} in the tower of {side}")
    return cfg


def require_match(
    table: Table,
    theirs: Mapping[str, tuple[int, ...]],
    cfg: Config,
    ignored: Iterable[str] = (),
    sides: tuple[str, ...] = ("image", "text"),
) -> None:
    """Every parameter of ours named once, every tensor of theirs used, every shape as expected; else a UsageError.

    sides : ("image",) or ("text",) for one tower alone
    """
    ours = of_sides(shapes(cfg), sides)
    named = [entry.ours for entry in table]
    if sorted(named) != sorted(ours):
        both = sorted(set(named) ^ set(ours)) or sorted({name for name in named if named.count(name) > 1})
        raise UsageError(
            expected=f"a table that names each of the {len(ours)} parameters once",
            got=f"missing or twice: {few(both)}",
            cause="names of another size of model, or a name that was forgotten",
            repair="siglip_ref.architecture.params.shapes(cfg) lists the names",
        )
    wanted: dict[str, tuple[int, ...]] = {}
    for entry in table:
        wanted[entry.theirs] = entry.shape or their_shape(ours[entry.ours], entry, cfg.patch)
    missing, left = sorted(wanted.keys() - theirs.keys()), sorted(theirs.keys() - wanted.keys() - set(ignored))
    loose = {entry.theirs for entry in table if entry.layout == "same" and entry.part[1] == 1 and not entry.shape}
    wrong = {
        name: (theirs[name], shape)
        for name, shape in wanted.items()
        if name in theirs and (_squeezed(theirs[name]) != _squeezed(shape) if name in loose else theirs[name] != shape)
    }
    if missing or left or wrong:
        what = "parameters" if missing or left else "shapes"
        raise mismatch(f"the {what} of {cfg.name}", missing, left, wrong)


def of_sides(shapes: Mapping[str, Shape], sides: tuple[str, ...]) -> dict[str, Shape]:
    """The parameters of a whole model, or those of one tower."""
    if len(sides) == 2:
        return dict(shapes)
    return {name: shape for name, shape in shapes.items() if name.startswith(f"{sides[0]}/")}


def their_shape(shape: tuple[int, ...], entry: Entry, patch: int) -> tuple[int, ...]:
    """Shape of their tensor, where it follows from ours."""
    if entry.layout == "patch":
        return shape[1], 3, patch, patch
    turned = shape[::-1] if entry.layout == "turned" else shape
    return (turned[0] * entry.part[1], *turned[1:]) if turned else turned


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
