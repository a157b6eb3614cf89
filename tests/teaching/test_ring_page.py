"""The interactive page of the ring, in a real browser: every hop, every number, every switch, every key."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
from chromium import Browser

from mpi.trace import SCHEMA

ROOT = Path(__file__).parents[2]
WORLDS = (2, 3, 4, 8)
pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")


def siglip_ring(*arguments):
    """What the command prints."""
    command = [sys.executable, "-c", "import siglip_ring; siglip_ring.main()", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages were built."""
    folder = tmp_path_factory.mktemp("page")
    subprocess.run([sys.executable, str(ROOT / "tools" / "ring_page.py"), str(folder)], check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    """What the page was built from."""
    text = (folder / "ring-page.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, folder):
    """The page, fresh; in the end the console must be silent and nothing asked of a network."""
    page = browser.page((folder / "ring-page.html").as_uri(), prefers_reduced_motion="reduce")
    page.run(SETTLED)
    yield page
    assert page.complaints() == []
    page.close()


# The story sets the stage when the browser first tells it what is in view; a test that is quicker would be undone.
SETTLED = """new Promise((settled) => new IntersectionObserver(
    () => requestAnimationFrame(() => requestAnimationFrame(settled))).observe(document.body)).then(() => true)"""


def text(page, selector):
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def click(page, selector):
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def counters(page):
    """Of the stage, as numbers: now and in the end."""
    script = """Object.fromEntries([...document.querySelectorAll('#stage .counters div')].map(
        ({children: [a, b]}) => [a.innerText, b.innerText.replaceAll(',', '').match(/\\d+/g).map(Number)]))"""
    return page.run(script)


def test_it_stands_alone(folder):
    content = (folder / "ring-page.html").read_text(encoding="utf-8")
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", content, flags=re.DOTALL)
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|\bon[a-z]+=|url\(|@import", markup)
    assert set(re.findall(r'href="([^"]*)"', markup)) == {"#story"}
    assert not re.search(r"https?://", re.sub(r'http://www\.w3\.org/2000/svg|"https?://json-schema[^"]*"', "", content))


def test_its_traces_are_real(data):
    for scheme, runs in data["runs"].items():
        for world, trace in runs.items():
            jsonschema.validate(trace, SCHEMA)
            assert (trace["scheme"], trace["sizes"]) == (scheme, [2] * int(world))


@pytest.mark.parametrize("world", WORLDS)
def test_all_hops(page, data, world):
    """Every step has what the trace says, and the total at the end is the loss of the trace and of the command."""
    trace = data["runs"]["blocking"][str(world)]
    events = [dict(zip(trace["columns"], row, strict=True)) for row in trace["events"]]
    click(page, f"#stage input[value='{world}']")
    page.run("main.go(-1)")
    for hop in range(world + 1):
        page.press("ArrowRight")
        assert page.run("document.querySelector('#stage').dataset.step") == str(hop)
        assert ("Home." if hop == world else f"Hop {hop}.") in text(page, "#stage .caption")
        done = page.run("document.querySelectorAll('#stage .cell.done').length")
        assert done == sum(e["pairs"] for e in events if e["kind"] == "block" and e["hop"] <= hop)
        sends = [e for e in events if e["kind"] == "send" and e["hop"] <= hop and e["rank"] == 0]
        shown = counters(page)
        assert shown["messages"] == [len(sends), 2 * (world - 1)]
        assert shown["bytes sent"] == [sum(e["bytes"] for e in sends), 2 * (world - 1) * 2 * 3 * 8]
        assert shown["rounds"] == [hop, world]
        blocks = sum(e["loss"] for e in events if e["kind"] == "block" and e["hop"] <= hop)
        assert abs(float(text(page, "#stage .total output")) - blocks / (2 * world)) <= 1e-12 * blocks
        for chunk in range(world):
            label = page.run(f"document.querySelectorAll('#stage .chip')[{chunk}].getAttribute('aria-label')")
            place = f"gradient of texts {chunk}, home" if hop == world else f"on rank {(chunk - hop) % world}"
            assert place in label
    page.press("ArrowRight")
    printed = re.search(
        r"^loss +(\S+) =", siglip_ring("loss", "--threads", world, "--pairs", 2 * world, "--dim", 3), re.M
    )
    assert text(page, "#stage .total output") == printed[1] == f"{trace['loss']:.15g}"
    assert "equal to the trace, bit for bit" in text(page, "#stage .check")
    assert "the same in all 15 digits" in text(page, "#stage .check")
    sums = page.run(
        "[...document.querySelectorAll('#stage .sums tr.strong td')].map((td) => td.innerText.replace('\u2212', '-'))"
    )
    for shown, exact in zip(
        sums, (trace["loss"], *(trace["numbers"][n] for n in ("d_log_scale", "d_bias"))), strict=True
    ):
        assert abs(float(shown) - exact) <= 1e-12 * max(1, abs(exact))
    page.press("ArrowRight")  # there is nothing after the end
    assert page.run("main.state.step") == world + 1


def test_a_wrong_trace_is_not_called_right(page):
    """The total is compared, not painted green."""
    page.run("makeStage(document.querySelector('#own-stage'), replay({...DATA.runs.blocking[4], loss: 12.97})).go(99)")
    assert "NOT the loss of the trace" in page.run("document.querySelector('#own-stage .check').textContent")


def test_cells_show_how_their_number_is_made(page, data):
    numbers = data["runs"]["blocking"]["4"]["numbers"]
    page.run("main.go(5); document.querySelectorAll('#stage .cell')[8 * 3 + 6].click()")
    similarity = sum(x * y for x, y in zip(numbers["images"][3], numbers["texts"][6], strict=True))
    words = text(page, "#stage .inspect").replace("\u2212", "-")
    assert "Image 3 and text 6" in words and f"{similarity:.4f}" in words
    for view in ("similarity", "logit", "probability", "gradient", "loss"):
        click(page, f"#stage input[value='{view}']")
        assert view in page.run("document.querySelectorAll('#stage .cell')[30].getAttribute('aria-label')")


def test_a_travelling_gradient_is_shown_number_by_number(page):
    page.run("main.go(2); document.querySelectorAll('#stage .chip')[2].click()")
    assert "answers of ranks 1 and 0" in text(page, "#stage .inspect")
    assert page.run("document.querySelectorAll('#stage .inspect td').length") == 2 * 3


def test_scrolling_alone_tells_the_story(page):
    steps = []
    for number in range(7):
        page.run(f"document.querySelectorAll('#story section')[{number}].scrollIntoView({{block: 'center'}})")
        page.wait(f"document.querySelectorAll('#story section')[{number}].classList.contains('active')")
        steps.append(page.run("main.state.step"))
    assert steps == [-1, 0, 1, 2, 3, 4, 5]


def test_without_scripts_the_pictures_tell_it(browser, folder):
    page = browser.page("about:blank")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.call("Page.navigate", url=(folder / "ring-page.html").as_uri())
    count = (
        "[...document.querySelectorAll('.frame svg')].filter((svg) => svg.getBoundingClientRect().height > 100).length"
    )
    page.wait(f"{count} === 5")
    assert page.run("document.documentElement.className") == ""
    page.close()


def test_predictions(page):
    right = {"holds": "texts 1", "moves": "only gradients", "sums": "three numbers", "double": "14 messages"}
    right["bytes"] = "it sends the same bytes"
    for question, answer in right.items():
        box = f".predict[data-question='{question}']"
        assert page.run(f'document.querySelector("{box} details").hidden')
        page.run(f"[...document.querySelectorAll(\"{box} button\")].find((b) => b.innerText === '{answer}').click()")
        assert "Yes" in text(page, f"{box} .said")
        assert not page.run(f'document.querySelector("{box} details").hidden')


def test_a_wrong_prediction_is_told_the_right_answer(page):
    page.run("document.querySelector('.predict[data-question=holds] button').click()")
    assert "No: texts 1" in text(page, ".predict[data-question=holds] .said")


@pytest.mark.parametrize("world", WORLDS)
def test_three_schemes(page, world):
    click(page, f"#schemes input[value='{world}']")
    page.run("sideStep(99)")
    cards = page.run("[...document.querySelectorAll('#schemes article')].map((card) => card.innerText)")
    found = [[int(n.replace(",", "")) for n in re.findall(r"(?:of|peak) ([\d,]+)", card)] for card in cards]
    chunk, sent = 2 * 3 * 8, 2 * (world - 1)
    logits = world * 2 * 2 * (8 + 1)
    assert found == [
        [sent, sent, sent * chunk, 2 * (world - 1) * chunk],
        [sent, sent, sent * chunk, (world - 1) * chunk + logits],
        [world, sent, sent * chunk, 2 * chunk],
    ]
    assert all("done: loss" in card for card in cards)


def test_break_it_shows_the_checkers_words(page, data):
    right = page.run("document.querySelector('#broken output').innerText")
    for broken in data["breaks"]:
        click(page, f"#switch input[value='{broken['name']}']")
        words = text(page, "#broken")
        for part in (broken["diagnosis"], broken["evidence"], broken["repair"], broken["old"]):
            assert part in words
        assert page.run("document.querySelector('#broken').dataset.diagnosis") == broken["diagnosis"]
        assert page.run("document.querySelectorAll('#broken .owners .bad').length") > 0
    named = {broken["name"]: broken["diagnosis"] for broken in data["breaks"]}
    assert {name: named[name] for name in ("forget", "reuse", "twice", "average")} == {
        "forget": "ring-hop-missing",
        "reuse": "ring-hop-repeated",
        "twice": "ring-own-block-double-counted",
        "average": "gather-own-slot-one-over-w",
    }
    wrong = {"forget": ["never met"] * 4, "reuse": 4, "early": ["met zeros"] * 4, "twice": ["met twice"] * 4}
    for name, marks in {**wrong, "average": [], "astray": []}.items():
        click(page, f"#switch input[value='{name}']")
        found = page.run("[...document.querySelectorAll('#broken .block.wrong small')].map((node) => node.innerText)")
        assert (
            (len(found) == marks and all(re.match(r"met texts \d", word) for word in found))
            if marks == 4
            else found == marks
        )
        assert (page.run("document.querySelector('#broken output').innerText") == right) == (
            name in ("average", "astray")
        )
    click(page, "#switch input[value='none']")
    assert page.run("document.querySelectorAll('#broken .bad, #broken .wrong').length") == 0


def test_keyboard(page):
    page.run("main.go(0)")
    for key, step in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("PageDown", 1)):
        if key != "PageDown":  # which scrolls, but in a presentation goes on
            page.press(key)
        assert page.run("main.state.step") == step
    page.press("8")
    assert page.run("main.state.run.world") == 8
    page.run("document.querySelector('#stage .cell').focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("image 1, text 1, a match")
    assert page.run("main.state.step") == 1  # inside the matrix arrows do not turn the ring
    page.run("document.activeElement.blur()")
    page.press("p")
    assert page.run("document.documentElement.classList.contains('present')")
    page.press("PageDown")
    assert page.run("main.state.step") == 2
    page.press("Escape")
    assert not page.run("document.documentElement.classList.contains('present')")


def test_every_control_is_reached_with_tab(page):
    page.run("document.body.focus()")
    reached = set()
    for _ in range(90):
        page.press("Tab")
        reached.add(
            page.run("(({id, className, ariaLabel}) => `${id || className || ariaLabel}`)(document.activeElement)")
        )
    assert {"theme", "present", "side-range", "trace-file"} <= reached and any("cell" in name for name in reached)


def test_play(page):
    page.run("main.go(-1); main.toggle()")
    page.wait("main.state.step >= 0", limit=10)
    page.run("main.toggle(false)")


OWN = (
    ("blocking", ["--threads", 3, "--pairs", 15, "--unequal"]),
    ("overlapped", ["--threads", 4, "--pairs", 8]),
    ("bidirectional", ["--threads", 4, "--pairs", 16]),
    ("autograd-like", ["--threads", 3, "--pairs", 7]),
    ("allgather", ["--threads", 2, "--pairs", 4]),
    ("masked-allreduce", ["--threads", 3, "--pairs", 6]),
    ("blocking", ["--threads", 1, "--pairs", 4]),
    ("blocking", ["--threads", 6, "--pairs", 200]),
)


@pytest.mark.parametrize(
    "scheme, arguments", OWN, ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value))
)
def test_a_readers_own_trace(page, tmp_path, scheme, arguments):
    siglip_ring("trace", tmp_path, "--scheme", scheme, *arguments)
    trace = json.loads((tmp_path / "trace.json").read_text())
    page.choose_file("#trace-file", tmp_path / "trace.json")
    page.wait("!document.querySelector('#own').hidden || !document.querySelector('#trace-error').hidden")
    assert text(page, "#trace-error") == ""
    assert f"scheme {scheme}, " in text(page, "#trace-told") and "every gradient came home" in text(page, "#trace-told")
    page.run("ownStage.go(99)")
    assert page.run("document.querySelectorAll('#own-stage .cell.empty').length") == 0
    assert abs(float(text(page, "#own-stage .total output")) - trace["loss"]) <= 1e-13 * trace["loss"]
    assert "equal to the trace" in text(page, "#own-stage .check")
    for step in range(-1, page.run("ownStage.state.run.last") + 1):
        page.run(f"ownStage.go({step})")
        assert len(text(page, "#own-stage .caption")) > 20


def test_a_trace_that_is_not_whole_is_told_so(page, data, tmp_path):
    trace = json.loads(json.dumps(data["runs"]["blocking"]["4"]))
    lost = next(row for row in trace["events"] if row[1:3] == ["recv", "gradient"] and row[0] == row[3])
    trace["events"].remove(lost)
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    page.choose_file("#trace-file", tmp_path / "trace.json")
    page.wait("!document.querySelector('#own').hidden")
    assert f"the gradient of chunk {lost[3]} never came home" in text(page, "#trace-told")


def spoiled(trace, **changes):
    return json.dumps(trace | changes)


BAD = {
    "not JSON": (lambda t: "{", "not JSON"),
    "a list": (lambda t: "[]", "no trace"),
    "for Perfetto": (lambda t: '{"traceEvents": []}', "perfetto.json"),
    "another format": (lambda t: spoiled(t, format="x/2"), "siglip-ring-trace/1"),
    "no ranks": (lambda t: spoiled(t, sizes=[]), "pairs of every rank"),
    "too many ranks": (lambda t: spoiled(t, sizes=[1] * 64), "32 ranks at most"),
    "a rank too many": (lambda t: spoiled(t, events=[*t["events"], [9, *t["events"][0][1:]]]), "of a rank below 4"),
    "a short event": (lambda t: spoiled(t, events=[[0]]), "event 0 to have 11 values"),
    "another kind": (lambda t: spoiled(t, events=[[0, "dance", *t["events"][0][2:]]]), '"dance"'),
    "a loss in words": (lambda t: spoiled(t, loss="<b>one</b>"), "<b>one</b>"),
    "numbers of another batch": (lambda t: spoiled(t, numbers=t["numbers"] | {"images": [[1]]}), "8 rows of 3 numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_trace_gets_a_clear_message(page, data, tmp_path, name):
    spoil, message = BAD[name]
    (tmp_path / "trace.json").write_text(spoil(data["runs"]["blocking"]["4"]))
    page.choose_file("#trace-file", tmp_path / "trace.json")
    page.wait("!document.querySelector('#trace-error').hidden")
    assert message in text(page, "#trace-error")
    assert page.run("document.querySelector('#own').hidden && !document.querySelector('#trace-error b')")


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser, folder, width, height, scheme):
    """axe-core finds nothing, with a mistake shown and an answer given."""
    axe = Path(next(iter(find_spec("axe_playwright_python").submodule_search_locations))) / "axe.min.js"
    motion = {"prefers_reduced_motion": "reduce", "prefers_color_scheme": scheme}
    for name in ("ring-page.html", "ring-handout.html"):
        page = browser.page((folder / name).as_uri(), width, height, **motion)
        if name == "ring-page.html":
            page.run("main.go(3)")
            click(page, "#switch input[value='forget']")
            page.run(
                "document.querySelectorAll('.predict button').forEach((button) => button.disabled || button.click())"
            )
        page.run(axe.read_text(encoding="utf-8") + "; 0")
        found = page.run(
            "axe.run().then((r) => r.violations.map((v) => [v.id, ...v.nodes.map((n) => n.html)].join(' ')))"
        )
        assert found == []
        wide = page.run("document.documentElement.scrollWidth")
        assert name != "ring-page.html" or wide <= width
        page.close()


def test_the_axe_sees_what_it_is_for(browser, folder):
    axe = Path(next(iter(find_spec("axe_playwright_python").submodule_search_locations))) / "axe.min.js"
    page = browser.page((folder / "ring-page.html").as_uri())
    page.run("document.querySelector('.lead').style.color = '#eee'; document.documentElement.lang = ''")
    page.run(axe.read_text(encoding="utf-8") + "; 0")
    found = set(page.run("axe.run().then((r) => r.violations.map((v) => v.id))"))
    assert {"color-contrast", "html-has-lang"} <= found
    page.close()


def test_the_handout_is_one_page(folder):
    pdf = (folder / "ring-handout.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
