"""The page that plays with the loss: every number is the reference's; it works with keys, on a phone, in the dark."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from pages import click, slide, text, violations

import siglip_ref as sr
from mpi.batch import Job, make_batch
from mpi.comm import ThreadComm
from mpi.softmax import ring_softmax_loss

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")


@pytest.fixture
def played(browser, folder):
    """The page, fresh; silent in the end, and nothing asked of a network."""
    page = browser.page((folder / "loss-page.html").as_uri(), prefers_reduced_motion="reduce")
    yield page
    assert page.complaints() == []
    page.close()


@pytest.fixture(scope="module")
def held(folder):
    """What the page was built from."""
    content = (folder / "loss-page.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)[1])


def exact(page, selector):
    return float(page.run(f"document.querySelector({json.dumps(selector)}).dataset.exact"))


def test_it_stands_alone(folder):
    content = (folder / "loss-page.html").read_text(encoding="utf-8")
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", content, flags=re.DOTALL)
    assert not re.search(r"<(link|img|iframe|object)\b|\bsrc=|\bhref=|\bon[a-z]+=|url\(|@import", markup)
    assert len(content) < 400_000


def test_its_pairs_are_the_toys(held):
    images, texts = make_batch(Job(12, 8, "blocking"), 12)
    assert held["images"] == images.tolist() and held["texts"] == texts.tolist()


@pytest.mark.parametrize("pairs, scale, bias", [(2, 1, 0.0), (8, 10, -10.0), (12, 110, -16.5)])
def test_the_loss_and_all_gradients_are_the_references(played, held, pairs, scale, bias):
    x, y = (np.array(held[name][:pairs]) for name in ("images", "texts"))
    right = sr.sigmoid_loss(x, y, math.log(scale), bias)
    found = played.run(
        f"sigmoidLoss(DATA.images.slice(0, {pairs}), DATA.texts.slice(0, {pairs}), Math.log({scale}), {bias})"
    )
    names = {
        "loss": "loss",
        "dImages": "d_image_embed",
        "dTexts": "d_text_embed",
        "dLogScale": "d_log_scale",
        "dBias": "d_bias",
    }
    for ours, theirs in names.items():
        b = getattr(right, theirs)
        assert np.abs(np.array(found[ours]) - b).max() <= 1e-14 * np.abs(b).max(), ours
    softmax = ThreadComm.run(1, lambda comm: ring_softmax_loss(comm, x, y, math.log(scale), [pairs]))[0]
    ours = played.run(
        f"softmaxLoss(DATA.images.slice(0, {pairs}), DATA.texts.slice(0, {pairs}), Math.log({scale})).loss"
    )
    assert abs(ours - softmax.loss) <= 1e-13 * max(1, softmax.loss)


def test_sliders_move_what_is_shown(played, held):
    for key, value in (("pairs", 11), ("scale", 30), ("bias", -4.5), ("trained", 0.25)):
        slide(played, f"#slider-{key}", value)
    x = np.array(held["images"][:11])
    y = 0.75 * np.array(held["texts"][:11]) + 0.25 * x
    right = sr.sigmoid_loss(x, y / np.linalg.norm(y, axis=1, keepdims=True), math.log(30), -4.5)
    assert abs(exact(played, "[data-loss='sigmoid loss']") - right.loss) <= 1e-14 * right.loss
    assert abs(exact(played, "[data-loss='fresh model, sigmoid']") - sr.expected_loss(11, 0.0, -4.5)) <= 1e-13
    push, pull = exact(played, "#push"), exact(played, "#pull")
    assert abs(push - pull - right.d_bias) <= 1e-13
    assert "bias / scale = 0.150" in text(played, "#boundary-words")
    assert played.run("document.querySelectorAll('#boundary circle').length") == 11 * 11


def test_what_must_be_known_first(played):
    for mode, cells in (("softmax", 15), ("sigmoid", 1)):
        click(played, f"#play input[value='{mode}']")
        assert played.run("document.querySelectorAll('.one.needed').length") == cells
        assert f"{cells} cell" in text(played, "#play .told")
    played.run("document.querySelector('.one[tabindex=\"0\"]').focus()")
    played.press("ArrowRight")
    played.press("ArrowDown")
    assert played.run("document.activeElement.getAttribute('aria-label')").startswith("image 3, text 6")


@pytest.mark.parametrize("power, bias", [(15, -10.0), (15, 0.0), (20, -3.5)])
def test_a_fresh_model(played, power, bias):
    slide(played, "#fresh-power", power)
    slide(played, "#fresh-bias", bias)
    right = sr.expected_loss(2**power, math.log(10), bias)
    assert abs(exact(played, "#fresh-loss") - right) <= 1e-14 * right


def learned(data, rate, bias, steps):
    """The same training, on the reference's gradients."""
    inputs = [np.array(data["images"]), np.array(data["texts"])]
    kernels = [np.array(data["kernels"]["image"]), np.array(data["kernels"]["text"])]
    log_scale = math.log(10)
    for step in range(steps + 1):
        raw = [rows @ kernel for rows, kernel in zip(inputs, kernels, strict=True)]
        length = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in raw]
        unit = [rows / n for rows, n in zip(raw, length, strict=True)]
        found = sr.sigmoid_loss(*unit, log_scale, bias)
        if step == steps:
            return found.loss, float(np.trace(unit[0] @ unit[1].T)) / len(raw[0]), math.exp(log_scale), bias
        for k, d_unit in enumerate((found.d_image_embed, found.d_text_embed)):
            d_raw = (d_unit - unit[k] * (unit[k] * d_unit).sum(1, keepdims=True)) / length[k]
            kernels[k] = kernels[k] - rate * inputs[k].T @ d_raw
        log_scale, bias = log_scale - rate * float(found.d_log_scale), bias - rate * float(found.d_bias)


