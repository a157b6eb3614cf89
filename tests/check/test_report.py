"""The report: verdicts, the ways to keep it, and how it reads at two widths."""

import json
from pathlib import Path

import numpy as np
import pytest

from siglip_ref.check.compare import Row, compare, not_checked, out_of_range
from siglip_ref.check.render import to_text
from siglip_ref.check.report import Case, CheckFailed, Finding, Report, verdict_of, worst_rows
from siglip_ref.errors import UsageError

RIGHT = compare("image/stem", np.ones(3), np.ones(3), 1e-6, kind="activation")
WRONG = compare("image/block00/+attn", np.ones(3), np.full(3, 2.0), 1e-6, kind="activation")
GRADIENTS = [compare(f"image/{name}/bias", np.zeros(2), np.ones(2), 1e-6) for name in ("patch", "pool")]
NAN = compare("bias", np.nan, 1.0, 1e-6)


def report(*rows: Row) -> Report:
    case = Case({"input/x": np.arange(3.0)}, "print('shown')\n")
    finding = Finding("unknown", "bias", "", "half of it [m]", "double it")
    return Report("a model", verdict_of(rows), list(rows), [finding], {"gelu": "tanh"}, ["one"], ["two"], case=case)


def test_a_verdict_needs_something_that_was_judged() -> None:
    assert verdict_of([RIGHT, not_checked("x", "value", "refused")]) == "PASS"
    assert verdict_of([RIGHT, WRONG]) == verdict_of([RIGHT, NAN]) == "FAIL"
    assert verdict_of([not_checked("x", "value", "refused")]) == verdict_of([]) == "FAIL"
    assert verdict_of([out_of_range("x", "value", "too large")]) == "FAIL"


def test_the_deviation_begins_forward_then_at_the_loss_end_of_the_way_back() -> None:
    assert report(RIGHT).first_divergent is None
    assert report(*GRADIENTS, RIGHT, WRONG).first_divergent == WRONG
    assert report(RIGHT, *GRADIENTS).first_divergent == GRADIENTS[-1]


def test_the_worst_row_of_a_tensor_is_kept() -> None:
    mild = compare("bias", 1.1, 1.0, 1e-6)
    unknown = not_checked("bias", "gradient", "refused")
    assert worst_rows([mild, NAN]) == [NAN] and worst_rows([unknown, mild]) == [mild]


def test_raise_if_failed_shows_the_report() -> None:
    report(RIGHT).raise_if_failed()
    with pytest.raises(CheckFailed, match="half of it"):
        report(WRONG).raise_if_failed()
    with pytest.raises(AssertionError):
        Report("", "OTHER CONVENTION", [RIGHT]).raise_if_failed()


def test_json_holds_everything_and_no_number_that_json_lacks(tmp_path: Path) -> None:
    text = report(RIGHT, WRONG, NAN).save(tmp_path / "r.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["verdict"] == "FAIL" and content["first_divergent"] == WRONG.name
    assert [row["name"] for row in content["rows"]] == [RIGHT.name, WRONG.name, "bias"]
    assert content["rows"][2]["error"] == "nan" and content["findings"][0]["repair"] == "double it"


def test_html_and_other_endings(tmp_path: Path) -> None:
    assert "image/block00/+attn" in report(WRONG).save(tmp_path / "r.html").read_text()
    with pytest.raises(UsageError, match="ending chooses the format"):
        report(WRONG).save(tmp_path / "r.txt")


def test_a_case_is_a_file_a_program_and_the_report(tmp_path: Path) -> None:
    folder = report(WRONG).save_case(tmp_path / "case")
    assert sorted(path.name for path in folder.iterdir()) == ["case.npz", "report.json", "reproduce.py"]
    assert np.load(folder / "case.npz", allow_pickle=False)["input/x"].tolist() == [0, 1, 2]
    with pytest.raises(UsageError):
        Report("", "FAIL", []).save_case(tmp_path / "none")


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_says_the_verdict_first_and_keeps_its_width(width: int) -> None:
    page = to_text(report(RIGHT, WRONG, NAN, *GRADIENTS), width)
    assert page.startswith("FAIL  a model") and max(map(len, page.splitlines())) <= width
    for words in (
        "d image/patch/bias",
        "what deviates",
        "half of it [m]",
        "gelu: tanh",
        "not checked",
        "every element",
    ):
        assert words in page
    assert page.index("what deviates") < page.index("conventions") < page.index("not checked")
