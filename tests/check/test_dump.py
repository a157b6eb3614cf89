"""Dumps are judged by NumPy alone, and the mistake is named."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import siglip_ref as sr
from siglip_ref.check.files.dump import judge, kind_of
from siglip_ref.cli.main import app
from siglip_ref.mistakes import CATALOGUE, WORDS, census, executable, find, reference
from siglip_ref.vectors.demo import show, vector_for
from siglip_ref.vectors.files import write_safetensors
from siglip_ref.vectors.power import SEEN, measured, run
from siglip_ref.vectors.store import packaged

CLI = CliRunner()


def answer(vector: str, mistake: str | None = None, dtype: str = "float32") -> dict[str, np.ndarray]:
    edits = find(mistake).edits if mistake else ()
    return {n: np.asarray(v) for n, v in run(packaged().find(vector), reference(edits), dtype).items()}


@pytest.mark.parametrize("vector", packaged().vectors)
def test_a_right_answer_passes(vector: str) -> None:
    report = judge(packaged().find(vector), answer(vector), "float32", "the reference")
    assert report.passed, report
    assert not report.findings


@pytest.mark.parametrize(
    ("vector", "mistake"),
    [
        ("loss/balanced-b6-d13", "sum-vs-mean-vs-b2"),
        ("loss/init-b6-d13", "negatives-missing"),
        ("ranks/w3-uneven", "gather-detached-cross-terms"),
        ("ranks/w4-uneven", "label-rank-offset"),
        ("model/balanced", "gelu-tanh-vs-erf"),
        ("model/balanced", "attention-backward-query-scale"),
        ("model/tiny-activations", "layernorm-eps-1e-5"),
        ("text/tiny-model", "padding-mask-applied"),
        ("steps/adamw-tiny", "adam-eps-before-bias-correction"),
        ("steps/model-adamw", "grads-not-zeroed"),
        ("accumulation/cached", "accum-cached-not-divided"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, vector: str, mistake: str) -> None:
    path = tmp_path / "answer.safetensors"
    path.write_bytes(write_safetensors(answer(vector, mistake), {"vector": vector}))
    report = sr.check_dump(path)
    assert report.verdict == "FAIL"
    assert mistake in [finding.id for finding in report.findings]
    assert find(mistake).repair in " ".join(str(report).split())


def test_npz_and_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **answer("loss/one-pair"))
    assert sr.check_dump(tmp_path / "a.npz", vector="loss/one-pair").passed
    with pytest.raises(sr.UsageError, match="does not say"):
        sr.check_dump(tmp_path / "a.npz")
    with pytest.raises(sr.UsageError, match="loss/init-b6-d13 has tensors of these names"):
        sr.check_dump(tmp_path / "a.npz", vector="ops/mlp")
    with pytest.raises(sr.UsageError, match="ending"):
        sr.check_dump(tmp_path / "a.pt", vector="ops/mlp")
    with pytest.raises(sr.UsageError, match="loss/one-pair"):
        sr.check_dump(tmp_path / "a.npz", vector="loss/two-pairs")
    with pytest.raises(sr.UsageError, match="floating-point formats"):
        sr.check_dump(tmp_path / "a.npz", vector="loss/one-pair", dtype="float8")


def test_what_is_missing_or_not_a_number_never_passes() -> None:
    vector, right = packaged().find("loss/balanced-b6-d13"), answer("loss/balanced-b6-d13")
    some = {name: right[name] for name in ("loss", "d_bias")}
    assert judge(vector, some, "float32", "").verdict == "FAIL"
    assert judge(vector, some, "float32", "", partial=True).passed
    for name in right:
        for bad in (np.nan, np.inf):
            assert judge(vector, right | {name: right[name] * bad}, "float32", "").verdict == "FAIL"
        assert judge(vector, right | {name: np.zeros((2, 3, 4))}, "float32", "").verdict == "FAIL"


def test_a_wide_format_is_judged_narrowly() -> None:
    """What passes as float32 does not pass as float64."""
    vector, single = packaged().find("block/plain"), answer("block/plain")
    assert judge(vector, single, "float32", "").passed
    assert not judge(vector, single, "float64", "", partial=True).passed


def test_the_report_says_what_it_could_not_see() -> None:
    vector = packaged().find("ops/mlp")
    report = judge(vector, answer("ops/mlp"), "bfloat16", "")
    assert report.passed
    assert any(line.startswith("gelu-tanh-vs-erf") for line in report.blind)
    assert "not detectable in bfloat16: " in str(report.sight)
    assert len(report.sight.seen) + len(report.sight.blind) == report.sight.of


@pytest.mark.parametrize("name", list(packaged().vectors))
@pytest.mark.sampled(3)
def test_every_mistake_is_seen_blind_or_elsewhere(name: str) -> None:
    """What is seen shows in this vector as measured; what is not in the file shows nothing."""
    vector = packaged().find(name)
    worth = judge(vector, vector.expected, "float64", "").sight
    assert worth and sorted([*worth.seen, *worth.blind, *worth.elsewhere]) == sorted(CATALOGUE)
    assert all(worth.elsewhere.values()) and set(worth.seen) == {
        id for id, rows in measured().power.items() if id in CATALOGUE and (rows.get(name) or [0])[0] >= SEEN
    }
    few = judge(vector, dict(list(vector.expected.items())[:1]), "float64", "", partial=True).sight
    assert few and set(few.seen) <= set(worth.seen) and few.of == worth.of


def test_a_forward_pass_alone_does_not_see_what_only_gradients_show() -> None:
    vector, right = packaged().find("loss/balanced-b6-d13"), answer("loss/balanced-b6-d13")
    report = judge(vector, {"loss": right["loss"]}, "float32", "", partial=True)
    assert report.passed and {"dscale-wrt-t", "normalised-again"} <= set(report.sight.blind)
    assert report.headline.startswith("PASS, but cannot detect ")


def test_out_of_range_is_neither_pass_nor_fail() -> None:
    vector = packaged().find("loss/beyond-float16")
    rows = judge(vector, answer("loss/beyond-float16", dtype="float64"), "float16", "").rows
    assert {row.verdict for row in rows} == {"out of range"}


@pytest.mark.parametrize("mistake", executable(), ids=lambda m: m.id)
@pytest.mark.sampled(6)
def test_every_demo_shows_its_mistake(mistake) -> None:  # type: ignore[no-untyped-def]
    if mistake.kind == "equivalent":
        assert show(mistake).passed
        return
    if mistake.kind == "softmax":
        report = show(mistake)
        convention = mistake.id == "softmax-scale-not-exp"  # right, for a loss that is given the scale itself
        assert report.verdict == ("OTHER CONVENTION" if convention else "FAIL")
        assert ("convention" if convention else mistake.id) in [finding.id for finding in report.findings]
        return
    # the vector of the demo is the smallest that shows it; that the finding names it is shown for all of those
    vector = vector_for(mistake)
    if vector.group in ("model", "steps", "image", "text", "objective"):
        assert not judge(vector, answer(vector.id, mistake.id), "float32", "", partial=True).passed
        return
    report = show(mistake)
    assert report.verdict == "FAIL"
    assert mistake.id in [finding.id for finding in report.findings]


def test_commands(tmp_path: Path) -> None:
    listed = CLI.invoke(app, ["vectors", "list"])
    assert listed.exit_code == 0
    assert "97 vectors" in listed.output
    assert CLI.invoke(app, ["vectors", "export", str(tmp_path), "--only", "loss/one-pair"]).exit_code == 0
    np.savez(tmp_path / "right.npz", **answer("loss/one-pair"))
    np.savez(tmp_path / "wrong.npz", **answer("loss/one-pair", "bias-subtracted"))
    for name, code in (("right", 0), ("wrong", 1)):
        judged = CLI.invoke(app, ["check", "dump", str(tmp_path / f"{name}.npz"), "--vector", "loss/one-pair"])
        assert judged.exit_code == code
    shown = CLI.invoke(app, ["demo", "label-sign"])
    assert shown.exit_code == 0
    assert "FAIL" in shown.output
    assert "mistake: label-sign" in shown.output
    described = CLI.invoke(app, ["explain", "layernorm-eps-1e-5"])
    changed = [line for line in described.output.splitlines() if line.startswith(("- ", "+ "))]
    assert len(changed) == 2 and "np.sqrt(variance + 10 * eps)" in changed[1]  # whole lines of the reference
    assert changed[1].replace("10 * eps", "eps")[1:] == changed[0][1:]
    assert "no vector" not in described.output.split("bfloat16")[0]
    every = CLI.invoke(app, ["explain"]).output
    assert "p2p-order-deadlock" in every and f"{census()}; and {len(WORDS)} words" in every
    assert "there is nothing to run. See `siglip-ref explain" in CLI.invoke(app, ["demo", "p2p-order-deadlock"]).output
    assert "label-sign" in CLI.invoke(app, ["vectors", "power"]).output


def test_kinds_of_names() -> None:
    assert kind_of("d_w/attn/q/bias") == ("gradient", "w/attn/q/bias")
    assert kind_of("@image/pool") == ("gradient", "@image/pool")
    assert kind_of("step1/tower/bias") == ("value", "step1/tower/bias")


def test_a_demo_over_ranks_is_on_four_of_them() -> None:
    report = show(CATALOGUE["ring-hop-missing"])
    assert "ranks/w4" in report.title
    assert [finding.id for finding in report.findings] == ["ring-hop-missing"], report
    lines = str(report).splitlines()  # the table is long: what is wrong stands above it
    assert lines[0].startswith("FAIL") and lines[2] == "mistake: ring-hop-missing" and len(lines) > 100


def test_a_demo_without_an_id_shows_one_and_says_where_the_others_are() -> None:
    shown = CLI.invoke(app, ["demo"])
    assert shown.exit_code == 0 and "mistake: negatives-missing" in shown.output
    assert "siglip-ref explain, without an id, lists all" in shown.output


def forward(vector: str, mistake: str | None = None) -> dict[str, np.ndarray]:
    """Values alone, as a program without gradients writes them."""
    return {name: x for name, x in answer(vector, mistake).items() if kind_of(name)[0] != "gradient"}


@pytest.mark.parametrize(
    ("vector", "mistake", "first"),
    [
        ("image/tiny-model", "layernorm-eps-1e-5", "image/block00/+attn"),
        ("image/tiny-model", "gelu-tanh-vs-erf", "image/block00/+mlp"),
        ("text/tiny-model", "attention-scale-width", "text/block00/+attn"),
        ("text/tiny-model", "eos-pooling-argmax", "text/pool"),
        ("block/plain", "attention-scale-heads", "after_attention"),
    ],
)
def test_a_deviation_begins_at_the_first_stage_and_not_at_what_comes_out(vector, mistake, first) -> None:
    report = judge(packaged().find(vector), forward(vector, mistake), "float32", "", partial=True)
    assert report.first_divergent is not None and report.first_divergent.name == first
    assert report.findings[0].tensor.split(", ")[0] == first
    assert report.rows[-1].name == "out"


def test_what_nobody_knows_begins_at_the_first_stage_too() -> None:
    wrong = forward("image/tiny-model")
    wrong = {name: x * np.float32(1.01) if name != "image/stem" else x for name, x in wrong.items()}
    [finding] = judge(packaged().find("image/tiny-model"), wrong, "float32", "", partial=True).findings
    assert "begins at image/block00/+attn" in finding.evidence


def test_a_wrong_gradient_begins_where_the_way_back_meets_it_first() -> None:
    wrong = answer("image/tiny-model")
    for name in ("d/image/patch/kernel", "d/image/block00/mlp/out/bias"):
        wrong[name] = wrong[name] * 2
    report = judge(packaged().find("image/tiny-model"), wrong, "float32", "")
    assert report.first_divergent is not None and report.first_divergent.name == "image/block00/mlp/out/bias"


@pytest.mark.parametrize("vector", ["image/tiny-model", "text/tiny-model"])
def test_which_derivative_a_gelu_has_is_not_said_of_a_forward_pass_alone(vector: str) -> None:
    report = judge(packaged().find(vector), forward(vector, "gelu-tanh-vs-erf"), "float32", "", partial=True)
    assert [finding.id for finding in report.findings] == ["gelu-tanh-vs-erf"]
    assert "gelu-forward-and-backward-differ has the same values: no gradient" in report.findings[0].evidence
    whole = judge(packaged().find(vector), answer(vector, "gelu-forward-and-backward-differ"), "float32", "")
    assert "gelu-forward-and-backward-differ" in [finding.id for finding in whole.findings]


def test_what_was_left_out_on_purpose_has_no_rows() -> None:
    report = judge(packaged().find("image/tiny-model"), forward("image/tiny-model"), "float32", "", partial=True)
    assert report.passed and {row.verdict for row in report.rows} == {"pass"}
    assert report.not_checked == ["60 tensors that are not in the file"]
