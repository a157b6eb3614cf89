"""The report as a page and as JSON: nothing of a user's becomes markup, nothing is loaded, both are complete."""

import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import jsonschema
import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.report.compare import compare, not_checked
from siglip_ref.report.data import Case, Finding, Report
from siglip_ref.report.html import to_html
from siglip_ref.report.verdict import verdict_of

SCHEMA = json.loads((files("siglip_ref.report") / "report.schema.json").read_text())
VOID = {"meta", "rect"}
HOSTILE = '<script>alert("1")</script>&amp;'


class Page(HTMLParser):
    """Tags that are open, every tag and attribute that came, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text, self.attributes = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def wrong_loss(image_embed, text_embed, log_scale, bias):
    r = sr.sigmoid_loss(image_embed, text_embed, log_scale, bias)
    return r.loss, r.d_image_embed, -r.d_text_embed, r.d_log_scale, r.d_bias


@pytest.fixture(scope="module")
def report():
    return sr.check_loss(wrong_loss, framework="numpy", dtype="float64")


def test_the_page_stands_alone_and_is_well_formed(report):
    page = Page(to_html(report))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.seen)
    assert not [value for name, value in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in to_html(report) and "@import" not in to_html(report)
    assert page.seen.count("tr") == len(report.rows) + 1


def test_the_page_says_the_diagnosis_before_the_table(report):
    text = Page(to_html(report)).text
    assert text.index(report.findings[0].evidence) < text.index("error / allowed")
    for finding in report.findings:
        assert finding.repair in text
    for line in (*report.not_checked, *report.blind, *report.notes, *report.conventions.values()):
        assert line in text


def test_what_a_user_wrote_is_text():
    row = compare(HOSTILE, np.zeros(4), np.ones(4), 1e-6, note=HOSTILE, probe=HOSTILE)
    row = replace(row, rows=HOSTILE)
    case = Case({f"got/{HOSTILE}": np.zeros(4), f"expected/{HOSTILE}": np.ones(4)}, "")
    finding = Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    lines = [HOSTILE]
    page = Page(
        to_html(Report(HOSTILE, "FAIL", [row], [finding], {HOSTILE: HOSTILE}, lines, lines, lines, [row], case))
    )
    assert "script" not in page.seen
    assert page.text.count(HOSTILE) >= 14


def heat(got, expected):
    rows = [compare("x", got, expected, 0.01)]
    report = Report("a model", verdict_of(rows), rows, case=Case({"got/x": got, "expected/x": expected}, ""))
    page = Page(to_html(report))
    levels = [value for name, value in page.attributes if name == "class" and value in ("h0", "h1", "h2", "h3", "h4")]
    return levels[: page.seen.count("rect")]  # the key comes after the cells


def test_the_heat_map_shows_where_and_how_far():
    got = np.ones((2, 3))
    got[0, 2], got[1, 0], got[1, 1], got[1, 2] = 1.05, 2.0, 1e9, np.nan
    assert heat(got, np.ones((2, 3))) == ["h0", "h0", "h1", "h2", "h3", "h4"]
    assert heat(got.T, np.ones((3, 2))) == ["h0", "h0", "h1", "h2", "h3", "h4"]  # laid on its side


def test_the_heat_map_of_a_large_tensor_loses_no_wrong_element():
    got = np.ones((500, 3, 301))
    got[3, 1, 7], got[400, 0, 300] = 2, np.nan
    cells = heat(got, np.ones_like(got))
    assert len(cells) == 48 * 96
    assert cells.count("h2") == 1 and cells.count("h4") == 1


def test_where_every_element_is_as_wrong_the_worst_is_told_in_numbers():
    rows = [compare("x", np.array([3.0, 3.5]), np.ones(2), 0.01)]
    case = Case({"got/x": np.array([3.0, 3.5]), "expected/x": np.ones(2)}, "")
    page = to_html(Report("a model", "FAIL", rows, case=case))
    assert "<svg" not in page and "every element is wrong. At [1] it is 3.5, expected 1" in page


def test_right_reports_have_no_heat_map():
    report = sr.check_loss(sr.sigmoid_loss, framework="numpy", dtype="float64")
    assert "<svg" not in to_html(report) and "PASS" in to_html(report)


@pytest.mark.parametrize("kind", ["wrong", "right", "nothing"])
def test_json_follows_the_published_schema(kind, report):
    nothing = Report("x", "FAIL", [not_checked("x", "value", "refused")])
    right = Report("x", "PASS", [compare("x", np.ones(2), np.ones(2), 0.1)])
    content = json.loads({"wrong": report, "right": right, "nothing": nothing}[kind].to_json())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(content, SCHEMA)
    for spoil in ({"verdict": "MAYBE"}, {"passed": not content["passed"]}, {"more": 1}, {"rows": [{"name": "x"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | spoil, SCHEMA)


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_browser_shows_it(report, tmp_path):
    """Light and dark differ, so the page was drawn, and in the reader's colours."""
    page = report.save(tmp_path / "r.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    pictures = []
    for scheme in (0, 1):
        picture = tmp_path / f"{scheme}.png"
        scheme_option = f"--blink-settings=preferredColorScheme={scheme}"
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = ["chromium", *options, profile, scheme_option, f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        pictures.append(picture.read_bytes())
    assert pictures[0] != pictures[1]
    assert min(map(len, pictures)) > 10_000
