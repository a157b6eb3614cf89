"""What a look at the pages found cut or covered: numbers, words, columns, the ring behind a question."""

import shutil

import pytest
from pages import SETTLED, box, click

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")

CUT = """(selector) => [...document.querySelectorAll(selector)]
    .filter((node) => node.scrollWidth > node.clientWidth + 1).map((node) => node.textContent)"""


@pytest.fixture
def shown(browser, folder):
    """Open the page of the ring at a width, with an address."""
    opened = []

    def show(width, height=800, address=""):
        url = (folder / "ring-page.html").as_uri() + address
        opened.append(browser.page(url, width, height, prefers_reduced_motion="reduce"))
        opened[-1].run(SETTLED)
        return opened[-1]

    yield show
    for page in opened:
        assert page.complaints() == []
        page.close()


@pytest.mark.parametrize("view", ["loss", "similarity", "logit", "probability", "gradient"])
def test_numbers_fit_their_cells(shown, view):
    for world in (2, 3, 4, 8):
        page = shown(1280, address=f"#W={world}&hop={world + 1}&view={view}")
        assert page.run(f"({CUT})('#stage .cell')") == []


@pytest.mark.parametrize("width", [390, 768, 1100, 1280])
def test_words_fit_their_blocks(shown, width):
    page = shown(width)
    for name in ("forget", "twice", "positives", "race"):
        click(page, f"#switch input[value='{name}']")
        assert page.run(f"({CUT})('#broken .block, #broken .block small')") == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_table_of_divisors_is_seen_whole(shown, width):
    assert shown(width).run(f"({CUT})('#ddp .wide')") == []


@pytest.mark.parametrize("width, height", [(1280, 720), (1920, 1080)])
def test_an_answer_in_the_hall_covers_nothing(shown, width, height):
    for hop in (2, 3, 4, 5):
        page = shown(width, height, f"#W=4&hop={hop}&present")
        page.run("document.querySelector('#story .here .predict button').click()")
        top = box(page, "#story .here")[2]
        assert top >= max(box(page, f"#stage {part}")[3] for part in (".matrix", ".ring")) - 1
        assert box(page, "#stage .inspect > *")[1] <= width
        assert page.run("document.querySelector('.sums')?.getBoundingClientRect().right ?? 0") <= width


def test_the_lecture_view_can_be_left_by_touch(shown):
    page = shown(390, 844, "#present")
    at = "(({left, top}) => document.elementFromPoint(left + 5, top + 5).id)"
    assert page.run(f"{at}(document.querySelector('#leave').getBoundingClientRect())") == "leave"
