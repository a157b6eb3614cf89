"""Other ways to make the parts of a loss over ranks, generated: what is rounded before the product, which pairs match,
what a logit is, what becomes of shards of unequal sizes. One is kept where it gives what nothing else does."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS, round_to
from siglip_ref.check.diagnosis.derive.sets import MEMBERS
from siglip_ref.check.diagnosis.functions.written import slope, written
from siglip_ref.ops.elementary import Array

WayKind = Literal[
    "rounded", "rounded back", "earlier", "undivided", "matching", "labels", "pairs", "transposed", "logit", "unequal"
]  # fmt: skip


class Way(NamedTuple):
    """kind: of what; of: of which rows, blocks or order; form: a format, or a key of the tables below."""

    kind: WayKind | Literal[""] = ""
    of: str = ""
    form: str = ""


EXACT = Way()
_OF_ROWS: tuple[Literal["earlier", "undivided"], ...] = ("earlier", "undivided")
SENT = ("texts of other ranks", "texts", "images of other ranks", "images", "images and texts")


def rows_of(way: Way, now: tuple[Array, Array], before: tuple[Array, Array], remote: bool) -> tuple[Array, Array]:
    """Images and texts as they come to the product. before: those of the call before."""
    if way.kind not in ("rounded", "earlier") or ("other ranks" in way.of and not remote):
        return now
    others = before if way.kind == "earlier" else [round_to(rows, FORMATS[way.form]) for rows in now]
    return others[0] if "images" in way.of else now[0], others[1] if "texts" in way.of else now[1]


def is_undivided(way: Way, side: int, remote: bool) -> bool:
    """Whether a gradient of unit rows comes back as it is, as of rows that nothing divided."""
    named = ("images", "texts")[side] in way.of and ("other ranks" not in way.of or remote)
    return way.kind == "undivided" and named


# --- logits


class Line(NamedTuple):
    """A logit as a function of the similarity, s x + c, and what s and c change by with scale and bias."""

    slope: float
    offset: float
    by_scale: tuple[float, float]
    by_bias: tuple[float, float]


_LOGIT = "exp(log_scale) sim + bias"
LOGITS = (
    "exp(log_scale) sim", "exp(log_scale) sim - bias", "exp(log_scale) (sim + bias)", "exp(log_scale) sim + 2 bias",
    "sim + bias", "log_scale sim + bias", "exp(2 log_scale) sim + bias", "exp(-log_scale) sim + bias",
    "-exp(log_scale) sim + bias", "-(exp(log_scale) sim + bias)", "sim", "exp(log_scale) sim + bias / W",
    "exp(log_scale) sim / W + bias", "(exp(log_scale) sim + bias) / W", "exp(log_scale) sim + W bias",
    "min(exp(log_scale), 100) sim + bias",
)  # fmt: skip
WHERE = ("all blocks", "remote blocks", "the own block")
NOT = "not in: "
_ODD = r"begin|last of|moved|earlier|next|before|second one|neighbouring|mod \d|one more|or all|\b[356]\b|\d\d|8 parts"


def concerns(way: Way, remote: bool) -> bool:
    """Whether what it says of blocks is said of a remote one, or of the own one."""
    return way.of != WHERE[2 if remote else 1]


def line_of(way: Way, scale: float, bias: float, linear: bool, world: int, remote: bool) -> Line:
    """scale : the scale itself if linear, else its logarithm."""
    form = way.form if way.kind == "logit" and concerns(way, remote) else _LOGIT
    of = written(form, "sim", "log_scale", "bias", "W")

    def up(s: Array, b: Array) -> Array:
        return of(1.0, np.log(s) if linear else s, 0 * b, world)

    def right(s: Array, b: Array) -> Array:
        return of(0.0, np.log(s) if linear else s, b, world)

    at = np.float64(scale), np.float64(bias)
    by_scale, by_bias = ((float(slope(up, k, *at)), float(slope(right, k, *at))) for k in (0, 1))
    return Line(float(up(*at)), float(right(*at)), by_scale, by_bias)


# --- which pairs match

# At which column rank r's image i looks for its text, of W ranks with b pairs each ...
COLUMNS = (
    "r b + i", "i", "i W + r", "r W + i", "r + i", "r b + i + 1", "r b + i - 1", "r b + b - 1 - i", "r (b - 1) + i",
    "r (b + 1) + i", "(r + 1) b + i", "(r - 1) b + i", "(W - 1 - r) b + i", "B - 1 - (r b + i)", "r b", "r",
)  # fmt: skip
# ... and which text stands there.
ORDERS: Mapping[str, Callable[[Array, Array, int, int], Array]] = {
    "global text p": lambda p, r, w, b: p,
    "text p // W of rank p mod W": lambda p, r, w, b: p % w * b + p // w,
    "global text (p mod b) W + p // b": lambda p, r, w, b: p % b * w + p // b,
    "text p mod b of rank W - 1 - p // b": lambda p, r, w, b: (w - 1 - p // b) * b + p % b,
    "text b - 1 - p mod b of rank p // b": lambda p, r, w, b: p // b * b + b - 1 - p % b,
    "text p + 1 modulo b of rank p // b": lambda p, r, w, b: p // b * b + (p + 1) % b,
    "text p - 1 modulo b of rank p // b": lambda p, r, w, b: p // b * b + (p - 1) % b,
    "text p + r modulo b of rank p // b": lambda p, r, w, b: p // b * b + (p + r) % b,
    "text p - r modulo b of rank p // b": lambda p, r, w, b: p // b * b + (p - r) % b,
    "global text p + 1 modulo B": lambda p, r, w, b: (p + 1) % (w * b),
    "global text p - 1 modulo B": lambda p, r, w, b: (p - 1) % (w * b),
    "text p mod b of rank p // b + r, modulo W": lambda p, r, w, b: (p + r * b) % (w * b),
    "text p mod b of rank p // b - r, modulo W": lambda p, r, w, b: (p - r * b) % (w * b),
    "text p // W of rank p mod W + r, modulo W": lambda p, r, w, b: (p % w + r) % w * b + p // w,
    "text p // W of rank p mod W - r, modulo W": lambda p, r, w, b: (p % w - r) % w * b + p // w,
}


@lru_cache(maxsize=64)
def _matches(way: Way, sizes: tuple[int, ...]) -> Array:
    """Images by texts, where they match."""
    world, each, total = len(sizes), sizes[0], sum(sizes)
    found: Array = np.zeros((total, total), bool)
    ranks = np.repeat(np.arange(world), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes])
    column = written(way.form, "r", "i", "W", "b", "B")(ranks, rows, world, each, total)
    inside = (column >= 0) & (column < total)
    text = ORDERS[way.of](column, ranks, world, each)
    found[np.arange(total)[inside], text[inside]] = True
    return found


def matching_of(diagonals: Mapping[int, Array]) -> Way:
    """The way in which the matches, by number of ranks, are the diagonals of these blocks; EXACT if there is none."""
    for way in ways(unequal=False) if all(own.any() for own in diagonals.values()) else ():
        if way.kind == "matching" and all(
            np.array_equal(_matches(way, (each,) * world), np.kron(own, np.eye(each)))
            for each in (5, 32)
            for world, own in diagonals.items()
        ):
            return way
    return EXACT


def pairs_of(way: Way, shape: tuple[int, ...], remote: bool) -> Array:
    """Of one block those that count; all, without another way, and with unequal shards."""
    if way.kind != "pairs" or not concerns(way, remote) or shape[0] != shape[1]:
        return np.ones(shape, bool)
    return _set(way.form, shape[0])


@lru_cache(maxsize=4096)
def _set(form: str, each: int) -> Array:
    """Images by texts of a block that are in a set of pairs, or not in it."""
    i, j = np.ogrid[:each, :each]
    inside = np.broadcast_to(MEMBERS[form.removeprefix(NOT)](i, j, each), (each, each))
    return ~inside if form.startswith(NOT) else inside


def matches_of(way: Way, sizes: tuple[int, ...], images: int, texts: int) -> Array:
    """Of one block; without another way, and with unequal shards, its diagonal."""
    if way.of in OFFSETS:
        start = sum(sizes[:texts]) - images * OFFSETS[way.of](sizes, images)
        return np.eye(sizes[images], sizes[texts], -start, dtype=bool)
    if way.kind == "labels" and images == texts:
        return _set(way.form, sizes[images])
    if way.kind != "matching" or len(set(sizes)) != 1:
        return np.eye(sizes[images], sizes[texts], dtype=bool)
    each = sizes[0]
    block = _matches(way, sizes)[images * each : (images + 1) * each, texts * each : (texts + 1) * each]
    return np.asarray(block)


# --- shards of unequal sizes


class Counts(NamedTuple):
    """Of one block: the rows of images and texts that count, pairs of padding more, and what all is multiplied by."""

    rows: tuple[int | None, int | None] = (None, None)
    padding: int = 0
    times: float = 1.0


# Of the sizes of all ranks, and those of the block's images and texts: which rows count, ...
ROWS: Mapping[str, Callable[[Sequence[int], int, int, bool], Counts]] = {
    "": lambda all, i, j, remote: Counts(),
    "texts of zeros up to the longest shard count as negatives": lambda all, i, j, remote: Counts(
        padding=i * (max(all) - j)
    ),
    "images of zeros up to the longest shard count as negatives": lambda all, i, j, remote: Counts(
        padding=(max(all) - i) * j
    ),
    "images and texts of zeros up to the longest shard count as negatives": lambda all, i, j, remote: Counts(
        padding=max(all) ** 2 - i * j
    ),
    "rows beyond the shortest shard's are left out": lambda all, i, j, remote: Counts((min(all), min(all))),
    "texts beyond the shortest shard's are left out": lambda all, i, j, remote: Counts((None, min(all))),
    "texts of other ranks beyond the shortest shard's are left out": lambda all, i, j, remote: Counts(
        (None, min(all) if remote else None)
    ),
    "texts of other ranks beyond the own rank's number are left out": lambda all, i, j, remote: Counts((None, i)),
}
# ... where the texts of a rank begin, where labels of its images stand, in units of its number ...
OFFSETS: Mapping[str, Callable[[Sequence[int], int], int]] = {
    f"image i of rank r matches global text r b + i, b: {words}": of
    for words, of in {
        "the own rank's pairs": lambda all, r: all[r],
        "the longest shard's": lambda all, r: max(all),
        "the shortest shard's": lambda all, r: min(all),
        "rank 0's": lambda all, r: all[0],
        "B // W": lambda all, r: sum(all) // len(all),
    }.items()
}
# ... and by what times W a block is divided, in place of B.
DIVISORS: Mapping[str, Callable[[Sequence[int], int, int], float]] = {
    "": lambda all, i, j: sum(all) / len(all),
    "the pairs of the images' rank": lambda all, i, j: i,
    "the pairs of the texts' rank": lambda all, i, j: j,
    "the longest shard": lambda all, i, j: max(all),
    "the shortest shard": lambda all, i, j: min(all),
    "the pairs of rank 0": lambda all, i, j: all[0],
    "the pairs of the last rank": lambda all, i, j: all[-1],
}


def counts_of(way: Way, sizes: tuple[int, ...], images: int, texts: int) -> Counts:
    """Of the block of two ranks."""
    if way.kind != "unequal":
        return Counts()
    of = sizes, sizes[images], sizes[texts]
    return ROWS.get(way.of, ROWS[""])(*of, images != texts)._replace(
        times=sum(sizes) / len(sizes) / DIVISORS[way.form](*of)
    )


def ways(unequal: bool) -> Iterator[Way]:
    """All of them; those of unequal shards, or all others."""
    if unequal:
        yield from (Way("unequal", rows, by) for by, rows in product(DIVISORS, (*ROWS, *OFFSETS)) if by or rows)
        return
    yield from (Way("transposed", of) for of in WHERE)
    yield from (Way("rounded", of, form) for of, form in product(SENT, ("bfloat16", "float16")))
    yield from (Way(kind, of) for kind, of in product(_OF_ROWS, SENT))
    yield from (Way("logit", of, form) for form, of in product(LOGITS, WHERE))
    known = set[bytes]()
    for of, form in product(ORDERS, COLUMNS):
        way = Way("matching", of, form)
        table = b"".join(_matches(way, sizes).tobytes() for sizes in ((5,) * 3, (5,) * 4, (4,) * 2))
        if table not in known:
            known.add(table)
            yield way
    yield from (Way("pairs", of, name) for of, name in product(WHERE, sets()))
    yield from (Way("labels", WHERE[2], name) for name in sets() if not name.startswith(NOT))


@lru_cache(maxsize=1)
def sets() -> dict[str, list[str]]:
    """Sets of pairs that are others in blocks of 5 and of 32 pairs, the simplest of those that are the same there, and
    the rest of these."""
    found: dict[bytes, list[str]] = {}
    for name in sorted((*MEMBERS, *(f"{NOT}{name}" for name in MEMBERS)), key=lambda name: name.startswith(NOT)):
        masks = [_set(name, each) for each in (5, 32)]
        if all(mask.any() for mask in masks) and not all(mask.all() for mask in masks):
            found.setdefault(b"".join(mask.tobytes() for mask in masks), []).append(name)
    return {name: [n for n in same if n != name] for same in found.values() for name in _simplest(same)}


def _simplest(names: Sequence[str]) -> list[str]:
    return [name for name in names if not re.search(_ODD, name)][:1]
