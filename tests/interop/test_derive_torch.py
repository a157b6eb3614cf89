"""What losses in Torch compute, worked out: right ones are SigLIP's own, wrong ones are told exactly or not at all."""

from pathlib import Path

import derived_losses as new
import pytest
import torch
import torch_losses as known
from torch.nn import functional

import siglip_ref as sr
from siglip_ref.check.diagnosis.derive.derive import derive
from siglip_ref.check.diagnosis.derive.formula import Rows, siglip
from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.report.computes import in_words

PAGE = (Path(__file__).parents[2] / "docs/how-the-report-knows.md").read_text(encoding="utf-8")
LINEAR = {known.linear_scale, known.RIGHT[-1]}
RAW = {known.normalising: Rows("unit"), known.normalising_with_eps: Rows("unit + eps", 1e-8)}
SOME = (
    "mean over B x B", "the mean, times B / log(B)", "logits in float32",
    "tutorial", "margin of 0.3 on negatives", "three hardest negatives", "lower half detached",
    "hardest half of the others",
    "whole tiles of rows", "bias kept above -5", "random negatives", "targets of 1 and -1", "equal captions left out",
    "shift of softplus held", "the hardest quarter", "texts to steps of 1/127", "both sides cached by 16",
    "stable formula without |z|", "texts kept in bfloat16", "logits kept in float16", "scalars in bfloat16",
)  # fmt: skip


def subject(fn, linear=False):
    def call(x, y, s, b):
        leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (x, y, s, b)]
        loss = fn(*leaves)
        if loss.requires_grad:
            loss.backward()
        gradients = (None if leaf.grad is None else leaf.grad.numpy() for leaf in leaves)
        return LossAndGrads(loss.detach().numpy(), *gradients)

    return Subject(call, linear)


def told(name):
    fn, wanted = new.NEW[name]
    derived = derive(subject(fn), siglip())
    lines = in_words(derived)
    return derived, wanted is not None and any(wanted in line for line in lines), lines


@pytest.mark.parametrize("name", SOME)
@pytest.mark.sampled(3)
def test_what_is_in_no_catalogue_is_told_exactly(name):
    derived, right, lines = told(name)
    assert right == (new.NEW[name][1] is not None), lines
    assert derived.certain == right, lines


def diagonal_as_negative_too(x, y, t, b):
    z = new.logits(x, y, t, b)
    return -(functional.logsigmoid(z.diagonal()).sum() + functional.logsigmoid(-z).sum()) / len(z)


def test_images_that_are_compared_with_images_are_told():
    def two_views(x, y, t, b):
        z = t.exp() * x @ x.T + b
        return new.over(new.logits(x, y, t, b)) + functional.softplus(z)[~new.own(z)].sum() / len(z)

    derived = derive(subject(two_views), siglip())
    said = " ".join(in_words(derived))
    assert not derived.certain and "images are compared with images: the loss" in said
    assert said.endswith("what they are a part of is multiplied by it")


@pytest.mark.parametrize(
    ("within", "words"), [("labels", "multiply whole logits, as labels"), ("weights", "they weigh")]
)
def test_what_similarities_of_texts_become_is_told(within, words):
    def loss(x, y, t, b):
        z, own = new.logits(x, y, t, b), torch.eye(len(x)).to(x)
        by = 1 - own - y @ y.T * (1 - own)
        if within == "labels":
            return functional.softplus((by - own) * z, threshold=60).sum() / len(z)
        return ((by + own) * functional.softplus((1 - 2 * own) * z, threshold=60)).sum() / len(z)

    said = " ".join(in_words(derive(subject(loss), siglip())))
    assert "texts are compared with texts" in said and words in said, said


def test_pairs_that_count_as_both_are_told_as_both():
    """softplus(u) + softplus(-u) is 2 (softplus(u) - u / 2), too, in which no pair would be a positive."""
    derived = derive(subject(diagonal_as_negative_too), siglip())
    said = " ".join(in_words(derived))
    assert derived.certain and "sum over i = j of softplus(-(exp(log_scale) sim_ij + bias))" in said, said
    assert "none are summed" not in said and "0.5" not in said


def test_the_page_counts_them():
    assert f"{len(new.NEW)} wrong losses in Torch" in PAGE


@pytest.mark.nightly
def test_of_all_of_them_no_certain_sentence_is_false():
    found = {name: told(name) for name in new.NEW}
    false = {name: lines for name, (derived, right, lines) in found.items() if derived.certain and not right}
    assert not false, false
    exact = sum(right for _, right, _ in found.values())
    assert f"{exact} are identified exactly, {len(found) - exact} only measured" in PAGE


@pytest.mark.nightly
def test_nothing_is_invented_for_right_losses():
    for fn in known.RIGHT:
        rows = RAW.get(fn, Rows())
        derived = derive(subject(fn, fn in LINEAR), siglip(fn in LINEAR, rows))
        assert derived.certain and not derived.differences, (fn, derived)


@pytest.mark.parametrize("fn", [known.fused, known.chunked, known.RIGHT[-1]])
def test_some_right_losses_are_siglips_own(fn):
    derived = derive(subject(fn, fn in LINEAR), siglip(fn in LINEAR))
    assert derived.certain and not derived.differences


def test_a_report_says_what_a_loss_computes():
    """After a FAIL unasked; of a right loss where that is asked for."""
    report = sr.check_loss(new.NEW["margin after the scale"][0], "torch", scale="log", embeddings="unit")
    assert report.computes[0].startswith("your loss: 1/B sum over i = j") and "bias - 2" in report.computes[1]
    assert [finding.id for finding in report.findings] == ["derived"]
    assert "what it computes" in str(report)
    assert sr.check_loss(known.plain).computes == []
    assert sr.check_loss(known.plain, explain=True).computes[1] == "that is SigLIP's own"


def test_chunks_of_64_are_not_told_as_chunks_of_32():
    """Both leave 3 of 131 texts over: what a standard input cannot tell is asked of another."""
    report = sr.check_loss(known.chunk_forgotten, "torch", scale="log", embeddings="unit")
    assert "texts of whole chunks of 64, or all" in report.computes[0], report.computes
