"""The catalogue itself: ids are unique, every change fits the reference's text, and nothing leaks into the original."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from siglip_ref import mistakes
from siglip_ref.mistakes import CATALOGUE, FILES, Edit, Mistake, executable, find, reference
from siglip_ref.mistakes.change import bfloat16

CFG = sr.config("tiny")


def test_ids_are_unique_and_stay() -> None:
    folder = Path(mistakes.__file__).parent
    entries = [tomllib.loads((folder / f"{name}.toml").read_text())["mistake"] for name in FILES]
    assert len(CATALOGUE) == sum(len(part) for part in entries)
    assert {file.stem for file in folder.glob("*.toml")} == {*FILES, "differentiated", "messages"}
    # ids are published in reports and vectors: these may be added to, never renamed
    for known in ("gather-own-slot-one-over-w", "gather-detached-cross-terms", "label-sign", "layernorm-eps-1e-5"):
        assert known in CATALOGUE


@pytest.mark.parametrize("mistake", executable(), ids=lambda m: m.id)
def test_every_change_fits_the_reference(mistake: Mistake) -> None:
    reference(mistake.edits)


@pytest.mark.parametrize("mistake", CATALOGUE.values(), ids=lambda m: m.id)
def test_every_entry_is_complete(mistake: Mistake) -> None:
    assert all((mistake.text, mistake.seen, mistake.shows, mistake.repair))
    assert bool(mistake.edits) == (mistake.kind != "not numeric")


@pytest.mark.parametrize("form", mistakes.entries("differentiated"), ids=lambda m: m.id)
def test_second_forms_are_of_known_mistakes(form: Mistake) -> None:
    assert find(form.id).kind == form.kind and find(form.id).edits != form.edits
    reference(form.edits)


def test_modules_that_no_edit_reaches_are_shared() -> None:
    original, copy = reference(), reference(find("label-rank-offset").edits)
    assert copy.procedures is not original.procedures
    assert copy.ops is original.ops and copy.optim is original.optim


def test_a_change_stays_in_its_copy() -> None:
    images, tokens = np.ones((2, 12, 28, 3)), np.ones((2, 9), int)
    params = sr.init(CFG)
    before, _ = sr.loss_and_grads(params, images, tokens, CFG)
    wrong, _ = reference(find("loss-not-divided").edits).model.loss_and_grads(params, images, tokens, CFG)
    after, _ = sr.loss_and_grads(params, images, tokens, CFG)
    assert before == after
    assert wrong != before


def test_a_change_reaches_every_caller() -> None:
    """An edit of the linear layer is felt by attention, MLP and towers alike: the copy has no line to the original."""
    copy = reference(
        [Edit("ops/linear.py", "    out = rows @ kernel + bias\n", "    out = 0 * (rows @ kernel + bias)\n")]
    )
    pooled = copy.model.forward(sr.init(CFG), np.ones((2, 12, 28, 3)), np.ones((2, 9), int), CFG)
    assert not pooled.text_embed.any()


def test_an_edit_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="0 times, not once"):
        reference([Edit("ops/linear.py", "no such line", "")])
    with pytest.raises(ValueError, match="times, not once"):
        reference([Edit("ops/linear.py", "kernel", "")])


def test_unknown_ids_are_named() -> None:
    with pytest.raises(sr.UsageError, match="label-sign"):
        find("label-signs")


def test_bfloat16_rounds_as_bfloat16() -> None:
    np.testing.assert_array_equal(bfloat16(np.array([1 + 2**-8, 1 + 3 * 2**-8, 3.0])), [1, 1 + 2**-6, 3.0])


@pytest.mark.parametrize("pairs", [64, 512])
def test_what_mistakes_of_scale_and_bias_show_at_the_initialisation(pairs: int) -> None:
    """Random unit rows, at a fresh model's scale and bias; the figures are those of the catalogue, for any batch."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, pairs, 64))
    x, y = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    given = x, y, np.array(np.log(10.0)), np.array(-10.0), np.eye(pairs, dtype=bool)
    right = sr.ops.pair_block(*given).d_image_embed

    def wrong(name: str, *images: np.ndarray) -> sr.LossAndGrads:
        return reference(find(name).edits).ops.pair_block(*(images or given[:1]), *given[1:])

    raw = wrong("logit-scale-not-exp").d_image_embed
    assert f"times {(raw * right).sum() / (right * right).sum():.2f} with cosine 1" in find("logit-scale-not-exp").shows
    other = wrong("logit-scale-init").d_image_embed
    share = np.linalg.norm(other - right) / np.linalg.norm(right)
    assert f"off by {100 * share:.0f} %" in find("logit-scale-init").shows
    without = wrong("logit-bias-dropped", np.zeros_like(x))
    assert abs(without.loss / pairs - pairs * np.log(2)) <= 1e-10 * pairs
    assert "B log 2" in find("logit-bias-dropped").shows
