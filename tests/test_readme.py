"""The README's numbers are those of the package."""

import math
import re
import tomllib
from pathlib import Path

import siglip_ref as sr
from siglip_ref.mistakes import CATALOGUE, census, recognised

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_table_of_expected_losses() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) >= 4
    for pairs, at_minus_ten, at_zero in rows:
        for printed, bias in ((at_minus_ten, -10.0), (at_zero, 0.0)):
            digits = len(printed.partition(".")[2])
            assert printed == f"{sr.expected_loss(int(pairs.replace(',', '')), math.log(10), bias):.{digits}f}"


def test_the_number_of_known_mistakes() -> None:
    assert f"It recognises {len(recognised())} known mistakes" in README
    assert f"{len(CATALOGUE)} entries: {len(recognised())} mistakes" in census()
    check = re.search(r"would have detected (\d+) of (\d+) known mistakes", README)
    assert check and f"**{check[2]} mistakes** are those that concern a model" in README
    assert f"Of the {check[2]}, {check[1]} moved some value outside its tolerance" in README


def test_the_version_of_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = project["requires-python"].removeprefix(">=")
    for page in (README, (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")):
        assert f"Python {least} or later" in page


def test_until_it_is_published_nobody_is_told_to_install_it_by_name() -> None:
    """`pip install siglip-ref` fails: a page names it only where it says so."""
    for place in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.html")]:
        for line in place.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"pip install \"?siglip-ref", line) or "fails" in line, (place.name, line)


def test_links_lead_to_files_that_are_there() -> None:
    """On GitHub nothing is built: what a page links to must be in the repository."""
    for place in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"^```.*?^```$", "", place.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)#\s]+)[^)\s]*\)|href=\"([^\"#]+)\"", text):
            target = link[0] or link[1]
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (place.parent / target).exists(), (place.name, target)
