"""What a loss over ranks computes, derived from its calls: who met whom, what lies with whom, and the proof of it."""

import json

import numpy as np
import pytest

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from siglip_ref.ops import pair_block
from siglip_ref.report.html import to_html
from siglip_ref.report.matrices import matrix, tables

HOW = {
    "framework": "numpy", "reduce": "none", "value": "global", "scale": "log", "embeddings": "unit",
    "dtype": "float64", "ranks": ThreadComm.run, "world_size": 4,
}  # fmt: skip


def gathered(shard, comm):
    """All ranks' rows."""
    mine, whole = (np.zeros((comm.size, *shard.shape), shard.dtype) for _ in range(2))
    mine[comm.rank] = shard
    comm.Allreduce(mine, whole)
    return list(whole)


def loss_of(
    met=lambda i, j, world: [(j, i == j)],
    lies=lambda i, j, world: j,
    factor=lambda world, b: {},
    weight=lambda i, j, world: 1.0,
):
    """A loss over ranks. met : whose texts rank i scores where those of j are due, and whether with matches; lies : who
    gets the gradient that rank i has of the texts of j; factor : by tensor; weight : of a block."""

    def fn(image, text, log_scale, bias, comm):
        images, texts = gathered(image, comm), gathered(text, comm)
        world, pairs = len(images), sum(map(len, images))
        total, d_image, d_text = np.zeros(3), np.zeros_like(image), np.zeros_like(text)
        for i in range(world):
            for j in range(world):
                for other, matches in met(i, j, world):
                    y = np.zeros_like(texts[j]) if other is None else texts[other]
                    own = np.eye(len(images[i]), len(y), dtype=bool) & matches
                    part = pair_block(images[i], y, log_scale, bias, own)
                    by = weight(i, j, world)
                    total += by * np.array([part.loss, part.d_log_scale, part.d_bias])
                    d_image += by * (i == comm.rank) * part.d_image_embed
                    d_text += by * (lies(i, j, world) == comm.rank) * part.d_text_embed
        found = {"loss": total[0], "image": d_image, "text": d_text, "scale": total[1], "bias": total[2]}
        times = factor(world, len(image))
        return tuple(np.asarray(times.get(name, 1.0) * value / pairs) for name, value in found.items())

    return fn


def check(loss, **how):
    return sr.check_distributed_loss(loss, **HOW | how)


def test_the_right_loss_is_said_to_be_right_and_only_where_that_is_asked():
    def ring(image, text, log_scale, bias, comm):
        return ring_sigmoid_loss(comm, image, text, log_scale, bias)

    report = check(ring, explain=True)
    assert report.verdict == "PASS" and not report.findings
    assert report.computes[0] == "your loss over ranks: images of every rank meet the texts of every rank once"
    assert report.computes[1].startswith("that is SigLIP's own") and "this reproduces your loss" in report.computes[-1]
    assert not tables(report.blocks) and {one.weight for one in report.blocks} == {1.0}
    assert check(ring).computes == []