def test_the_training_is_that_of_the_references_gradients(played, held):
    """Step by step the same as with `sr.sigmoid_loss`; at bias 0 it collapses, at -10 it learns."""
    click(played, "#train")
    played.wait("!document.querySelector('#train').disabled", limit=120)
    last = {}
    for bias in ("0", "-10"):
        row = f"#training tr[data-bias='{bias}']"
        shown = played.run(f'[...document.querySelectorAll("{row} td[data-exact]")].map((cell) => +cell.dataset.exact)')
        loss, matching, others, scale, now = shown
        right = learned(held["training"], held["rate"], float(bias), 200)
        for ours, theirs in zip((loss, matching, scale, now), right, strict=True):
            assert abs(ours - theirs) <= 1e-9 * abs(theirs)
        last[bias] = loss, matching - others
    assert last["0"][1] < 0.05 and last["-10"][1] > 0.5 and last["-10"][0] < 0.5 * last["0"][0]


def test_predictions(played):
    for question, answer in {"known": "15 cells", "fresh": "about 10", "collapse": "bias 0 collapses"}.items():
        box = f".predict[data-question='{question}']"
        played.run(f"[...document.querySelectorAll(\"{box} button\")].find((b) => b.innerText === '{answer}').click()")
        assert "Yes" in text(played, f"{box} .said")


LOOKS = [(1280, 800, "light"), (1280, 800, "dark"), (390, 844, "dark"), (768, 1024, "light"), (1920, 1080, "light")]


@pytest.mark.parametrize("width, height, scheme", LOOKS)
@pytest.mark.sampled(2)
def test_accessibility(browser, folder, width, height, scheme):
    motion = {"prefers_reduced_motion": "reduce", "prefers_color_scheme": scheme}
    page = browser.page((folder / "loss-page.html").as_uri(), width, height, **motion)
    click(page, "#play input[value='softmax']")
    page.run("document.querySelectorAll('.predict button').forEach((button) => button.disabled || button.click())")
    assert violations(page) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    page.close()
