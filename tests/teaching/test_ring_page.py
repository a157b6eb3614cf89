"""The interactive page of the ring, in a real browser: every hop, every number, every switch, every key."""

import json
import re
import shutil

import jsonschema
import pytest
from pages import WORLDS, box, click, siglip_ring, text, violations

from mpi.trace import SCHEMA

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")


def counters(page):
    """Of the stage, as numbers: now and in the end."""
    script = """Object.fromEntries([...document.querySelectorAll('#stage .counters div')].map(
        ({children: [a, b]}) => [a.innerText, b.innerText.replaceAll(',', '').match(/\\d+/g).map(Number)]))"""
    return page.run(script)


def test_it_stands_alone(folder):
    content = (folder / "ring-page.html").read_text(encoding="utf-8")
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", content, flags=re.DOTALL)
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|\bon[a-z]+=|url\(|@import", markup)
    links = set(re.findall(r'href="([^"]*)"', markup))
    assert "#story" in links and all(f'id="{link[1:]}"' in markup for link in links)
    assert len(content) < 400_000
    content = content.replace('"https://ui.perfetto.dev"', "")  # the address of a button, asked only when it is pressed
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
        exact = float(page.run("document.querySelector('#stage .total output').dataset.exact"))
        assert abs(exact - blocks / (2 * world)) <= 1e-12 * blocks
        assert text(page, "#stage .total output") == f"{exact:.4f}"
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
    assert "parts from ranks 1 and 0" in text(page, "#stage .inspect")
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
    found = [[int(n.replace(",", "")) for n in re.findall(r"(?:of|at most) ([\d,]+)", card)] for card in cards]
    chunk, sent = 2 * 3 * 8, 2 * (world - 1)
    logits = world * 2 * 2 * (8 + 1)
    assert found == [
        [sent, sent, sent * chunk, 2 * (world - 1) * chunk],
        [sent, sent, sent * chunk, (world - 1) * chunk + logits],
        [world, sent, sent * chunk, 2 * chunk],
    ]
    assert all("done: loss" in card for card in cards)


def test_break_it_shows_the_checkers_words(page, data):
    for broken in data["breaks"]:
        click(page, f"#switch input[value='{broken['name']}']")
        words = text(page, "#broken")
        for part in (broken["diagnosis"], broken["evidence"], broken["repair"], broken["here"], broken["old"]):
            assert part in words
        assert page.run("document.querySelector('#broken').dataset.diagnosis") == broken["diagnosis"]
        assert page.run("document.querySelectorAll('#broken .owners .bad').length") > 0
        assert broken["verdict"] == ("OTHER CONVENTION" if broken["name"] == "ddp" else "FAIL")
        assert "explains 100%" in broken["evidence"] or broken["name"] == "ddp"
    assert {broken["name"]: broken["diagnosis"] for broken in data["breaks"]} == {
        "forget": "ring-hop-missing",
        "reuse": "ring-hop-repeated",
        "early": "ring-received-buffer-zero",
        "twice": "ring-own-block-double-counted",
        "average": "derived",
        "astray": "text-grad-to-wrong-rank",
        "positives": "remote-diagonal-as-positive",
        "local": "derived",
        "race": "ring-hop-repeated",
        "ddp": "convention",
    }
    local = next(b for b in data["breaks"] if b["name"] == "local")
    assert "W times the right one" in local["evidence"] and local["repair"].endswith("by 1/W")


# what stands in the wrong blocks, the first hop at which one is wrong, and whether the loss is right
HARM = {
    "forget": (["never computed"] * 4, 3, False),
    "reuse": ([r"with texts \d"] * 4, 3, False),
    "early": (["with zeros"] * 4, 1, False),
    "twice": (["computed twice"] * 4, 0, False),
    "average": ([], 4, True),
    "astray": ([], 4, True),
    "positives": (["wrong matches"] * 12, 1, False),
    "local": ([], 4, False),
    "race": ([r"with texts \d"] * 8, 1, False),
    "ddp": ([], 4, True),
}


def test_a_broken_ring_steps_beside_the_right_one_and_shows_where(page, data):
    assert list(HARM) == [broken["name"] for broken in data["breaks"]]
    marks = "[...document.querySelectorAll('#broken .broken .block.wrong small')].map((node) => node.innerText)"
    for name, (words, first, right) in HARM.items():
        click(page, f"#switch input[value='{name}']")
        found = page.run(marks)
        assert len(found) == len(words) and all(map(re.fullmatch, words, found)), (name, found)
        assert page.run("document.querySelectorAll('#broken .right .block.wrong').length") == 0
        assert (page.run("document.querySelector('#broken .total small').className") == "good") == right
        for hop in range(5):
            page.run(f"breaking.at({hop})")
            assert bool(page.run(marks)) == (bool(words) and hop >= first), (name, hop)
            assert ("bad" in page.run("document.querySelector('#broken .where').className")) == (hop >= first)
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
    for _ in range(130):
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


def test_perfetto_is_given_what_the_command_writes(page, tmp_path):
    siglip_ring("trace", tmp_path, "--threads", 3, "--pairs", 6)
    page.choose_file("#trace-file", tmp_path / "trace.json")
    page.wait("!document.querySelector('#own').hidden")
    ours = page.run("asPerfetto(ownStage.state.run)")["traceEvents"]
    theirs = json.loads((tmp_path / "perfetto.json").read_text())["traceEvents"]

    def told(events):
        return [{key: value for key, value in event.items() if key not in ("id", "ts", "dur")} for event in events]

    assert told(ours) == told(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert all(abs(a[key] - b[key]) < 1e-3 for key in ("ts", "dur") if key in b)
    arrows = [[event["id"] for event in events if event["ph"] in "sf"] for events in (ours, theirs)]
    names = dict(zip(arrows[0], arrows[1], strict=True))
    assert [names[one] for one in arrows[0]] == arrows[1] and len(set(names.values())) == len(names)
    page.run("window.open = (address) => { window.opened = address; return null; }")
    click(page, "#perfetto")
    assert page.run("window.opened") == "https://ui.perfetto.dev"


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


LOOKS = [
    (1280, 800, "light"),
    (1280, 800, "dark"),
    (390, 844, "light"),
    (390, 844, "dark"),
    (768, 1024, "light"),
    (1920, 1080, "dark"),
]


@pytest.mark.parametrize("width, height, scheme", LOOKS)
@pytest.mark.sampled(2, in_turn=True)
def test_accessibility(browser, folder, width, height, scheme):
    """axe-core finds nothing, with a mistake shown and an answer given; nothing is wider than the screen."""
    motion = {"prefers_reduced_motion": "reduce", "prefers_color_scheme": scheme}
    for name in ("ring-page.html", "ring-handout.html"):
        page = browser.page((folder / name).as_uri(), width, height, **motion)
        if name == "ring-page.html":
            page.run(
                f"document.querySelector('#stage input[value=\"{8 if width == 1920 else 4}\"]').click(); main.go(3)"
            )
            click(page, "#switch input[value='forget']")
            click(page, "#time input[value='softmax ring']")
            page.run(
                "document.querySelectorAll('.predict button').forEach((button) => button.disabled || button.click())"
            )
        assert violations(page) == []
        wide = page.run("document.documentElement.scrollWidth")
        assert name != "ring-page.html" or wide <= width
        page.close()


@pytest.mark.parametrize("width, height", [(1280, 720), (1920, 1080)])
def test_the_lecture_view(browser, folder, width, height):
    """Everything is on the screen, with the question of the section; and axe-core finds nothing."""
    page = browser.page(
        (folder / "ring-page.html").as_uri() + "#W=4&hop=2&present", width, height, prefers_reduced_motion="reduce"
    )
    page.run("1")
    assert page.run("main.state.step") == 2
    question = ".predict[data-question=holds]"
    for selector in ("#stage .ring", "#stage .matrix", "#stage .counters", "#stage .total output", question):
        left, right, top, bottom, wide = box(page, selector)
        assert wide > 0 and left >= 0 and right <= width + 1 and top >= 0 and bottom <= height + 1, selector
    assert page.run("document.querySelectorAll('#story section.here').length") == 1
    assert violations(page) == []
    assert page.complaints() == []
    page.close()


def test_the_axe_sees_what_it_is_for(browser, folder):
    page = browser.page((folder / "ring-page.html").as_uri())
    page.run("document.querySelector('.lead').style.color = '#eee'; document.documentElement.lang = ''")
    found = {words.split()[0] for words in violations(page)}
    assert {"color-contrast", "html-has-lang"} <= found
    page.close()


def test_the_handout_is_one_page(folder):
    pdf = (folder / "ring-handout.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
