"""Write into the pages what commands, reports and their own Python blocks print: nobody types it.

`python tools/page_samples.py` rewrites what stands between the markers; `tests/docs/test_page_samples.py` holds the
pages to it: every word, and numbers but for what differs between processors.
"""

import contextlib
import io
import math
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ring_breaks
from ring_page import command, toy

import siglip_ref as sr
from siglip_ref.report.data import Report
from siglip_ref.report.text import to_text

DOCS = Path(__file__).parent.parent / "docs"
END = "<!-- end -->"
WIDTH = 110  # columns of a report
PYTHON = re.compile(r"^```(?:python|\{code-cell\} python)\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = "output"  # of the Python block before it
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
    rows = ["| pairs in the global batch | bias -10 | bias -log(B - 1) | bias 0 |", "|---:|---:|---:|---:|"]
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


# page -> marker -> what stands there; tables are the page's own text, everything else is a block
SAMPLES: dict[str, dict[str, Callable[[], str]]] = {
    "ring.md": {"ring-output": ring_output},
    "how-the-report-knows.md": {
        "matrices": matrices,
        "computes": lambda: section("astray", "what it computes"),
    },
    "is-my-loss-normal.md": {"losses": losses, "scores": scores},
    "quick-start.md": {},
}
PROGRAMS = (
    "quick-start.md",
    "how-the-report-knows.md",
)  # pages whose Python blocks are run, and what they print shown behind them


def printed(page: str) -> list[str]:
    """What the page's Python blocks print, one after the other in one program, where an output follows them."""
    text, place, found = (DOCS / page).read_text(encoding="utf-8"), {"__name__": "__main__"}, []
    for block in PYTHON.finditer(text):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(compile(block[1], page, "exec"), place)
        if text[block.end() :].lstrip().startswith(f"<!-- {OUTPUT} -->"):
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


def made(page: str) -> list[tuple[str, str]]:
    """Marker and content of everything generated on a page, in no order between markers."""
    named = [(name, make()) for name, make in SAMPLES[page].items()]
    return named + [(OUTPUT, text) for text in (printed(page) if page in PROGRAMS else [])]


def framed(text: str) -> str:
    """Between the markers."""
    return f"\n\n{text}\n\n" if text.startswith("|") else f"\n```text\n{text}\n```\n"


def renewed(page: str) -> str:
    """The page with everything generated written anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    begun: dict[str, int] = {}
    for name, content in made(page):
        start = text.index(f"<!-- {name} -->", begun.get(name, 0)) + len(f"<!-- {name} -->")
        end = text.index(END, start)
        text = text[:start] + framed(content) + text[end:]
        begun[name] = start
    return text


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
    for page in SAMPLES:
        (DOCS / page).write_text(renewed(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