WHOLE = dict.fromkeys(("loss", "image", "text", "scale", "bias"))
# what is wrong: (the loss, ids, what the report says, a repair)
WRONG = {
    "matches on rank 0 alone": (
        loss_of(met=lambda i, j, w: [(j, i == j == 0)]),
        ["derived"],
        "images of rank 1 meet once, and never as matches, the texts of rank 1",
        "labels are +1 on the diagonal of its own block",
    ),
    "remote blocks averaged": (
        loss_of(weight=lambda i, j, w: 1.0 if i == j else 1 / (w - 1)),
        ["derived"],
        "images of every rank meet 0.3333 times the texts of every other rank",
        "every block counts once, in the loss and in each gradient",
    ),
    "the own block once more after the last hop": (
        loss_of(met=lambda i, j, w: [(j, i == j)] + [(j, False)] * (i == j)),
        ["ring-own-block-double-counted"],
        "meet once with and once without matches their own texts",
        "remote hops are 1 to W - 1, neither 0 nor W",
    ),
    "a chunk that one rank never meets": (
        loss_of(met=lambda i, j, w: [] if (i, j) == (0, w - 1) else [(j, i == j)]),
        ["derived"],
        "images of rank 0 never meet the texts of rank 3",
        "every rank scores the texts of every rank once",
    ),
    "divided by b": (
        loss_of(factor=lambda world, b: dict.fromkeys(WHOLE, world)),
        ["derived"],
        "W times the right one",
        "divided by b instead of B: multiply by 1/W",
    ),
    "divided by W again": (
        loss_of(factor=lambda world, b: dict.fromkeys(WHOLE, 1 / world)),
        ["derived"],
        "1/W times the right one",
        "multiply by W",
    ),
    "gradients stay": (
        loss_of(lies=lambda i, j, w: i),
        ["derived"],
        "every block's gradient stays on the rank that computed it",
        "bring every gradient to the rank that owns its texts",
    ),
    "matches at the hop after the first": (
        loss_of(met=lambda i, j, w: [(j, (j - i) % w < 2)]),
        ["derived"],
        "images of rank r meet once as if they matched the texts of rank r + 1",
        "and -1 everywhere else",
    ),
    "texts of zeros at the last hop": (
        loss_of(met=lambda i, j, w: [(None if (j - i) % w == w - 1 else j, i == j)]),
        ["ring-received-buffer-zero"],
        "images of rank r meet zeros in place of the texts of rank r + 3",
        "wait for the receive",
    ),
    "a hop missing, and a mean over all pairs": (
        loss_of(
            met=lambda i, j, w: [] if (j - i) % w == w - 1 else [(j, i == j)],
            factor=lambda world, b: dict.fromkeys(WHOLE, 1 / (world * b)),
        ),
        ["sum-vs-mean-vs-b2", "ring-hop-missing"],
        "images of rank r never meet the texts of rank r + 3",
        "",
    ),
    "matches in every block, and a mean over all pairs": (
        loss_of(met=lambda i, j, w: [(j, True)], factor=lambda world, b: dict.fromkeys(WHOLE, 1 / (world * b))),
        ["sum-vs-mean-vs-b2", "remote-diagonal-as-positive"],
        "as if they matched the texts of every other rank",
        "",
    ),
    "the own block once more, and a mean over all pairs": (
        loss_of(
            met=lambda i, j, w: [(j, True), (j, False)] if i == j else [(j, False)],
            factor=lambda world, b: dict.fromkeys(WHOLE, 1 / (world * b)),
        ),
        ["sum-vs-mean-vs-b2", "ring-own-block-double-counted"],
        "their own texts",
        "",
    ),
    "no remote block, and a mean over all pairs": (
        loss_of(
            met=lambda i, j, w: [(j, True)] if i == j else [],
            factor=lambda world, b: dict.fromkeys(WHOLE, 1 / (world * b)),
        ),
        ["sum-vs-mean-vs-b2", "no-cross-rank-negatives"],
        "never meet the texts of every other rank",
        "",
    ),
    "texts' gradient halved at every hop but the first": (
        loss_of(factor=lambda world, b: {"text": 0.37}),
        ["derived"],
        "text_embed: 0.37 times the right one",
        "multiply the gradients of text_embed by 2.7027",
    ),
}


def test_a_buffer_of_zeros_of_one_rank_through_which_no_gradient_goes():
    """As with zeros_like in a framework: the texts learn nothing of that block, loss and bias count it all the same."""
    hole = loss_of(met=lambda i, j, w: [(None if (i, j, w) == (1, 0, 3) else j, i == j)])
    lost = loss_of(met=lambda i, j, w: [] if (i, j, w) == (1, 0, 3) else [(j, i == j)])

    def fn(*arguments):
        found = hole(*arguments)
        return (*found[:2], lost(*arguments)[2], *found[3:])

    report = check(fn, world_size=3)
    assert [finding.id for finding in report.findings] == ["ring-received-buffer-zero"], report


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_wrong_is_worked_out_and_proven(name, dtype):
    loss, ids, words, repair = WRONG[name]
    report = check(loss, dtype=dtype)
    assert [finding.id for finding in report.findings] == ids, report
    assert any(words in line for line in report.computes), report.computes
    assert repair in report.findings[0].repair
    assert "this reproduces your loss at held-out inputs (40 tensors)" in report.computes[-1]
    assert all("100%" in finding.evidence for finding in report.findings)


def test_the_matrices_stand_in_every_form_of_the_report():
    loss = loss_of(
        met=lambda i, j, w: [] if (i, j) == (0, 2) else [(j, i == j)], lies=lambda i, j, w: 1 if (i, j) == (3, 2) else j
    )
    report = check(loss)
    assert ["0", "1", "1", ".", "1"] in [row.split() for row in str(report).splitlines()]
    assert matrix(report.blocks, "loss", 4)[0] == ["1", "1", ".", "1"]
    held = matrix(report.blocks, "text_embed", 4)
    assert held[1] == ["1", "1", "1", "1 + 1 of 2's"] and held[2] == [".", "1", "1", "."]
    titles = [title for title, _ in tables(report.blocks)]
    assert titles[0].startswith("who met whom, 4 ranks") and all(title in to_html(report) for title in titles)
    cells = json.loads(json.dumps(report.to_dict()))["blocks"]
    assert {"kind": "held", "tensor": "text_embed", "world": 4, "rank": 1, "images": 3, "texts": 2,
            "part": "negatives", "weight": 1.0} in cells  # fmt: skip


