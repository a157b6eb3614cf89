"""Write into the pages what commands, reports and their own Python blocks print: nobody types it.

`python tools/page_samples.py` rewrites what stands between the markers; `tests/docs/test_page_samples.py` holds the
pages to it: every word, and numbers but for what differs between processors.
"""

import ast
import contextlib
import io
import math
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import ring_breaks
from ring_page import command, keeps, toy

import siglip_ref as sr
from siglip_ref.architecture.conventions import PRESETS, Conventions
from siglip_ref.report.data import Report
from siglip_ref.report.text import to_text

DOCS = Path(__file__).parent.parent / "docs"
END = "<!-- end -->"
WIDTH = 110  # columns of a report
PYTHON = re.compile(r"^```(?:python|\{code-cell\} python)\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = "<!-- output -->"  # of the Python block before it
GENERATED = re.compile(r"<!-- (output|code [^>]*) -->")
MARKED = re.compile(r"<!-- ([a-z][^>]*?) -->(?:.*?)<!-- end -->", re.DOTALL)
# Sections of a report that its samples leave out, with dots in their place.
LEFT_OUT = ("smallest", "what deviates", "conventions", "not checked", "this run could not have seen", "notes")


def ring_output() -> str:
    """Of the command's table what rank 0 did, and the results."""
    lines = command("loss", *toy(ring_breaks.WORLD)).splitlines()
    others = next(k for k, line in enumerate(lines) if line.split()[0] == "1")
    results = [line for line in lines if line.startswith(("loss ", "d_"))]
    return "\n".join([*lines[:others], "...", *results])


@cache
def report_of(name: str) -> Report:
    """The checker's report on one of the rings broken on purpose."""
    broken = next(one for one in ring_breaks.BREAKS if one.name == name)
    return ring_breaks.judged(ring_breaks.broken_modules(broken), broken)


def section(name: str, title: str) -> str:
    """A part of that report, with its title."""
    parts = re.split(r"\n\n(?=\S)", to_text(report_of(name), WIDTH))
    return next(part for part in parts if part.startswith(title))


def matrices() -> str:
    """Who met whom where a hop is missing; where gradients lie that do not make the move home."""
    return f"{section('forget', 'who met whom')}\n\n{section('astray', 'd text_embed')}"


def losses() -> str:
    """Of fresh models."""
    rows = ["| images in the global batch (B) | bias -10 | bias -log(B - 1) | bias 0 |", "|---:|---:|---:|---:|"]
    for pairs in (32, 256, 1024, 4096, 16384, 32768):
        values = [sr.expected_loss(pairs, math.log(10), bias) for bias in (-10.0, -math.log(pairs - 1), 0.0)]
        rows.append(f"| {pairs:,} | " + " | ".join(f"{value:,.4f}" for value in values) + " |")
    return "\n".join(rows)


def scores() -> str:
    """Of a trained model."""
    rows = ["| scale | bias | similarity | logit | score |", "|---:|---:|---:|---:|---:|"]
    for similarity in (0.0, 0.05, 0.1, 0.15, 0.2):
        logit = 112 * similarity - 16
        rows.append(f"| 112 | -16 | {similarity:.2f} | {logit:.1f} | {1 / (1 + math.exp(-logit)):.2g} |")
    return "\n".join(rows)


def presets() -> str:
    """Of conventions: a row a field."""
    names = list(PRESETS)
    rows = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for field in fields(Conventions)[1:]:
        values = (str(getattr(PRESETS[name], field.name)) for name in names)
        rows.append(f"| `{field.name}` | " + " | ".join(values) + " |")
    return "\n".join(rows)


PROSE = ("|", "For ")  # what begins so, tables and sentences, is the page's own text; everything else is a block
# page -> marker -> what stands there
SAMPLES: dict[str, dict[str, Callable[[], str]]] = {
    "ring.md": {"ring-output": ring_output, "keeps": keeps},
    "how-the-report-knows.md": {
        "matrices": matrices,
        "computes": lambda: section("astray", "what it computes"),
    },
    "is-my-loss-normal.md": {"losses": losses, "scores": scores},
    "conventions.md": {"presets": presets},
}
# Pages with something generated: also what their Python blocks print, and code of this repository.
PAGES = sorted(
    str(page.relative_to(DOCS))
    for page in DOCS.rglob("*.md")
    if str(page.relative_to(DOCS)) in SAMPLES or GENERATED.search(page.read_text(encoding="utf-8"))
)


def printed(page: str) -> list[str]:
    """What the page's Python blocks print, one after the other in one program, where an output follows them."""
    text, place, found = (DOCS / page).read_text(encoding="utf-8"), {"__name__": "__main__"}, []
    for block in PYTHON.finditer(text) if OUTPUT in text else ():
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile(block[1], page, "exec"), place)
        if text[block.end() :].lstrip().startswith(OUTPUT):
            found.append(shortened(stream.getvalue().rstrip()))
    return found


def shortened(report: str) -> str:
    """Without the sections that are left out; anything else as it is."""
    kept: list[str] = []
    for part in re.split(r"\n\n(?=\S)", report):
        if not part.startswith(LEFT_OUT):
            kept.append(part)
        elif kept[-1] != "...":
            kept.append("...")
    return "\n\n".join(kept)


def code(page: str, words: list[str]) -> str:
    """A file of this repository: a path from the page, then a function or class of it, then its first and last line."""
    path = ((DOCS / page).parent / words[0]).resolve()
    source = path.read_text(encoding="utf-8")
    if words[1:]:
        nodes = ast.parse(source).body
        node = next(n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == words[1])
        source = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
    if words[2:]:
        lines = source.splitlines()
        first, last = (next(k for k, line in enumerate(lines) if f"{word} = " in line) for word in words[2:])
        source = textwrap.dedent("\n".join(lines[first : last + 1]))
    return f"\n```{'py' if path.suffix == '.py' else 'sh'}\n{source.rstrip()}\n```\n"


def renewed(page: str) -> str:
    """The page with everything generated written anew."""
    outputs = iter(printed(page))
    named = SAMPLES.get(page, {})

    def content(found: re.Match[str]) -> str:
        kind, *words = found[1].split()
        if kind == "code":
            made = code(page, words)
        elif kind == "output" or kind in named:
            text = next(outputs) if kind == "output" else named[kind]()
            made = f"\n\n{text}\n\n" if text.startswith(PROSE) else f"\n```text\n{text}\n```\n"
        else:  # written by another tool
            return found[0]
        return f"<!-- {found[1]} -->{made}{END}"

    return MARKED.sub(content, (DOCS / page).read_text(encoding="utf-8"))


def differences(old: str, new: str) -> list[str]:
    """Lines that do not say the same."""
    before, after = old.splitlines(), new.splitlines()
    if len(before) != len(after):
        return [f"{len(before)} lines, not {len(after)}"]
    return [f"{a!r} is now {b!r}" for a, b in zip(before, after, strict=True) if not _alike(a.split(), b.split())]


def _alike(old: list[str], new: list[str]) -> bool:
    """The same words; numbers to within a half, and errors of the size of rounding whatever they are."""
    return len(old) == len(new) and all(a == b or _near(a, b) for a, b in zip(old, new, strict=True))


def _near(old: str, new: str) -> bool:
    def value(word: Any) -> float:
        try:
            return float(word.strip("(),;"))
        except ValueError:
            return math.nan

    a, b = value(old), value(new)
    return abs(a - b) <= max(0.5 * abs(b), 1e-5)


def main() -> int:
    """Write the pages anew."""
    for page in PAGES:
        (DOCS / page).write_text(renewed(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
