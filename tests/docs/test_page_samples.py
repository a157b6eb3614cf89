"""Every block of output in README and docs is generated, and is what is printed today; none is typed."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import page_samples
import picture

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", page_samples.PAGES)
def test_what_a_page_shows_is_what_is_printed(page):
    before = (page_samples.DOCS / page).read_text(encoding="utf-8")
    if "import torch\n" in before:
        pytest.importorskip("torch")  # a skip is a failure in CI
    assert page_samples.differences(before, page_samples.renewed(page)) == [], "python tools/page_samples.py"


def test_other_words_and_other_numbers_would_be_seen():
    line = "loss           8.9e-01  4.4e+06  1.2e-06  0.1111  1.0000  FAIL"
    assert not page_samples.differences(line, line.replace("1.2e-06", "1.4e-06"))
    for old, new in (("FAIL", "pass"), ("0.1111", "1.0000"), ("loss", "bias")):
        assert page_samples.differences(line, line.replace(old, new))
    assert page_samples.differences("a\nb", "a")


def test_the_picture_of_a_failing_check_is_what_the_demo_prints():
    def said(svg):
        return "\n".join(re.findall(r"<text[^>]*>(.*?)</text>", svg))

    kept = (ROOT / "docs" / "_static" / "failing-check.svg").read_text(encoding="utf-8")
    assert (
        page_samples.differences(said(kept).replace("&#160;", " "), said(picture.picture()).replace("&#160;", " "))
        == []
    )


# Blocks without a language, and of text: what is neither generated nor compared by a test is a drawing or a command.
BLOCK = re.compile(r"(<!-- [a-z-]+ -->\n)?^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(
    r"^(PASS|FAIL|NOT JUDGED|OTHER CONVENTION|loss +\d|d_|d |rank +\d|repair: |your loss)", re.MULTILINE
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_output_is_typed(page):
    """A block that looks like output has a marker before it: something writes it, or a test compares it."""
    for marker, language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        assert language not in ("", "text") or marker or not PRINTED.search(block), block
