"""Before the first hop every rank learns what every other brought; what does not fit is refused on all ranks alike.

One small Allreduce carries a table of whole numbers, a row from each rank. Because all ranks then judge the
same table, all raise the same error, and nobody waits for a message that nobody will send.
"""

from collections.abc import Sequence

import numpy as np

from mpi.comm import Array, Communicator
from siglip_ref import __version__
from siglip_ref.errors import UsageError
from siglip_ref.process.data import read_toml

_ABOUT = read_toml(__file__, "agree")
FIELDS: dict[str, str] = _ABOUT["fields"]  # column of the table: what to do when the ranks differ there
FAULTS: list[str] = _ABOUT["faults"]


class Disagreement(UsageError):  # noqa: N818
    """The ranks' inputs do not fit together."""

    on_every_rank = True  # the same one


def agree(
    comm: Communicator,
    x: Array,
    y: Array,
    log_scale: Array | float,
    bias: Array | float,
    scheme: str,
    known: Sequence[str],
    granule: int,
) -> list[int]:
    """Compare what the ranks bring (images x, texts y); return every rank's number of pairs.

    Every rank's pairs must begin at a multiple of `granule`.

    Raises
    ------
    Disagreement : naming the rank and what it brought
    """
    table = np.zeros((comm.size, len(FIELDS)), np.int64)
    mine = np.zeros_like(table)
    scale, offset = np.asarray(log_scale), np.asarray(bias)
    mine[comm.rank] = _row(np.asarray(x), np.asarray(y), scale, offset, scheme, known, granule)
    comm.Allreduce(mine, table)  # every other row is zero, so the sum is the whole table
    judge(table)
    return [int(pairs) for pairs in table[:, _column("images")]]


def judge(table: Array) -> None:
    """Raise a Disagreement if the rows do not fit together."""
    for rank, fault in enumerate(table[:, _column("fault")]):
        if fault:
            _refuse(rank, "finite embeddings of shape (b, D) on every rank", FAULTS[fault], "repair that rank's input")
    for name, repair in FIELDS.items():
        column = table[:, _column(name)]
        if repair and (column != column[0]).any():
            rank = _odd_one(column)
            usual = column[(rank + 1) % len(column)] if len(column) > 2 else column[1 - rank]
            expected, got = f"one {name} on all ranks ({_show(name, usual)})", f"{name} {_show(name, column[rank])}"
            _refuse(rank, expected, got, repair)
    images, texts = table[:, _column("images")], table[:, _column("texts")]
    if (images != texts).any():
        rank = int(np.argmax(images != texts))
        got = f"{images[rank]} images and {texts[rank]} texts"
        _refuse(rank, "as many images as texts on every rank", got, "give row i of both to pair i")
    granule, begins = table[0, _column("granule")], np.cumsum(images) - images
    if granule and (odd := (images > 0) & (begins % granule > 0)).any():
        rank = int(np.argmax(odd))
        expected = f"shards that begin at a multiple of {granule} pairs (deterministic=True)"
        repair = f"give every rank but the last with pairs a multiple of {granule}"
        _refuse(rank, expected, f"its shard begins at pair {begins[rank]}", repair)
    if images.sum() == 0:
        _refuse(0, "at least one pair in the global batch", "none on any rank", "look at the data loader")


def _row(
    x: Array, y: Array, log_scale: Array, bias: Array, scheme: str, known: Sequence[str], granule: int
) -> list[int]:
    """This rank's row. It never raises: a rank that raised here would leave the others waiting."""
    fault = 0
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        fault = 1
    elif x.dtype != y.dtype or x.dtype not in (np.float32, np.float64):
        fault = 2
    elif not np.isfinite(x).all():
        fault = 3
    elif not np.isfinite(y).all():
        fault = 4
    elif not all(s.size == 1 and s.dtype.kind in "fiu" and np.isfinite(s).all() for s in (log_scale, bias)):
        fault = 5
    elif scheme not in known:
        fault = 6
    if fault:
        return [0] * (len(FIELDS) - 1) + [fault]
    versions = (_word(__version__), _word(np.__version__))
    bits = [int(np.float64(s.item()).view(np.int64)) for s in (log_scale, bias)]
    return [*versions, _word(scheme), granule, _word(x.dtype.name), x.shape[1], *bits, len(x), len(y), fault]


def _word(text: str) -> int:
    """The first seven letters as a whole number."""
    return int.from_bytes(text.encode()[:7], "big")


def _show(name: str, value: int) -> str:
    if name in ("log_scale", "bias"):
        return repr(float(np.int64(value).view(np.float64)))
    if name in ("embedding width", "granule"):
        return str(value)
    return int(value).to_bytes(7, "big").lstrip(b"\0").decode(errors="replace")


def _column(name: str) -> int:
    return list(FIELDS).index(name)


def _odd_one(column: Array) -> int:
    """The rank that stands most alone; of two, the second."""
    alone = [(int((column == value).sum()), -rank) for rank, value in enumerate(column)]
    return -min(alone)[1]


def _refuse(rank: int, expected: str, got: str, repair: str) -> None:
    cause = "that rank's batch or parameters are not what the others have; found before the first hop"
    raise Disagreement(expected, f"on rank {rank}: {got}", cause, repair)
