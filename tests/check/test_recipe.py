"""check_recipe on a caption loss in plain Torch: the right one, six typical mistakes, and two other conventions."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import siglip_ref as sr
from siglip_ref.mistakes import find, reference
from siglip_ref.vectors.store import packaged
from siglip_ref.vectors.tasks import TASKS

HEADS = 2


def _attention(x: Any, z: Any, w: dict[str, Any], prefix: str, seen: Any) -> Any:
    def split(y: Any) -> Any:
        return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    query, key, value = (split(y @ w[f"{prefix}/{p}/kernel"]) for y, p in ((x, "q"), (z, "k"), (z, "v")))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2) @ w[f"{prefix}/out/kernel"]


def _norm(x: Any, w: dict[str, Any], name: str) -> Any:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}/gamma"], w.get(f"{name}/beta"), 1e-6)


def caption_loss(inputs: dict[str, Any], settings: Any, mistake: str = "") -> Any:
    """A decoder as one would write it; `mistake` makes one."""
    w = {name.removeprefix("w/"): value for name, value in inputs.items() if name.startswith("w/")}
    labels, counted, parallel = inputs["labels"], inputs["counted"], inputs["parallel"]
    context = inputs["context"].detach() if mistake == "caption-tokens-detached" else inputs["context"]
    if mistake == "caption-mode-of-batch":
        parallel = parallel[:1].expand(len(labels))
    mask_id = 0 if mistake == "caption-mask-id-start" else len(w["token"]) - 1
    before = labels if mistake == "caption-no-shift" else functional.pad(labels[:, :-1], (1, 0))
    x = w["token"][torch.where(parallel[:, None], mask_id, before)] + w["position"]
    seen = torch.ones(9, 9, dtype=torch.bool).tril() | parallel[:, None, None]
    if mistake == "padding":
        seen = seen & ((labels != 0) | (torch.arange(9) == 0))[:, None]
    for block in ("block00", "block01"):
        own = {name.removeprefix(f"{block}/"): value for name, value in w.items() if name.startswith(block)}
        normed = _norm(x, own, "norm1")
        x = x + _attention(normed, normed, own, "self", seen)
        x = x + _attention(_norm(x, own, "norm2"), context, own, "cross", None)
        hidden = functional.gelu(_norm(x, own, "norm3") @ own["mlp/in/kernel"], approximate="tanh")
        x = x + hidden @ own["mlp/out/kernel"]
    logits = _norm(x, w, "norm") @ w["out/kernel"] + w["out/bias"]
    if mistake == "caption-pad-counted":
        counted = torch.ones_like(counted)
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * counted
    if mistake == "tokens":
        return losses.sum() / counted.sum()
    return (losses.sum(1) / counted.sum(1).clamp(min=1)).mean()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_right_caption_loss_passes_and_its_choices_are_printed(dtype: str) -> None:
    report = sr.check_recipe(caption_loss, "captions", dtype=dtype)
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


@pytest.mark.parametrize(("mistake", "words"), [("padding", 'pad_keys="hidden"'), ("tokens", 'mean="token"')])
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
