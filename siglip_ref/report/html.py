"""A report as one HTML page: no scripts, nothing loaded from elsewhere, light or dark as the reader's system is."""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.report.compare import Row
from siglip_ref.report.matrices import tables
from siglip_ref.report.text import multiple, name_of, plain, power, smallest, title_of

if TYPE_CHECKING:
    from siglip_ref.report.data import Finding, Report

_CLASSES = {"pass": "good", "zero by structure": "good", "FAIL": "bad", "PASS": "good"}
_CLASSES |= {"OTHER CONVENTION": "other", "NOT JUDGED": "other"}
_BAR = (-3, 6)  # powers of ten of what is allowed, from the left end of a bar to the right
_MOST_CELLS = (48, 96)  # rows and columns of the heat map
_LEVELS = ((1, "right"), (10, "up to 10 times what is allowed"), (1e3, "up to 1000 times"), (math.inf, "more"))

_STYLE = "\n" + Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def to_html(report: "Report") -> str:
    """The page, complete: the diagnosis, every tensor, the worst one element by element, and what was not seen.

    Examples
    --------
    >>> from siglip_ref.report.data import Report
    >>> "<script" in to_html(Report("<script>", "FAIL", []))
    False
    """
    verdict = f'<span class="badge {_class(report.verdict)}">{escape(report.headline)}</span>'
    first = report.first_divergent
    begins = f"<p>begins at <b>{escape(name_of(first))}</b></p>" if first else ""
    worth = "".join(f"<p>{escape(line)}</p>" for line in report.worth)
    missing = report.unjudged
    why = f"<p>{escape(missing.evidence)}</p><p><b>repair:</b> {escape(missing.repair)}</p>" if missing else ""
    parts = [
        f"<header>{verdict}<h1>{escape(report.title)}</h1>{begins}{why}{worth}</header>",
        _section("what it computes", _list(report.computes)),
        *(_finding(finding) for finding in report.findings),
        _heat_map(report),
        _section("every tensor", _table(report) if report.rows else ""),
        *(_section(title, _matrix(cells)) for title, cells in tables(report.blocks)),
        _section("hop by hop", _hops(report)),
        _section("conventions", _list([f"{name}: {value}" for name, value in report.conventions.items()])),
        _section("not checked", _list(report.not_checked)),
        _section("not of this check", _list(report.sight.beside()) if report.passed and report.sight else ""),
        _section("this run could not have seen", _list(report.blind)),
        _section("notes", _list(report.notes)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{escape(report.verdict)}: {escape(report.title)}</title>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{title}<style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _finding(finding: "Finding") -> str:
    kind = " other" if finding.id == "convention" else ""
    place = "; ".join(part for part in (finding.tensor, finding.rows) if part)
    lines = [
        f"<h3>{escape(title_of(finding))}</h3>",
        f'<p class="note">{escape(place)}</p>' if place else "",
        f"<p>{escape(finding.evidence)}</p>",
        f"<p><b>repair:</b> {escape(finding.repair)}</p>",
    ]
    return f'<section class="card{kind}">{"".join(lines)}</section>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _list(lines: Sequence[str]) -> str:
    whole = (re.sub(r"\d(\.\d+)?e[-+]\d+", r"<span class=whole>\g<0></span>", escape(line)) for line in lines)
    return "<ul>" + "".join(f"<li>{line}</li>" for line in whole) + "</ul>" if lines else ""


def _table(report: "Report") -> str:
    heads = [
        ("tensor", ""),
        ("error / allowed", ""),
        ("error", "n"),
        ("/ noise", "n less"),
        ("allowed", "n less"),
        ("ratio", "n less"),
        ("cosine", "n less"),
        ("verdict", ""),
    ]
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in heads)
    key = '<p class="note">a bar is the error in units of what is allowed (its mark), over nine powers of ten</p>'
    if report.closest:
        key = f"<p>{escape(smallest(report))}</p>{key}"
    body = "\n".join(_row(row) for row in report.rows)
    return f'{key}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _matrix(cells: list[list[str]]) -> str:
    """A line a rank, a column a rank."""
    lines = []
    for rank, row in enumerate(cells):
        drawn = "".join(f'<td class="{"good" if cell == "1" else "bad"}">{escape(cell)}</td>' for cell in row)
        lines.append(f'<tr><td class="name">rank {rank}</td>{drawn}</tr>')
    return _of_ranks(map(str, range(len(cells))), lines)


def _of_ranks(heads: Iterable[str], lines: Sequence[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _hops(report: "Report") -> str:
    """What the ranks of a ring told, hop by hop: a line a rank, a column a hop."""
    if not report.hops:
        return ""
    ranks = sorted({hop.rank for hop in report.hops})
    places = [*sorted({hop.hop for hop in report.hops if hop.hop >= 0}), -1]
    places = [place for place in places if any(hop.hop == place for hop in report.hops)]
    lines = []
    for rank in ranks:
        cells = []
        for place in places:
            here = [hop for hop in report.hops if (hop.rank, hop.hop) == (rank, place)]
            kind = "good" if all(hop.right for hop in here) else "bad"
            said = "<br>".join(
                (f"{hop.loss:.6g} " if place >= 0 else "") + f'<span class="{kind}">{escape(hop.text)}</span>'
                for hop in here
            )
            cells.append(f"<td>{said}</td>")
        lines.append(f'<tr><td class="name">rank {rank}</td>{"".join(cells)}</tr>')
    return _of_ranks((f"hop {place}" if place >= 0 else "never" for place in places), lines)


def _row(row: Row) -> str:
    wrong = row.verdict == "FAIL"
    said = "; ".join(part for part in (row.probe, row.rows, row.note) if part) if wrong else ""
    note = f'<div class="note">{escape(said)}</div>' if said else ""
    errors = [power(row.error), multiple(row.times), power(row.tolerance)]
    numbers = [*errors, plain(row.ratio), plain(row.cosine)]
    kinds = ["n", "n less", "n less", "n less", "n less"]
    cells = "".join(f'<td class="{kind}">{number}</td>' for kind, number in zip(kinds, numbers, strict=True))
    return (
        f'<tr><td class="name">{escape(name_of(row))}{note}</td><td class="{_class(row.verdict)}">{_bar(row)}</td>'
        f'{cells}<td class="{_class(row.verdict)}">{escape(row.verdict)}</td></tr>'
    )


def _bar(row: Row) -> str:
    """On a logarithmic scale; a mark stands where an error is just allowed. No bar where nothing was judged."""
    if row.verdict in ("not checked", "out of range"):
        return ""
    low, high = _BAR
    reached = high if not row.excess < math.inf else low if row.excess == 0 else math.log10(row.excess)
    width = 100 * (min(max(reached, low), high) - low) / (high - low)
    mark = -100 * low / (high - low)
    return f'<div class="bar"><i style="width:{width:.1f}%"></i><b style="left:{mark:.1f}%"></b></div>'


def _heat_map(report: "Report") -> str:
    """The tensor that is furthest off, of those that were kept: a cell is an element, or the worst of a few."""
    arrays = report.case.arrays if report.case else {}
    wrong = [row for row in report.rows if row.verdict == "FAIL" and f"got/{row.name}" in arrays]
    kept = [row for row in wrong if f"expected/{row.name}" in arrays and np.size(arrays[f"got/{row.name}"]) > 1]
    if not kept:
        return ""
    row = max(kept, key=lambda row: row.excess)
    got, expected = (np.asarray(arrays[f"{kind}/{row.name}"], np.float64) for kind in ("got", "expected"))
    if got.shape != expected.shape:
        return ""
    with np.errstate(all="ignore"):
        excess = np.abs(got - expected) / np.max(np.abs(expected)) / row.tolerance
    matrix = _as_matrix(np.where(np.isfinite(excess), excess, np.nan))
    label = f"{name_of(row)}, shape {' x '.join(map(str, got.shape))}"
    levels = {_level(value) for value in matrix.flat}
    if len(levels) == 1 and min(levels) > 0:  # a picture of one colour says less than a number
        at = np.unravel_index(np.argmax(np.nan_to_num(excess, nan=math.inf)), excess.shape)
        where = f"[{', '.join(map(str, map(int, at)))}]"
        worst = f"{label}: every element is wrong. At {where} it is {got[at]:.6g}, expected {expected[at]:.6g}"
        return _section("the tensor that is furthest off", f'<p class="note">{escape(worst)}</p>')
    tall = matrix.shape[0] > matrix.shape[1]
    cells = _shrunk(matrix.T if tall else matrix)
    drawn = "".join(
        f'<rect class="h{_level(cell)}" x="{x}" y="{y}" width="1" height="1"/>'
        for y, line in enumerate(cells)
        for x, cell in enumerate(line)
    )
    names = [*(name for _, name in _LEVELS), "not a number"]
    key = "".join(f'<span><i class="h{level}"></i>{name}</span> ' for level, name in enumerate(names))
    way = "left to right" if tall else "top to bottom"
    label = f"{label}; rows from {way}"
    return _section(
        "the tensor that is furthest off",
        f'<p class="note">{escape(label)}</p><svg viewBox="0 0 {cells.shape[1]} {cells.shape[0]}" role="img" '
        f'style="max-width: {18 * cells.shape[1] / cells.shape[0]:.1f}rem" shape-rendering="crispEdges" '
        f'aria-label="{escape(label)}">{drawn}</svg><p class="note key">{key}</p>',
    )


def _as_matrix(values: Array) -> Array:
    """Rows and columns: leading axes together; a vector is folded where it is long."""
    if values.ndim > 1:
        return values.reshape(-1, values.shape[-1])
    columns = min(len(values), _MOST_CELLS[1])
    rows = math.ceil(len(values) / columns)
    return np.pad(values, (0, rows * columns - len(values))).reshape(rows, columns)


def _shrunk(values: Array) -> Array:
    """At most so many cells: each takes the worst of its elements, and one that is not a number is the worst."""
    for axis, most in enumerate(_MOST_CELLS):
        if values.shape[axis] > most:
            parts = np.array_split(values, most, axis)
            values = np.stack([part.max(axis) for part in parts], axis)
    return values


def _level(cell: float) -> int:
    return next((level for level, (limit, _) in enumerate(_LEVELS) if cell <= limit), len(_LEVELS))


def _class(verdict: str) -> str:
    return _CLASSES.get(verdict, "faint")