def test_what_holds_at_the_experiments_alone_has_no_name():
    """Right blocks where they are read, and something else where nobody looked: measured, not certain."""
    right, wrong = loss_of(), loss_of(factor=lambda world, b: dict.fromkeys(WHOLE, 1.5))

    def fn(image, text, log_scale, bias, comm):
        found = (wrong if bias < -9 else right)(image, text, log_scale, bias, comm)
        return (*found[:2], 2 * found[2], *found[3:])

    report = check(fn)
    assert report.computes[0].startswith("measured: ") and report.computes[1].startswith("not certain: ")
    assert "at init" in report.computes[1]
    assert "derived" not in [finding.id for finding in report.findings]


@pytest.mark.parametrize("scale", ["log", "auto"])
def test_texts_that_were_kept_from_the_call_before_are_told(scale):
    kept = [{} for _ in range(4)]

    def stale(image, text, log_scale, bias, comm):
        now = gathered(text, comm)
        key = text.shape, comm.size
        texts = kept[comm.rank].get(key, now)
        kept[comm.rank][key] = now
        texts[comm.rank] = text
        total, d_image, d_text = np.zeros(3), np.zeros_like(image), np.zeros_like(text)
        for rank, y in enumerate(texts):
            part = pair_block(image, y, log_scale, bias, np.eye(len(image), dtype=bool) & (rank == comm.rank))
            total += [part.loss, part.d_log_scale, part.d_bias]
            d_image += part.d_image_embed
            d_text += part.d_text_embed * (rank == comm.rank)
        sums = np.zeros_like(total)
        comm.Allreduce(total, sums)
        pairs = comm.size * len(image)
        return sums[0] / pairs, d_image / pairs, d_text / pairs, sums[1] / pairs, sums[2] / pairs

    report = check(stale, scale=scale)
    words = "loss, image_embed, log_scale, bias: texts of other ranks are those of the call before, of the same shape"
    assert any(words in line for line in report.computes) and "this reproduces" in report.computes[-1]
    assert {one.id for one in report.findings} == {"derived", "gather-detached-cross-terms"}


def test_what_is_no_sum_of_blocks_is_not_called_one():
    def fn(image, text, log_scale, bias, comm):
        found = loss_of()(image, text, log_scale, bias, comm)
        return (found[0], found[1] * np.arange(1, 1 + len(image))[:, None], *found[2:])

    report = check(fn)
    assert not any(line.startswith("your loss") for line in report.computes)
    assert [finding.id for finding in report.findings] == ["unknown"]


def test_a_gradient_that_is_not_finite_somewhere_proves_nothing():
    def fn(image, text, log_scale, bias, comm):
        found = loss_of(factor=lambda world, b: {"text": 2.0})(image, text, log_scale, bias, comm)
        return found if bias > -9 or comm.rank else (*found[:2], found[2] * np.nan, *found[3:])

    report = check(fn)
    assert report.verdict == "FAIL"
    assert not any(line.startswith("your loss") for line in report.computes)


CHANGED = {
    "the bias in d log_scale": (
        lambda found, bias: (*found[:3], found[3] + bias * found[4], found[4]),
        "log_scale: the sum of slope x logit over all pairs",
    ),
    "scalars exchanged": (lambda found, bias: (*found[:3], found[4], found[3]), "log_scale: the gradient of bias"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_scalar_that_is_another_sum_is_told_as_that(name):
    change, words = CHANGED[name]

    def fn(image, text, log_scale, bias, comm):
        return change(loss_of()(image, text, log_scale, bias, comm), bias)

    report = check(fn)
    assert any(line.startswith("not SigLIP's") and words in line for line in report.computes), report.computes


def test_matches_in_another_order_than_the_texts_are_told():
    def fn(image, text, log_scale, bias, comm):
        found = loss_of()(image, text[::-1], log_scale, bias, comm)
        return (*found[:2], found[2][::-1], *found[3:])

    lines = check(fn).computes
    assert lines[0].startswith("your loss over ranks") and "where p = r b + b - 1 - i" in lines[1], lines
