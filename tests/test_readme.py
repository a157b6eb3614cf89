"""The README's numbers are those of the package."""

import math
import re
import subprocess
import sys
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


def test_where_a_page_is_filled_by_the_site_it_says_so() -> None:
    """On a hosting site a directive is a block with its content: what stands there, and how to read it without."""
    for place in sorted((ROOT / "docs" / "mistakes").glob("*.md")):
        for name, content in re.findall(r"^```{(\w+)}[^\n]*\n(.*?)^```$", place.read_text("utf-8"), re.M | re.DOTALL):
            assert name == "toctree" or "built site" in content, (place.name, name)
            assert name != "mistakes" or "siglip-ref explain" in content
    assert (
        "Only the site has the catalogue of mistakes" in README and "`siglip-ref explain` lists the mistakes" in README
    )


def test_the_example_of_zero_shot_needs_no_kernels_and_tells_its_labels_apart() -> None:
    """Its labels were once cut to the same text, so that all had one score."""
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / "zeroshot.py"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0 and "compiling" not in ran.stderr, ran.stderr
    rows = [re.findall(r"[a-z]+ ([\d.e-]+)(?:,|$)", line) for line in ran.stdout.splitlines()[:4]]
    assert all(len(set(row)) == 3 for row in rows), rows
