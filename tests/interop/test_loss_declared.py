"""Declared variants of the loss, in Torch and in JAX: a right one passes, a planted mistake does not, and what it
computes is said; and the block of pairs with labels and weights behind all of them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everybody writes it
from declared_losses import JAX, TORCH, VARIANTS, Library, by_ids, logits_of, mean, objective_of, smoothed, soft, three

import siglip_ref as sr
from siglip_ref.arithmetic.complex_step import gradient
from siglip_ref.check.engine.expected.captions import with_captions
from siglip_ref.check.engine.expected.convention import Objective
from siglip_ref.check.engine.expected.exact import exact_loss, proven
from siglip_ref.check.engine.expected.expected import conventions_of
from siglip_ref.check.engine.expected.probes import POINTS, loss_probes, points_of
from siglip_ref.model.loss import sigmoid_loss, weighted_loss


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        ("torch", "float32"),
        ("jax", "float64"),
        pytest.param("torch", "float64", marks=pytest.mark.nightly),
        pytest.param("jax", "float32", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.sampled(9)
def test_right_passes_and_wrong_fails(name: str, library: str, dtype: str) -> None:
    fn, declared = VARIANTS[name]
    at = TORCH if library == "torch" else JAX
    right = sr.check_loss(partial(fn, at, wrong=False), library, dtype, **declared)
    assert right.passed, right
    assert right.smallest_tolerance < 3
    assert right.sight is not None and not right.sight.blind
    assert all(f"{key}=" in str(right.notes) for key in declared)
    if library == "torch":
        assert sr.check_loss(partial(fn, at, wrong=True), library, dtype, **declared).verdict == "FAIL"


CAPTIONED = [name for name in VARIANTS if "captions" in name]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in ["mean", "ids", "rows", *CAPTIONED]),
        *(pytest.param(name, "float32", marks=pytest.mark.nightly) for name in CAPTIONED),
    ],
)
@pytest.mark.sampled(3)
def test_planted_mistakes_in_jax(name: str, dtype: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(partial(fn, JAX, wrong=True), "jax", dtype, **declared)
    assert report.verdict == "FAIL", report
    assert not any(row.trouble for row in report.rows), report  # by its numbers: nothing is refused or missing


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_right_ones_pass_in_16_bits(name: str, dtype: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(partial(fn, TORCH, wrong=False), "torch", dtype, **declared)
    assert report.verdict == "PASS", report


def test_mistakes_of_the_catalogue_are_named_in_a_variant() -> None:
    report = sr.check_loss(lambda x, y, s, b: mean(TORCH, x, y, s, -b, False), "torch", reduction="mean")
    assert [finding.id for finding in report.findings] == ["bias-subtracted"]


TOLD = {  # what is said of the wrong one, beside the right one's formula
    "mean": ("1/B^2 sum_ij softplus", "is -bias, not bias (add the bias, do not subtract it)"),
    "no bias": ("(exp(log_scale) sim_ij))", "multiplied by 0.5/B, not 1/B"),
    "two weights": ("3/B sum over i = j", "positives: i = j with weight 3.1/B"),
    "smoothing": ("- 0.05 (", "positives: softplus(u) in place of"),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_declared_variant_computes_is_worked_out(name: str) -> None:
    """Beside what was declared, not beside SigLIP's own."""
    fn, declared = VARIANTS[name]
    formula, difference = TOLD[name]
    right = sr.check_loss(partial(fn, TORCH, wrong=False), "torch", explain=True, **declared)
    assert formula in right.computes[0] and right.computes[1] == "that is what was declared", right.computes
    astray = (lambda x, y, s, b: mean(TORCH, x, y, s, -b, False)) if name == "mean" else partial(fn, TORCH, wrong=True)
    wrong = sr.check_loss(astray, "torch", **declared)
    said = [line for line in wrong.computes if line.startswith("not what was declared")]
    assert said and difference in str(said), wrong.computes
    assert all("make it what was declared" in line for line in said) or name == "mean", said
    assert not any("negatives" in line for line in said) or name == "smoothing", said


COUNTED = {  # how pairs count in the wrong one
    "ids": "pairs that stand side by side belong together",
    "pairs": "transposed",
    "rows": "transposed",
    "ids, rows, mean": "transposed",
    "three captions": "divided by the number of texts",
    "two captions by ids": "pairs that stand side by side belong together",
}


