"""The report: verdicts, the ways to keep it, and how it reads at two widths."""

import json
from pathlib import Path

import numpy as np
import pytest

from siglip_ref.errors import UsageError
from siglip_ref.report.compare import Row, compare, not_checked, out_of_range
from siglip_ref.report.data import Case, CheckFailed, Finding, Report, Sight, worst_rows
from siglip_ref.report.html import to_html
from siglip_ref.report.text import to_text
from siglip_ref.report.verdict import did_not_finish, judgement, verdict_of

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
    assert verdict_of([not_checked("x", "value", "refused")]) == verdict_of([]) == "NOT JUDGED"
    assert verdict_of([out_of_range("x", "value", "too large")]) == "NOT JUDGED"


def cell(name: str, verdict: str, probe: str, kind: str = "value") -> Row:
    makers = {"range": out_of_range, "-": not_checked}
    if verdict in makers:
        return makers[verdict](name, kind, "overflows", probe)  # type: ignore[arg-type]
    return compare(name, np.ones(1), np.full(1, float(verdict)), 1e-6, kind=kind, probe=probe)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["loss", "logits", "image/embed", "text/embed", "image_embed", "rank0/loss"])
def test_an_output_that_is_out_of_range_everywhere_is_not_judged(name: str) -> None:
    """(a) of the rules: at every probe; one probe at which it fits is enough, except where one probe is the point."""
    beyond = [cell(name, "range", probe) for probe in ("own", "other")]
    found = judgement([RIGHT, *beyond]).unjudged
    assert found and found.why == "out of range" and found.tensors == (name,) and "overflows" in found.evidence
    assert judgement([RIGHT, beyond[0], cell(name, "1", "other")]).verdict == "PASS"
    assert judgement([RIGHT, beyond[0], cell(name, "1", "other")], at="own").verdict == "NOT JUDGED"
    assert judgement([*beyond, WRONG]).verdict == "FAIL"


def test_a_loss_or_a_gradient_that_no_probe_judged_is_not_judged() -> None:
    """(b) of the rules; an activation may stay unjudged, and so may what nobody asked for."""
    for row in (cell("bias", "range", "p", "gradient"), cell("bias", "-", "p", "gradient"), cell("loss", "-", "p")):
        found = judgement([RIGHT, row]).unjudged
        assert found and found.why == "judged nowhere" and found.tensors[0] in ("d bias", "loss")
        assert judgement([RIGHT, row, cell(row.name, "1", "q", row.kind)]).verdict == "PASS"
        assert judgement([RIGHT, row], asked=lambda row: row.name == RIGHT.name).verdict == "PASS"
    assert judgement([RIGHT, cell("image/stem", "range", "p", "activation")]).verdict == "PASS"
    assert judgement([cell("image/stem", "range", "p", "activation")]).verdict == "NOT JUDGED"


def test_a_run_that_did_not_finish_is_not_judged_unless_it_is_wrong() -> None:
    """(c) of the rules."""
    cut = did_not_finish("ranks 0 and 1 were still importing after 120 s", "limit=600")
    assert judgement([RIGHT], unfinished=cut) == judgement([], unfinished=cut)
    assert judgement([RIGHT], unfinished=cut).unjudged == cut and cut.why == "did not finish"
    assert judgement([RIGHT, WRONG], unfinished=cut).verdict == "FAIL"


def test_not_judged_does_not_pass_and_says_why_in_every_form() -> None:
    """In the text, on the page and as data; it raises as a failure does."""
    cut = did_not_finish("rank 1 <was> still importing [120 s]", "limit=600")
    one = Report("ranks", "NOT JUDGED", [], unjudged=cut)
    assert not one.passed and to_text(one).startswith("NOT JUDGED  ranks\nNOT JUDGED: rank 1 <was> still")
    assert "repair: limit=600" in to_text(one) and "rank 1 &lt;was&gt; still" in to_html(one)
    assert one.to_dict()["unjudged"] == {"why": "did not finish", "tensors": [], **vars(cut)} | {"tensors": []}
    with pytest.raises(CheckFailed, match="still importing"):
        one.raise_if_failed()


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


