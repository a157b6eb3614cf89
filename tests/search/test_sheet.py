"""The contact sheet in a browser: it asks for nothing, complains of nothing, is read by keyboard and by everybody."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from search_cases import make_model, run

sys.path.append(str(Path(__file__).parents[1] / "teaching"))
from chromium import Browser

from siglip_ref.errors import UsageError
from siglip_ref.use.search.sheet import LARGEST, Card, Section, sheet

NAMES = ["<script>alert(1)</script>.png", 'quote " & so.jpg', "a very " + "long " * 30 + "name.png", "plain.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sheet as the command makes it: wide and high photos, hostile names, one that is gone since."""
    folder = tmp_path_factory.mktemp("sheet")
    (folder / "photos" / "deep er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(14):
        rough = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        size = [(640, 400), (300, 700), (64, 64)][number % 3]
        name = NAMES[number].replace("/", "\u2215") if number < len(NAMES) else f"deep er/{number}.png"
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / "photos" / name)
    make_model(folder / "m")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not shutil.which("chromium"):
        pytest.skip("Chromium is not installed")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page_of(place, browser, capfd):
    if not (place / "sheet.html").exists():
        assert run(capfd, "index", place / "photos", "--model", place / "m")[0] == 0
        (place / "photos" / "deep er" / "13.png").unlink()
        words = ("search", place / "photos", "a red star", "--html", place / "sheet.html")
        assert run(capfd, *words)[0] == 0
    return lambda **media: browser.page((place / "sheet.html").as_uri(), **media)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_asked_for_or_wrong(width, scheme, page_of, place):
    axe = Path(next(iter(find_spec("axe_playwright_python").submodule_search_locations))) / "axe.min.js"
    page = page_of(width=width, prefers_color_scheme=scheme)
    assert page.run("document.querySelectorAll('ol a').length") == 14
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.run("document.images.length") == 13 and page.run("document.scripts.length") == 1
    page.run(axe.read_text(encoding="utf-8") + "; 0")
    found = page.run("axe.run().then((r) => r.violations.map((v) => [v.id, ...v.nodes.map((n) => n.html)].join(' ')))")
    assert found == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.complaints() == []
    page.picture(place / f"sheet-{width}-{scheme}.png", whole=True)
    page.close()


def test_the_keyboard(page_of):
    page = page_of()
    at = "[...document.querySelectorAll('ol a')].indexOf(document.activeElement)"
    columns = page.run("getComputedStyle(document.querySelector('ol')).gridTemplateColumns.split(' ').length")
    for key, where in (
        ("ArrowDown", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 1 + columns),
        ("ArrowUp", 1),
        ("ArrowLeft", 0),
        ("ArrowUp", 0),
        ("End", 13),
        ("ArrowRight", 13),
        ("Home", 0),
    ):
        page.press(key)
        assert page.run(at) == where, key
    assert page.run("document.activeElement.matches(':focus-visible')")
    assert page.complaints() == []
    page.close()


def test_the_schemes_differ(page_of, tmp_path):
    pictures = [page_of(prefers_color_scheme=s).picture(tmp_path / f"{s}.png").read_bytes() for s in ("light", "dark")]
    assert pictures[0] != pictures[1]


def test_names_are_text_and_bytes_of_a_name_do_no_harm(tmp_path):
    import os

    name = os.fsdecode(b"latin\xe9 <b>.png")
    text = "".join(sheet("<i>", ["<u>"], [Section("<h>", [Card(tmp_path / name, name, ["<v>"], 0.5)])]))
    assert "<b>" not in text and "<i>" not in text.split("<main>")[0] and "%E9" in text
    text.encode("utf-8")
    with pytest.raises(UsageError, match="at most"):
        list(sheet("", [], [Section("", [Card(tmp_path, "", [])] * (LARGEST + 1))]))