@pytest.mark.parametrize("name", COUNTED)
def test_how_pairs_count_otherwise_is_worked_out(name: str) -> None:
    fn, declared = VARIANTS[name]
    report = sr.check_loss(partial(fn, TORCH, wrong=True), "torch", **declared)
    assert report.computes[0].startswith("declared: 1/B") and COUNTED[name] in report.computes[1], report.computes
    assert [finding.id for finding in report.findings] == ["derived"] and COUNTED[name] in report.findings[0].evidence


def test_ids_that_are_compared_the_wrong_way_are_told() -> None:
    def different(x: Any, y: Any, s: Any, b: Any, ids: Any) -> Any:
        return soft(TORCH, logits_of(TORCH, x, y, s, b), (ids[:, None] != ids).to(x.dtype)).sum() / len(x)

    report = sr.check_loss(different, "torch", positives="ids")
    assert report.verdict == "FAIL" and "taken for the others" in report.computes[1]


@pytest.mark.parametrize("name", ["ids", "pairs", "two captions, columns, mean", "softmax"])
def test_what_a_right_one_computes_is_said_where_it_is_asked_for(name: str) -> None:
    def clip(x: Any, y: Any, s: Any) -> Any:
        logits, own = s.exp() * x @ y.T, torch.arange(len(x))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    fn, declared = VARIANTS.get(name, (None, {"loss": "softmax"}))
    right = partial(fn, TORCH, wrong=False) if fn else clip
    said = sr.check_loss(right, "torch", explain=True, **declared).computes
    assert (
        said[0].startswith("your loss: 0.5/B sum" if name == "softmax" else "your loss: 1/")
        and said[1] == "that is what was declared"
    )
    assert not sr.check_loss(right, "torch", **declared).computes


def test_what_counts_in_no_known_way_is_not_told() -> None:
    fn, declared = VARIANTS["captions"]
    assert not sr.check_loss(partial(fn, TORCH, wrong=True), "torch", **declared).computes


@pytest.mark.parametrize(
    ("name", "argument"), [("mean", 'reduction="mean"'), ("two weights", "weights="), ("smoothing", "label_smoothing=")]
)
def test_an_undeclared_variant_names_its_argument(name: str, argument: str) -> None:
    report = sr.check_loss(partial(VARIANTS[name][0], TORCH, wrong=False), "torch")
    assert report.verdict == "FAIL" and argument in str([finding.repair for finding in report.findings]), report


def test_what_was_declared_and_is_not_is_another_convention() -> None:
    plain = partial(smoothed, TORCH, wrong=False)
    own = lambda x, y, s, b: soft(TORCH, logits_of(TORCH, x, y, s, b), torch.eye(len(x), dtype=x.dtype)).sum() / len(x)  # noqa: E731
    report = sr.check_loss(own, "torch", reduction="mean")
    assert report.verdict == "OTHER CONVENTION" and report.findings[0].repair.endswith("check_loss(fn)")
    assert sr.check_loss(plain, "torch", reduction="mean").verdict == "FAIL"


def test_numpy_is_given_ids_and_returns_three_gradients_without_a_bias() -> None:
    def fn(x: Any, y: Any, s: Any, ids: Any) -> tuple[Any, ...]:
        same = (ids[:, None] == ids).astype(x.dtype)
        return tuple(weighted_loss(x, y, s, 0 * s, same, 1 - same))[:4]

    assert sr.check_loss(fn, "numpy", bias=None, positives="ids").passed


# --- the block of pairs with labels and weights


def inputs() -> tuple[Any, ...]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((4, 3)), rng.standard_normal((5, 3)), np.array(0.3), np.array(-0.4)


def test_its_gradients_agree_with_complex_step() -> None:
    x, y, s, b = inputs()
    rng = np.random.default_rng(4)
    positive, negative = rng.random((4, 5)), rng.random((4, 5))
    arrays = {"image_embed": x, "text_embed": y, "log_scale": s, "bias": b}
    found = weighted_loss(**arrays, positive=positive, negative=negative)
    for name in arrays:
        wanted = gradient(lambda a: weighted_loss(**a, positive=positive, negative=negative).loss, arrays, name)
        assert np.abs(getattr(found, f"d_{name}") - wanted).max() <= 1e-13 * np.abs(wanted).max()


