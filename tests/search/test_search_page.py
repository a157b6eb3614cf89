"""The page says what the benchmarks measured."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import search_page


def test_the_page_says_what_was_measured():
    assert search_page.PAGE.read_text(encoding="utf-8") == search_page.page(), "python tools/search_page.py"
    assert "OTHER BYTES" not in search_page.text() and "WRONG" not in search_page.text()
