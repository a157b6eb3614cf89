"""Single edits of the specification: which of them the checks see, as data that is up to date, and as a PASS says."""

import ast
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref.check.engine.expected.convention import Objective
from siglip_ref.check.engine.expected.expected import CONVENTIONS
from siglip_ref.check.engine.single_edits import remake, shipped
from siglip_ref.check.loss.measured.single_edits import VARIANTS, OfLoss
from siglip_ref.cli.coverage import grounds
from siglip_ref.mistakes import Edit, reference
from siglip_ref.mistakes.grammar.places import single_edits
from siglip_ref.noise.table import PACKAGE

LOSS = OfLoss(CONVENTIONS[0])
BLOCK = "ops/pair_block.py"
REMAKE = "siglip-ref coverage"


def test_what_ships_belongs_to_this_text_and_nothing_is_missing() -> None:
    marks, figures = shipped.read()
    keys = {ground.key(dtype) for ground in grounds() for dtype in ground.dtypes}
    assert keys == figures.keys(), REMAKE
    for subject in {key.split(",")[0] for key in keys}:
        assert marks[subject] == shipped.stamp_of(subject), REMAKE


# What survives beyond rounding, each with its reason: the part of an edit's line that tells it.
EXPLAINED = {
    "np.clip(": "a clamp: no number of a probe of towers, whose stream is small on purpose, reaches it there",
    "+ 1e-6)": "a millionth beside numbers of about one: at the edge of what float32 rounds off",
    "own) / pairs).mean())]": "the slopes of a softmax loss sum to zero: their mean is rounding",
    "similarity = [": "softmax does not see what is added to all logits: what is left of it is rounding",
    "top = [": "any number will do in the place of the largest logit, up to overflow",
    "scale = [np.exp(log_scale) -> (np.exp(log_scale) + 1e-6)]": "a millionth of a scale of about ten",
}
CLAMPED = "model, "
SOFTMAX = "loss, softmax"


def test_no_edit_survives_in_float64_and_in_float32_only_what_is_explained() -> None:
    for key, figure in shipped.read()[1].items():
        assert figure["edits"] > figure["running"] > figure["changing"] > 100
        for name, most in figure["survivors"].items():
            reasons = [why for part, why in EXPLAINED.items() if part in name]
            if key.endswith("float64"):
                clamped = key.startswith(CLAMPED) and "np.clip(" in name
                assert clamped or (key.startswith(SOFTMAX) and reasons), (key, name)
            # a loss that computes in float32 is not changed by rounding to it, however far off that is in float64
            no_change = key.endswith("float32") and "-> (np.float32(" in name
            assert float(most) < 1 or reasons or no_change, (key, name, most)


@pytest.mark.nightly
def test_a_sample_comes_out_as_what_ships() -> None:
    assert remake.wrong(LOSS, shipped.read()[1], lambda line: None, every=211) == [], REMAKE


def test_with_one_probe_left_survivors_rise() -> None:
    clamps = [edit for edit in single_edits(BLOCK, ("pair_block",)) if "-20, 20" in edit.new or ", 100" in edit.new]
    few, all_of_them = (sum(LOSS.sees(edit, "float64", n) for edit in clamps) for n in (1, None))
    assert few < all_of_them


def test_the_grammar_reaches_every_kind_of_change() -> None:
    said = {(_plain(edit.old), _plain(edit.new)) for edit in single_edits(BLOCK, ("pair_block",)) if edit.new != "pass"}
    for pair in (
        ("scale * similarity + bias", "(scale * similarity)"),  # a term dropped
        ("scale * similarity", "(scale + similarity)"),  # operators exchanged
        ("text_embed.T", "(text_embed)"),  # a transpose
        ("d_logits.sum()", "(d_logits.mean())"),  # a reduction
        ("d_logits.sum()", "(d_logits.sum(0))"),  # an axis
        ("-logits", "(logits)"),  # a sign
        ("np.exp(log_scale)", "(log_scale)"),  # a function
        ("np.exp(log_scale)", "(np.minimum(np.exp(log_scale), 100))"),  # a clamp
        ("text_embed", "(image_embed)"),  # another operand
        ("d_logits", "(0 * d_logits)"),  # a gradient that does not arrive
        ("np.where(match, -logits, logits)", "(np.where(match, logits, -logits))"),  # branches
        ("similarity", "(2 * similarity)"),
    ):
        assert (_plain(pair[0]), _plain(pair[1])) in said, pair
    constants = {(edit.old, edit.new) for edit in single_edits("ops/normalize.py")}
    assert {("-1", "(1)"), ("0", "(1)"), ("length <= eps", "(length < eps)"), ("True", "(False)")} <= constants


def _plain(code: str) -> str:
    """Without brackets that change nothing."""
    return ast.unparse(ast.parse(code.strip(), mode="eval"))


