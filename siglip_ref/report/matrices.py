"""The matrices over ranks as tables: who met whom, and what lies with whom."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from siglip_ref.report.words import WORDS

if TYPE_CHECKING:
    from siglip_ref.report.data import Meeting


def matrix(meetings: "Sequence[Meeting]", tensor: str, world: int) -> list[list[str]]:
    """One matrix as cells: of the loss images by texts; of a gradient the rank that holds it by the one that computed
    its part. A part that belongs to another rank says so."""
    cells: list[list[list[str]]] = [[[] for _ in range(world)] for _ in range(world)]
    parts: dict[tuple[int, int, int], dict[str, float]] = {}
    for one in meetings:
        if (one.tensor, one.world) == (tensor, world):
            parts.setdefault((one.rank, one.images, one.texts), {})[one.part] = one.weight
    for (rank, images, texts), weights in parts.items():
        column = texts if tensor != "text_embed" else images
        owner = images if tensor != "text_embed" else texts
        text = _cell(weights, images == texts)
        cells[rank][column].append(text if rank == owner else f"{text} of {owner}'s")
    return [[" + ".join(cell) or "." for cell in row] for row in cells]


def _cell(weights: dict[str, float], own: bool) -> str:
    matches, negatives, others = (weights.get(kind, 0.0) for kind in ("positives", "negatives", "diagonal"))
    if weights.get("zeros"):
        return "zeros"
    if (others == 0.0 and matches == negatives) if own else (matches == 0.0 and others == negatives):
        return f"{negatives:.4g}"
    return (
        f"{matches:.4g} matching, {others:.4g} not"
        if negatives == matches + others
        else (f"matches {matches:.4g}, others {negatives:.4g}")
    )


def tables(meetings: "Sequence[Meeting]") -> list[tuple[str, list[list[str]]]]:
    """The matrices of the largest number of ranks that are known and not 1 everywhere, each with its title."""
    world = max((one.world for one in meetings), default=0)
    known = {one.tensor for one in meetings if one.world == world}
    titles = {tensor: title.format(world) for tensor, title in WORDS["matrices"].items() if tensor in known}
    found = [(title, matrix(meetings, tensor, world)) for tensor, title in titles.items()]
    return [(title, cells) for title, cells in found if any(cell != "1" for row in cells for cell in row)]
