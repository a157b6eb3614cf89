"""Pictures of one trip of the toy on four ranks, from a real trace: one that moves, for the README; stills for print.

python tools/ring_picture.py        writes docs/_static/ring.svg
"""

import math
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "docs" / "_static" / "ring.svg"
WORLD = 4
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # of the page, safe for the colour-blind
SECONDS = 2  # of a hop
CENTRE, RADIUS, INNER = (300, 185), 145, 64


def where(rank: float, radius: float, centre: tuple[int, int] = CENTRE, wide: float = 1) -> tuple[float, float]:
    """The place of a rank on a circle, or an ellipse; between two ranks for a number between."""
    angle = 2 * math.pi * rank / WORLD
    return centre[0] + wide * radius * math.sin(angle), centre[1] - radius * math.cos(angle)


def journeys(document: Any) -> list[list[int]]:
    """Of each chunk the rank that holds it, or its gradient, after every hop: from the receives of the trace."""
    events = [dict(zip(document["columns"], row, strict=True)) for row in document["events"]]
    out = []
    for chunk in range(WORLD):
        came = {e["hop"]: e["rank"] for e in events if e["kind"] == "recv" and e["chunk"] == chunk}
        out.append([chunk, *(came[hop] for hop in range(1, WORLD + 1))])
    return out


def frames(name: str, steps: list[tuple[float, str]]) -> str:
    """A CSS animation: at these shares of the whole these styles."""
    return f"@keyframes {name} {{ {' '.join(f'{100 * at:.2f}% {{ {style} }}' for at, style in steps)} }}"


def moves(ranks: list[int], lag: float) -> list[tuple[float, str]]:
    """Along the circle from rank to rank; a gradient starts later within a hop than its texts."""
    whole, steps, place = len(ranks) + 1, [], float(ranks[0])
    for hop in range(len(ranks)):
        target = place - (1 if hop else 0)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0) if hop else (1.0,):
            x, y = where(place + (target - place) * share, RADIUS)
            steps.append(((hop + lag + 0.35 * share) / whole, f"transform: translate({x:.1f}px, {y:.1f}px)"))
        place = target
    return [(0, steps[0][1]), *steps, (1, steps[-1][1])]


def shown(name: str, begin: float, end: float) -> str:
    """An animation: visible from one share of the whole to another."""
    steps = [(0.0, int(begin == 0))]
    if begin > 0:
        steps += [(begin - 0.001, 0), (begin, 1)]
    if end < 1:
        steps += [(end - 0.001, 1), (end, 0)]
    return frames(name, [(at, f"opacity: {on}") for at, on in [*steps, (1.0, int(end == 1))]])


def moving(name: str, inside: str, first: int = 1) -> str:
    """A group with an animation; `first` is its opacity where nothing moves."""
    return f'<g class="a" style="animation-name: {name}; opacity: {first}">{inside}</g>'


def words_of(document: Any) -> list[str]:
    """What is said beside each of the six parts."""
    size = document["sizes"][0] * document["width"] * 8
    return [
        "hop 0: each rank computes the block of its own images and texts",
        f"hop 1: texts move left, {size} bytes a rank; a block is computed, and a gradient begins",
        *(f"hop {hop}: texts and their gradients move left; each rank adds its part" for hop in range(2, WORLD)),
        "home: one more move brings each gradient to the rank that owns its texts",
        f"one all-reduce of three numbers; the loss is {document['loss']:.15g}",
    ]


def chunk_of(chunk: int, ranks: list[int], whole: int) -> tuple[list[str], str]:
    """The card of a chunk's texts, and the gradient behind it: their animations, and the drawing."""
    styles = [frames(f"texts-{chunk}", moves(ranks, 0.05)), frames(f"gradient-{chunk}", moves(ranks, 0.5))]
    styles.append(shown(f"leave-{chunk}", 0, (WORLD + 0.05) / whole))
    parts = []
    for hop in range(1, WORLD):
        styles.append(shown(f"part-{chunk}-{hop}", (hop + 0.9) / whole, 1))
        rect = f'<rect x="{-22 + 15 * (hop - 1)}" y="18" width="13" height="9" fill="{HUES[ranks[hop]]}"/>'
        parts.append(moving(f"part-{chunk}-{hop}", rect, 0))
    card = f'<rect x="-36" y="-14" width="72" height="28" rx="5" fill="#fff" stroke="{HUES[chunk]}" stroke-width="3"/>'
    card += f'<text y="5" text-anchor="middle">texts {chunk}</text>'
    x, y = where(chunk, RADIUS)
    still = f'<g style="transform: translate({x:.1f}px, {y:.1f}px)"'
    texts = still + f' class="a t{chunk}">{card}</g>'
    styles.append(f".t{chunk} {{ animation-name: texts-{chunk} }}")
    return styles, moving(f"gradient-{chunk}", "".join(parts)) + moving(f"leave-{chunk}", texts)