def test_an_edit_is_made_at_its_place_and_nowhere_else() -> None:
    text = (PACKAGE / BLOCK).read_text(encoding="utf-8")
    for edit in single_edits(BLOCK)[::97]:
        assert edit.at is not None and text.startswith(edit.old, edit.at)
    at = text.index("d_logits = np.where")
    wrong = reference([Edit(BLOCK, "logits", "(2 * logits)", text.index("logits)", at))])
    eye = np.eye(3)
    assert wrong.loss.sigmoid_loss(eye, eye, 0.0, -2.0).loss == sr.sigmoid_loss(eye, eye, 0.0, -2.0).loss
    assert wrong.loss.sigmoid_loss(eye, eye, 0.0, -2.0).d_bias != sr.sigmoid_loss(eye, eye, 0.0, -2.0).d_bias
    with pytest.raises(ValueError, match="not once"):
        reference([Edit(BLOCK, "logits", "1", at)])


def _said(**settings: Any) -> str:
    report = sr.check_loss(sr.sigmoid_loss, **dict(framework="numpy", dtype="float64", scale="log") | settings)
    assert report.passed and len(report.worth) == 2
    assert f"PASS: {report.worth[1]}" in " ".join(str(report).split())
    assert json.loads(report.to_json())["edits"] == (None if report.edits is None else report.to_dict()["edits"])
    return report.worth[1]


def test_a_pass_prints_the_figure_of_its_run() -> None:
    figure = shipped.read()[1]["loss, sigmoid, log, unit, float64"]
    all_of_them = f"{figure['changing']:,} of {figure['changing']:,}"
    assert _said() == f"would have detected {all_of_them} single-edit mutations of the reference"
    figure = shipped.read()[1]["loss, sigmoid, log, unit, float32"]
    assert f"would have detected {figure['changing'] - len(figure['survivors']):,} of" in _said(dtype="float32")


@pytest.mark.parametrize("objective", VARIANTS, ids=str)
def test_declared_variants_have_figures(objective: Objective) -> None:
    """Made of the very edits that a loss of this kind consists of; of SigLIP's, in float64 nothing survives."""
    figures = shipped.read()[1]
    ground = OfLoss(replace(CONVENTIONS[0], objective=objective))
    assert figures[ground.key("float64")]["edits"] == len(ground.edits())
    assert objective.kind == "softmax" or not figures[ground.key("float64")]["survivors"]


def test_a_pass_of_a_declared_variant_prints_its_figure() -> None:
    def mean(x: Any, y: Any, s: Any, b: Any) -> tuple[Any, ...]:
        return tuple(value / len(x) for value in sr.sigmoid_loss(x, y, s, b))

    def no_bias(x: Any, y: Any, s: Any) -> tuple[Any, ...]:
        return tuple(sr.sigmoid_loss(x, y, s, 0 * s))[:4]

    for fn, declared in ((mean, {"reduction": "mean"}), (no_bias, {"bias": None})):
        report = sr.check_loss(fn, "numpy", "float64", scale="log", embeddings="unit", **declared)
        assert report.passed and "single-edit mutations" in report.worth[1], report
        assert "not measured" not in report.worth[1]


@pytest.mark.parametrize(
    "settings", [{"dims": {"batch": 2}}, {"frozen": ("image_embed",)}, {"dtype": "float32", "scalar_dtype": "float64"}]
)
def test_what_nobody_measured_is_not_claimed(settings: dict[str, Any]) -> None:
    assert "not measured for this run" in _said(**settings)


def test_figures_of_another_text_are_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "stamp_of", lambda subject: "another")
    assert "not measured for this run" in _said()


@pytest.mark.nightly
def test_a_sample_that_comes_out_otherwise_is_told() -> None:
    _, figures = shipped.read()
    key, first = LOSS.key("float64"), remake.words(LOSS.edits()[0])
    wrong = figures | {key: figures[key] | {"survivors": {first: 0.5}, "edits": 3}}
    found = remake.wrong(LOSS, wrong, lambda line: None, every=len(LOSS.edits()))
    assert found == [f"{key}: {len(LOSS.edits())} edits, not 3", f"{key}: {first}"]


@pytest.mark.nightly
def test_every_edit_comes_out_as_what_ships(tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    remake.remake(grounds(), processes=2, everything=True, file=file)
    for key, figure in shipped.read()[1].items():
        now = shipped.read(file)[1][key]
        assert now["edits"] == figure["edits"] and now["survivors"].keys() == figure["survivors"].keys(), REMAKE
        assert now["changing"] == pytest.approx(figure["changing"], rel=0.01), REMAKE  # what rounding hides or not


@pytest.mark.nightly
def test_the_check_itself_passes_what_survives() -> None:
    """The verdict of the whole check, not of its rows alone."""
    of_words = {remake.words(edit): edit for edit in LOSS.edits()}
    for name in shipped.read()[1][LOSS.key("float32")]["survivors"]:
        ops = reference((of_words[name],)).ops
        loss = partial(LOSS.convention.objective.computed, captions=None, ops=ops, tiles=3)
        report = sr.check_loss(loss, "numpy", "float32", scale="log", embeddings="unit")
        assert report.passed, name
