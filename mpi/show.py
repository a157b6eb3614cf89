"""A run for the eyes: the table of the command line, and one picture a hop."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpi.observe import Event

if TYPE_CHECKING:
    from mpi.batch import Job, Outcome

HEAD = ("rank", "hop", "received", "sent", "bytes sent", "block (images, texts)", "loss of the block")


def stages(events: Sequence[Event], world: int, scheme: str) -> list[tuple[str, list[Event]]]:
    """What happened between the sums, in its order: hops, the way back of an autograd ring, the move home."""
    late = [e for e in events if scheme == "autograd-like" and e.what == "gradient" and e.hop < world]
    hops = [(str(hop), [e for e in events if e.hop == hop and e not in late]) for hop in range(world)]
    back = [(f"back {world - 1 - hop}", [e for e in late if e.hop == hop]) for hop in range(world - 2, 0, -1)]
    return [*hops, *back, ("home", [e for e in events if e.hop == world])]


def table(events: Sequence[Event], sizes: Sequence[int], scheme: str) -> str:
    """Per rank and hop: what came, what went, which block was computed; before and after, the sums over all ranks."""
    rows: list[tuple[str, ...]] = [HEAD]
    world = len(sizes)
    for rank in range(world):
        mine = [event for event in events if event.rank == rank]
        agreement, *inner, totals = [event for event in mine if event.kind == "sum"]
        rows.append((str(rank), "", "", "sum: do the inputs agree?", f"{agreement.bytes:,}", "", ""))
        for label, here in stages(mine, world, scheme):
            came = ", ".join(f"{e.what} {e.chunk} from {e.peer}" for e in here if e.kind == "recv")
            went = ", ".join(f"{e.what} {e.chunk} to {e.peer}" for e in here if e.kind == "send")
            blocks = [e for e in here if e.kind == "block"]
            if not (came or went or blocks):
                continue
            size = sum(e.bytes for e in here if e.kind == "send")
            block = f"({rank}, {blocks[0].chunk}) {sum(e.pairs for e in blocks)} pairs" if blocks else ""
            value = f"{sum(e.loss for e in blocks):.6f}" if blocks else ""
            rows.append((str(rank), label, came, went, f"{size:,}", block, value))
        if inner:  # of masked-allreduce
            size = sum(event.bytes for event in inner)
            rows.append((str(rank), "", "", f"{len(inner)} sums: texts, gradients", f"{size:,}", "", ""))
        rows.append((str(rank), "", "", "sum: loss, d_log_scale, d_bias", f"{totals.bytes:,}", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    right = {0, 4, 6}
    lines = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if scheme == "bidirectional":
        lines.append("each message carries half a chunk: of two, the first goes left, the second right")
    return "\n".join(line.rstrip() for line in lines)


def show(outcome: "Outcome", job: "Job", svg: Path | None) -> int:
    """Print the table, the totals and the check; write the pictures; return the exit code."""
    print(table(outcome.events, outcome.sizes, job.scheme))
    if svg is not None:
        svg.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures(outcome.events, outcome.sizes, job.scheme).items():
            (svg / name).write_text(picture, encoding="utf-8")
        print(f"one picture a hop in {svg}")
    text, passed = verdict(outcome, job)
    print(text, flush=True)
    return 0 if passed else 1


def verdict(outcome: "Outcome", job: "Job") -> tuple[str, bool]:
    """The totals, and the check against one process."""
    from mpi.job import TOLERANCE

    blocks = sum(event.loss for event in outcome.events if event.kind == "block")
    pairs = sum(outcome.sizes)
    lines = [
        f"loss        {outcome.loss:.15g} = {blocks:.6f} summed over all blocks / {pairs} images",
        f"d_log_scale {outcome.d_log_scale:.15g}",
        f"d_bias      {outcome.d_bias:.15g}",
    ]
    if outcome.worst is None:
        return "\n".join([*lines, "check       not made (--check makes it)"]), True
    error, name = outcome.worst
    allowed = TOLERANCE[job.dtype]
    passed = error <= allowed
    word = "PASS" if passed else "FAIL"
    lines.append(f"check       {word}: largest error against one process {error:.1e}, in {name}; allowed {allowed:.0e}")
    return "\n".join(lines), passed


INK, QUIET, PAPER = "#1b1f24", "#8b949e", "#ffffff"
# safe for the colour-blind
HUES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f"]


def pictures(events: Sequence[Event], sizes: Sequence[int], scheme: str) -> dict[str, str]:
    """File name -> SVG: the grid of all blocks after each hop, and the messages that lead to it."""
    made: dict[str, str] = {}
    done: dict[tuple[int, int], float] = {}
    for number, (label, here) in enumerate(stages(events, len(sizes), scheme)):
        for e in here:
            if e.kind == "block":
                done[e.rank, e.chunk] = done.get((e.rank, e.chunk), 0.0) + e.loss
        if any(e.kind in ("block", "recv") for e in here):
            made[f"hop-{number:03d}.svg"] = _picture(here, done, label, len(sizes))
    return made


def _picture(here: Sequence[Event], done: dict[tuple[int, int], float], label: str, world: int) -> str:
    cell, left, top = min(90.0, 360 / world), 130.0, 130.0
    title = {"h": "The gradients go home", "b": f"On the way {label}"}.get(label[0], f"Hop {label}")
    now = {(e.rank, e.chunk) for e in here if e.kind == "block"}
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 540" font-family="sans-serif" role="img">',
        f"<title>The ring: {title}</title>",
        f'<rect width="960" height="540" fill="{PAPER}"/>',
        _text(40, 50, title, 30, INK),
        _text(40, 80, f"{len(done)} of {world**2} blocks done, sum of losses {sum(done.values()):.4f}", 17, QUIET),
        _text(left, top - 12, "texts of rank", 14, QUIET),
    ]
    for rank in range(world):
        y, middle = top + rank * cell, top + (rank + 0.5) * cell
        out.append(_text(left - 12, middle + 5, f"images of rank {rank}", min(13, cell / 2), INK, "end"))
        below = top + world * cell + 18
        out.append(_text(left + (rank + 0.5) * cell, below, str(rank), min(14, cell / 2), INK, "middle"))
        for chunk in range(world):
            x, hue = left + chunk * cell, HUES[chunk % len(HUES)]
            shade = (0.95 if (rank, chunk) in now else 0.3) if (rank, chunk) in done else 0
            out.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 2:.1f}" height="{cell - 2:.1f}" rx="4" '
                f'fill="{hue}" fill-opacity="{shade}" stroke="{QUIET}" stroke-width="0.6"/>'
            )
            if (rank, chunk) in done and cell >= 40:
                value = f"{done[rank, chunk]:.2f}"
                out.append(_text(x + cell / 2 - 1, middle + 5, value, min(15, cell / 4), INK, "middle"))
    step = min(44.0, 360 / world)
    for rank in range(world):
        y = top + 10 + rank * step
        came = [e for e in here if e.kind == "recv" and e.rank == rank]
        words = ", ".join(f"{e.what} {e.chunk} from rank {e.peer}" for e in came) or "nothing to receive"
        out.append(_text(560, y, f"rank {rank}", min(16, step), INK))
        out.append(_text(630, y, words, min(14, step), HUES[came[0].chunk % len(HUES)] if came else QUIET))
    size = sum(e.bytes for e in here if e.kind == "send")
    out.append(_text(560, 515, f"{size:,} bytes were sent for this, all ranks together", 14, QUIET))
    return "\n".join([*out, "</svg>", ""])


def _text(x: float, y: float, words: str, size: float, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" fill="{colour}" text-anchor="{anchor}">{words}</text>'
