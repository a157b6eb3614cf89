"""The search box over the catalogue finds a mistake by what people see of it."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = importlib.util.spec_from_file_location("symptoms", ROOT / "docs" / "_extensions" / "symptoms.py")
symptoms = importlib.util.module_from_spec(PLACE)
PLACE.loader.exec_module(symptoms)
sys.path.insert(0, str(ROOT / "tests" / "teaching"))

SEEN = {
    "loss 8 times too large on 8 GPUs": "remote-diagonal-as-positive",
    "gradients of the embeddings W times too large": "embed-grad-times-w",
    "mean over all pairs": "sum-vs-mean-vs-b2",
    "positives columns lack the offset of the rank": "label-rank-offset",
    "scale and bias different on every rank": "ddp-bypassed",
    "buffer never filled": "ring-received-buffer-zero",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if not shutil.which("chromium"):
        pytest.skip("Chromium is not installed")
    from chromium import Browser

    folder = tmp_path_factory.mktemp("symptoms")
    (folder / "index.html").write_text(f"<!doctype html><meta charset=utf-8>{symptoms.symptoms()}", encoding="utf-8")
    with Browser(folder / "profile") as browser:
        page = browser.page((folder / "index.html").as_uri())
        yield page
        assert page.complaints() == []


@pytest.mark.parametrize("words", SEEN)
def test_it_is_among_the_first(page, words):
    found = page.run(f"symptomSearch({json.dumps(words)}).map((row) => row[0])")
    assert SEEN[words] in found[:5], found


def test_what_is_typed_is_searched(page):
    page.run("document.getElementById('symptom').value = 'buffer never filled'")
    page.run("document.getElementById('symptom').dispatchEvent(new Event('input'))")
    assert "ranks.html#ring-received-buffer-zero" in page.run("document.querySelector('#symptom-found a').href")