def test_todays_loss_is_a_special_case_bit_for_bit() -> None:
    x, y, s, b = inputs()
    own = np.eye(4)
    for one, other in zip(weighted_loss(x, y[:4], s, b, own, 1 - own), sigmoid_loss(x, y[:4], s, b), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", VARIANTS)
def test_truths_are_proven_by_balls(name: str) -> None:
    objective = objective_of(VARIANTS[name][1])
    convention = conventions_of(objective)[0]
    points = (*points_of("unit", "float64")[:8], *(point for point in POINTS if point.texts in ("duplicates", "axes")))
    for standard in loss_probes(points, None, "float64", "float64")[0]:
        probe = with_captions(standard, objective.per_image)
        found, right = exact_loss(probe, convention)._asdict(), proven(probe, convention)._asdict()
        assert not [key for key in right if not np.array_equal(found[key], right[key])], probe.label


# --- what belongs together


def test_equal_captions_are_found_by_their_numbers() -> None:
    captions = np.array([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0], [0.5, 0.5]])
    own = Objective(positives="captions").match(4, captions)
    assert (own == np.eye(4, dtype=bool) + np.eye(4, dtype=bool)[[2, 3, 0, 1]] * [[1], [0], [1], [0]]).all()
    of_two = Objective(positives="captions", per_image=2).match(2, captions)  # both images have the first caption
    assert of_two.tolist() == [[True, True, True, False], [True, False, True, True]]
    assert Objective(per_image=2).match(2, captions).tolist() == [
        [True, True, False, False],
        [False, False, True, True],
    ]


@pytest.mark.parametrize("name", CAPTIONED)
def test_their_gradients_agree_with_complex_step(name: str) -> None:
    objective = objective_of(VARIANTS[name][1])
    [probe] = loss_probes([p for p in POINTS if p.texts == "duplicates"], None, "float64", "float64")[0]
    probe = with_captions(probe, objective.per_image)
    arrays = {
        "image_embed": probe.image_embed,
        "text_embed": probe.text_embed,
        "log_scale": np.array(probe.log_scale),
        "bias": np.array(probe.bias),
    }
    computed = partial(objective.computed, captions=probe.text_embed)
    found = computed(*arrays.values())
    for key in arrays:
        wanted = gradient(lambda a: computed(*a.values()).loss, arrays, key)
        assert np.abs(getattr(found, f"d_{key}") - wanted).max() <= 1e-13 * np.abs(wanted).max()


LIBRARIES = [("torch", TORCH), pytest.param("jax", JAX, marks=pytest.mark.nightly)]


@pytest.mark.parametrize(("library", "at"), LIBRARIES)
@pytest.mark.parametrize("name", ["captions", "three captions"])
def test_who_ignores_what_was_declared_does_not_pass(name: str, library: str, at: Library) -> None:
    declared = VARIANTS[name][1]
    plain = partial(by_ids, at, wrong=True)
    report = sr.check_loss(lambda x, y, s, b: plain(x, y[:: len(y) // len(x)], s, b, None), library, **declared)
    assert report.verdict == ("OTHER CONVENTION" if name == "captions" else "FAIL")


@pytest.mark.parametrize(("library", "at"), LIBRARIES)
def test_the_captions_of_an_image_stand_side_by_side(library: str, at: Library) -> None:
    def one_after_another(x: Any, y: Any, s: Any, b: Any) -> Any:
        own = at.several(at.eye(x), 3).reshape(len(x), len(x), 3).swapaxes(1, 2).reshape(len(x), len(y))
        return soft(at, logits_of(at, x, y, s, b), own).sum() / len(x)

    assert sr.check_loss(one_after_another, library, captions_per_image=3).verdict == "FAIL"

    def ordered(x: Any, y: Any, s: Any, b: Any) -> Any:
        return one_after_another(x, y.reshape(len(x), 3, -1).swapaxes(0, 1).reshape(y.shape), s, b)

    assert sr.check_loss(ordered, library, captions_per_image=3).passed


@pytest.mark.parametrize("number", [0, 2.5, True, "two"])
def test_another_number_of_captions_is_refused(number: Any) -> None:
    with pytest.raises(sr.UsageError, match="captions_per_image"):
        sr.check_loss(partial(three, TORCH, wrong=False), "torch", captions_per_image=number)
