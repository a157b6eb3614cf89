"""A report for human eyes: verdict, table and cause, which stands above a table that is long; then the rest."""

import io
import math
import shutil
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from siglip_ref.report.compare import Row

if TYPE_CHECKING:
    from siglip_ref.report.data import Finding, Report

_COLOURS = {"PASS": "bold green", "OTHER CONVENTION": "bold yellow", "NOT JUDGED": "bold yellow", "FAIL": "bold red"}
_ROW_COLOURS = {"pass": "green", "FAIL": "bold red", "zero by structure": "green"}
_SHORT = {"zero by structure": "zero", "out of range": "range", "not checked": "-"}
_TITLES = {"unknown": "what it looks like", "convention": "another convention", "derived": "worked out"}
_MOST_LINES = 12  # of what deviates; the table has them all
_LONG = 30  # rows of a table below which the cause would scroll out of sight


def renderable(report: "Report") -> RenderableType:
    """The report for a rich console."""
    parts: list[RenderableType] = [_headline(report)]
    parts += [Text(f"PASS: {line}") for line in report.worth]
    if report.unjudged:
        parts += [Text(f"NOT JUDGED: {report.unjudged.evidence}"), Text(f"repair: {report.unjudged.repair}")]
    cause = _section("what it computes", report.computes)
    for finding in report.findings:
        cause += _section(title_of(finding), [finding.evidence, f"repair: {finding.repair}"])
    where: list[RenderableType] = ["", _table(report.rows)] if report.rows else []
    if report.closest:
        where += ["", Text(smallest(report))]
    where += _deviations(report)
    parts += [*cause, *where] if len(report.rows) > _LONG else [*where, *cause]
    parts += _blocks(report)
    parts += _hops(report)
    parts += _section("conventions", [f"{name}: {value}" for name, value in report.conventions.items()])
    parts += _section("not checked", report.not_checked)
    if report.passed and report.sight:
        parts += _section("not of this check", ["; ".join(report.sight.beside())])
    parts += _section("this run could not have seen", report.blind)
    parts += _section("notes", report.notes)
    return Group(*parts)


def to_text(report: "Report", width: int | None = None) -> str:
    """The report as plain text, as wide as the terminal (100 columns where there is none)."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    page = io.StringIO()
    Console(file=page, width=width, color_system=None, legacy_windows=False).print(renderable(report))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def _headline(report: "Report") -> Text:
    return Text.assemble((report.headline, _COLOURS[report.verdict]), "  ", report.title)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("tensor", overflow="fold")
    for name in ("error", "/ noise", "allowed", "ratio", "cosine"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        verdict = Text(_SHORT.get(row.verdict, row.verdict), _ROW_COLOURS.get(row.verdict, "dim"))
        alike = ("-", "-") if row.verdict == "zero by structure" else (plain(row.ratio), plain(row.cosine))
        numbers = (power(row.error), multiple(row.times), power(row.tolerance), *alike)
        table.add_row(Text(name_of(row)), *numbers, verdict)
    return table


def _deviations(report: "Report") -> list[RenderableType]:
    """For each wrong tensor: how far, at which inputs, which rows, and what stood beside it."""
    first = report.first_divergent
    if first is None:
        return []
    lines = [f"begins at {name_of(first)}"] if len(report.rows) > _MOST_LINES else []
    wrong = [row for row in report.rows if row.verdict == "FAIL"]
    for row in wrong[:_MOST_LINES]:
        times = f"{row.excess:.3g} times what is allowed" if math.isfinite(row.excess) else ""
        at = f"at {row.probe}" if row.probe else ""
        lines.append(f"{name_of(row)}: " + "; ".join(part for part in (times, at, row.rows, row.note) if part))
    if len(wrong) > _MOST_LINES:
        lines.append(f"and {len(wrong) - _MOST_LINES} more")
    return _section("what deviates", lines)


def _blocks(report: "Report") -> list[RenderableType]:
    """The matrices over ranks that are not as they should be."""
    from siglip_ref.report.matrices import tables

    parts: list[RenderableType] = []
    for title, cells in tables(report.blocks):
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for name in ("rank", *map(str, range(len(cells)))):
            table.add_column(name, justify="right")
        for rank, row in enumerate(cells):
            table.add_row(str(rank), *(Text(cell, "" if cell == "1" else "bold red") for cell in row))
        parts += ["", Text(title, "dim"), Padding(table, (0, 0, 0, 2))]
    return parts


def _hops(report: "Report") -> list[RenderableType]:
    """What the numbers are that the ranks told; all of them where one is wrong, else a line."""
    if not report.hops:
        return []
    if all(hop.right for hop in report.hops):
        return _section("hop by hop", ["every rank met the texts of every rank once"])
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("rank", "hop", "loss told", "which is"):
        table.add_column(name, justify="left" if name == "which is" else "right")
    for hop in report.hops:
        place, loss = (str(hop.hop), f"{hop.loss:.6g}") if hop.hop >= 0 else ("-", "-")
        table.add_row(str(hop.rank), place, loss, Text(hop.text, "" if hop.right else "bold red"))
    return ["", Text("hop by hop", "dim"), Padding(table, (0, 0, 0, 2))]


def _section(title: str, lines: list[str]) -> list[RenderableType]:
    if not lines:
        return []
    return ["", Text(title, "dim"), *(Padding(Text.from_markup(escape(line)), (0, 0, 0, 2)) for line in lines)]


def smallest(report: "Report") -> str:
    """How much room is left, or how much is missing: the smallest tolerance that would pass."""
    from siglip_ref.noise.measure import TIMES

    closest, needed = report.closest, report.smallest_tolerance
    if closest is None or not needed < math.inf:
        return f"no tolerance would let this pass ({TIMES:g} times the noise is allowed)"
    at = f"{multiple(needed)} times the noise ({name_of(closest)})"
    return f"smallest tolerance that would pass: {at}; allowed: {TIMES:g}"


def title_of(finding: "Finding") -> str:
    """What a finding is: a mistake, or, where it explains a part only, a suspicion."""
    return _TITLES.get(finding.kind, f"{finding.kind}: {finding.id}")


def name_of(row: Row) -> str:
    """What a row is called: a gradient has a d before its tensor's name."""
    return f"d {row.name}" if row.kind == "gradient" else row.name


def power(number: float) -> str:
    """1.2e-07; a dash for what is not a number."""
    return "-" if math.isnan(number) else f"{number:.1e}" if number else "0"


def multiple(number: float) -> str:
    """0.42, 17, 3.1e+05; a dash for what is not a number."""
    if math.isnan(number):
        return "-"
    return f"{number:.1e}" if number >= 1e4 else f"{number:.0f}" if number >= 10 else f"{number:.2f}"


def plain(number: float) -> str:
    """0.9871, with powers of ten only where they are needed; a dash for what is not a number."""
    if math.isnan(number):
        return "-"
    return f"{number:.4f}" if 1e-3 <= abs(number) < 1e4 or number == 0 else f"{number:.1e}"