def picture(document: Any) -> str:
    """The drawing. Hop 0 is the first of its six parts, the last shows the sum."""
    whole, styles, drawn = WORLD + 2, [], []
    for rank in range(WORLD):
        x, y = where(rank, INNER)
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="31" fill="#fff" stroke="{HUES[rank]}" stroke-width="3"/>')
        drawn.append(f'<text x="{x:.1f}" y="{y + 5:.1f}" text-anchor="middle">rank {rank}</text>')
    for chunk, ranks in enumerate(journeys(document)):
        more, group = chunk_of(chunk, ranks, whole)
        styles += more
        drawn.append(group)
    for k, line in enumerate(words_of(document)):
        styles.append(shown(f"line-{k}", k / whole, (k + 1) / whole))
        drawn.append(moving(f"line-{k}", f'<text x="300" y="382" text-anchor="middle">{line}</text>', int(k == 0)))
    base = (
        f".a {{ animation: {SECONDS * whole}s linear infinite }} "
        "text { font: 14px system-ui, sans-serif; fill: #1d1c1a } "
        "@media (prefers-reduced-motion: reduce) { .a { animation-play-state: paused } }"
    )
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 400" role="img">',
            "<title>One trip round the ring: texts travel, and their gradients with them</title>",
            f"<style>{base} {' '.join(styles)}</style>",
            '<rect width="600" height="400" fill="#fbfaf8"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def still(document: Any, hop: int) -> str:
    """One hop, to be printed small: which texts came, by arrows with their bytes, and how far each gradient is."""
    centre, size = (130, 106), document["sizes"][0] * document["width"] * 8
    events = [dict(zip(document["columns"], row, strict=True)) for row in document["events"]]
    came = [e for e in events if e["kind"] == "recv" and e["hop"] == hop]
    kinds = {e["what"] for e in came}
    named = "home" if hop == WORLD else f"hop {hop}"
    bytes_each = f": {' + '.join([f'{size} B'] * len(kinds))} to each rank" if came else ": no message"
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 260 202" role="img" '
        'font-family="sans-serif" font-size="13">',
        f"<title>The ring after {named}</title>",
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="4" refY="3" markerWidth="5" markerHeight="5" orient="auto">'
        '<path d="M0 0L6 3L0 6z"/></marker></defs>',
        f'<text x="6" y="15"><tspan font-weight="bold">{named}</tspan>{bytes_each}</text>',
    ]
    for rank in range(WORLD):
        x, y = where(rank, 30, centre, 1.5)
        out.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="16" fill="#fff" stroke="{HUES[rank]}" stroke-width="2"/>')
        out.append(f'<text x="{x:.0f}" y="{y + 4.5:.1f}" text-anchor="middle">{rank}</text>')
        if came:
            (x0, y0), (x1, y1) = (where(rank - turn, 76, centre, 1.3) for turn in (0.3, 0.7))
            arrow = f"M{x0:.0f} {y0:.0f}A99 76 0 0 0 {x1:.0f} {y1:.0f}"
            out.append(f'<path d="{arrow}" fill="none" stroke="#000" stroke-width="1.6" marker-end="url(#tip)"/>')
    for chunk, ranks in enumerate(journeys(document)):
        x, y = where(ranks[hop], 70, centre, 1.35)
        if hop < WORLD:
            place = f'x="{x - 28:.0f}" y="{y - 11:.0f}" width="56" height="22" rx="4"'
            out.append(f'<rect {place} fill="#fff" stroke="{HUES[chunk]}" stroke-width="2"/>')
            out.append(f'<text x="{x:.0f}" y="{y + 4.5:.1f}" text-anchor="middle">texts {chunk}</text>')
        else:
            out.append(f'<text x="{x:.0f}" y="{y + 4.5:.1f}" text-anchor="middle">∂ texts {chunk}</text>')
        for k in range(min(hop, WORLD - 1)):
            out.append(
                f'<rect x="{x - 21 + 14 * k:.0f}" y="{y + 13:.0f}" width="12" height="7" fill="{HUES[ranks[k + 1]]}"/>'
            )
    return "\n".join([*out, "</svg>"])


if __name__ == "__main__":
    from ring_page import trace

    TARGET.write_text(picture(trace("blocking", WORLD)), encoding="utf-8")