def noisy(error: float, name: str = "bias", noise: float = 1e-7) -> Row:
    return compare(name, 1 + error, 1.0, 6 * noise, noise=noise)


def test_the_smallest_tolerance_that_would_pass_is_that_of_the_worst_row() -> None:
    rows = [noisy(2e-7), noisy(-4e-7, "log_scale"), noisy(0.0, "loss")]
    right = report(*rows, not_checked("x", "value", "refused"), out_of_range("y", "value", "too large"))
    assert right.smallest_tolerance == pytest.approx(4, rel=1e-6) and right.closest == rows[1]
    assert "smallest tolerance that would pass: 4.00 times the noise (d log_scale); allowed: 6" in to_text(right)
    assert "4.00 times the noise" in to_html(right)
    assert right.to_dict()["smallest_tolerance"] == right.smallest_tolerance
    for times in (3.99, 4.01):  # it is what it says
        again = [compare(row.name, 1 + e, 1.0, times * 1e-7) for row, e in zip(rows, (2e-7, -4e-7, 0), strict=True)]
        assert (verdict_of(again) == "PASS") == (times > 4)


def test_no_tolerance_helps_what_is_no_number() -> None:
    nan = compare("bias", np.nan, 1.0, 6e-7, noise=1e-7)
    shape = compare("bias", np.ones(2), np.ones(3), 6e-7, noise=1e-7)
    for row in (nan, shape, WRONG):
        assert report(noisy(0.0, "loss"), row).smallest_tolerance == np.inf
        assert "no tolerance would let this pass" in to_text(report(noisy(0.0, "loss"), row))
    assert np.isnan(report(RIGHT).smallest_tolerance) and "tolerance that" not in to_text(report(RIGHT))


def test_noise_by_element_is_that_of_the_worst_element() -> None:
    noise = np.array([[1e-7, 1e-7], [1e-9, 1e-9]])
    row = compare(
        "x", np.array([[1.0, 2 + 2e-7], [1.0, 1 + 2e-8]]), np.array([[1.0, 2], [1, 1]]), 6 * noise, noise=noise
    )
    assert row.verdict == "FAIL" and row.times == pytest.approx(10, rel=1e-6) and row.excess == pytest.approx(10 / 6)


def test_a_pass_says_what_it_is_worth_and_a_failure_does_not() -> None:
    names = tuple(f"mistake-{letter}" for letter in "abcdefgh")
    sight = Sight(tuple("0123456789"), names, {"x": "between ranks", "y": "in towers", "z": "in towers"}, "bfloat16")
    words = "would have detected 10 of 18 known mistakes; not detectable in bfloat16: mistake-a, "
    assert str(sight).startswith(words) and str(sight).endswith("mistake-f and 2 more")
    assert sight.beside() == ["1 between ranks", "2 in towers"]
    assert str(Sight(("a", "b", "c"), (), {}, "float64")) == "would have detected 3 of 3 known mistakes"
    for row, said in ((RIGHT, True), (WRONG, False)):
        one = report(row)
        one.sight = sight
        assert (f"PASS: {words}" in " ".join(to_text(one, 200).split())) == said == (words in to_html(one))
        assert one.to_dict()["sight"]["blind"] == list(names)
        first = to_text(one, 200).splitlines()[0]
        assert (
            ("PASS, but cannot detect 8 of 18 mistakes" in first)
            == said
            == ("PASS, but cannot detect 8 of 18" in to_html(one))
        )
        assert ("1 between ranks; 2 in towers" in to_text(one, 200)) == said


def test_a_quarter_of_blindness_needs_no_headline() -> None:
    one = report(RIGHT)
    for blind, said in ((1, False), (2, True)):
        one.sight = Sight(("a", "b", "c"), tuple("xyz"[:blind]), {}, "float64")
        assert to_text(one).startswith("PASS, but cannot detect 2 of 5 mistakes  a model") == said
