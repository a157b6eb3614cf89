"""check_recipe on a caption loss in plain Torch: the right one, six typical mistakes, and two other conventions."""

from typing import Any

import numpy as np
import pytest
from torch_recipe import Program

import siglip_ref as sr
from siglip_ref.mistakes import find, reference
from siglip_ref.vectors.store import packaged
from siglip_ref.vectors.tasks import TASKS


def caption_loss(inputs: dict[str, Any], settings: Any, mistake: str = "") -> Any:
    """A decoder as one would write it; `mistake` makes one."""
    return Program(mistake).captions(inputs, settings)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_right_caption_loss_passes_and_its_choices_are_printed(dtype: str) -> None:
    report = sr.check_recipe(Program().captions, "captions", dtype=dtype)
    assert report.verdict == "PASS", report
    assert report.conventions["pad_keys"] == "seen" and report.conventions["mean"] == "example"
    assert "pad_keys" in str(report)


@pytest.mark.parametrize(
    "mistake",
    [
        "caption-no-shift", "caption-mode-of-batch", "caption-pad-counted", "caption-mask-id-start",
    ],
)  # fmt: skip
def test_a_mistake_is_named(mistake: str) -> None:
    report = sr.check_recipe(lambda a, s: caption_loss(a, s, mistake), "captions", framework="torch")
    assert report.verdict == "FAIL" and mistake in [finding.id for finding in report.findings], report


def test_a_gradient_that_does_not_arrive_is_seen() -> None:
    report = sr.check_recipe(lambda a, s: caption_loss(a, s, "caption-tokens-detached"), "captions", framework="torch")
    assert [row.name for row in report.rows if row.verdict == "FAIL"] == ["context"], report


@pytest.mark.parametrize(
    ("mistake", "words"), [("caption-pad-keys-hidden", 'pad_keys="hidden"'), ("caption-mean-of-tokens", 'mean="token"')]
)
def test_another_convention_is_told_from_a_mistake(mistake: str, words: str) -> None:
    report = sr.check_recipe(lambda a, s: caption_loss(a, s, mistake), "captions", framework="torch")
    assert report.verdict == "OTHER CONVENTION" and words in str(report)


@pytest.mark.parametrize("part", ["local", "mask", "steps", "curation"])
def test_a_program_in_numpy_answers_by_name(part: str) -> None:
    """The reference itself, and with a mistake: dicts of arrays, also where there is no single loss."""
    mistakes = {
        "local": "distill-centre-of-student",
        "mask": "mask-after-position",
        "steps": "distill-centre-mean-of-means",
        "curation": "curation-sublist-indices",
    }
    task = {"local": "objective", "mask": "objective", "steps": "recipe_steps", "curation": "curation"}[part]

    def answer(edits: Any) -> Any:
        return lambda inputs, settings: TASKS[task](reference(edits), inputs, settings)

    assert sr.check_recipe(answer(()), part, framework="numpy").verdict == "PASS"
    wrong = sr.check_recipe(answer(find(mistakes[part]).edits), part, framework="numpy")
    assert wrong.verdict == "FAIL" and mistakes[part] in [finding.id for finding in wrong.findings], wrong


def test_wrong_use_is_said() -> None:
    with pytest.raises(sr.UsageError, match="captions"):
        sr.check_recipe(caption_loss, "caption", framework="torch")
    with pytest.raises(sr.UsageError, match="scalar"):
        sr.check_recipe(lambda a, s: a["context"], "captions", framework="torch")
    with pytest.raises(sr.UsageError, match="known by its name"):
        sr.check_recipe(lambda a, s: {"nothing": np.zeros(1)}, "captions", framework="numpy")
    assert packaged().find("decoder/mixed").conventions["tasks"] == [1.0, 0.5, 0.25]
