"""What a loss over ranks computes, derived from its calls: who met whom, what lies with whom, and the proof of it."""

import json

import numpy as np
import pytest

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from siglip_ref.arithmetic.rounded import FORMATS, round_to
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
        "due on every rank is the value of the whole batch, 1/B times the sum over all pairs: multiply the loss",
    ),
    "divided by W again": (
        loss_of(factor=lambda world, b: dict.fromkeys(WHOLE, 1 / world)),
        ["derived"],
        "1/W times the right one",
        "and so all its gradients, by W",
    ),
    "gradients stay": (
        loss_of(lies=lambda i, j, w: i),
        ["derived"],
        "every block's gradient stays on the rank that computed it",
        "bring every gradient to the rank that owns the rows",
    ),
    "gradients move on": (
        loss_of(lies=lambda i, j, w: (2 * i - j) % w),
        ["derived"],
        "a remote block's gradient moves on in place of back",
        "source and destination change places",
    ),
    "matches among the texts of rank 0": (
        loss_of(met=lambda i, j, w: [(j, j == 0)]),
        ["label-rank-offset"],
        "meet the texts of every rank once; loss, image_embed, text_embed, log_scale, bias: image i of rank r matches "
        "global text p, where p = i, not r b + i",
        "positives of rank r stand in columns r b to (r + 1) b",
    ),
    "scale and bias summed twice": (
        loss_of(factor=lambda world, b: {"scale": world, "bias": world}),
        ["derived"],
        "log_scale, bias: W times the right one",
        "multiply the gradients of log_scale, bias by 1/W",
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
        "divide the gradients of text_embed by 0.37",
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


@pytest.mark.parametrize("reduce", ["mean", "sum", "none"])
@pytest.mark.parametrize("value", ["local", "global"])
def test_what_is_due_goes_by_what_was_declared_and_the_repair_mends_it(reduce: str, value: str) -> None:
    def loss(image, text, log_scale, bias, comm, times):
        right = ring_sigmoid_loss(comm, image, text, log_scale, bias)  # the whole value, gradients that are final
        world = comm.size
        rows, numbers = world if reduce == "mean" else 1, 1 / world if reduce == "sum" else 1
        by = (1 / world if value == "local" and reduce != "mean" else 1, rows, rows, numbers, numbers)
        return tuple(np.asarray(one) * factor * times(world) for one, factor in zip(right, by, strict=True))

    def said(times):
        how = {"reduce": reduce, "value": value, "world_size": 3}
        return check(lambda *given: loss(*given, times), **how)

    # three times is right under no other way
    report = said(lambda world: 3 / world)
    due = {"global": "due on every rank is the value of the whole batch"}.get(value, "sum over its share of all pairs")
    assert due in report.findings[0].repair and ("W/B" in report.findings[0].repair) == (
        (reduce, value) == ("mean", "local")
    )
    assert report.findings[0].repair.endswith("multiply the loss, and so all its gradients, by W/3")
    assert said(lambda world: 3 / world * (world / 3)).verdict == "PASS"  # the wrong one by W/3, as was said


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


def by_hand(rows=None, slopes=None, counts=None, scalars=None, pairs=None):
    """A loss over ranks by hand. rows : whose texts the slopes of rank i's block j are multiplied by; slopes : how
    remote ones come to the texts' gradient; counts : what multiplies a block; scalars : the blocks that the two
    numbers' gradients count; pairs : of a remote block those that count."""

    def fn(image, text, log_scale, bias, comm):
        images, texts, scale = gathered(image, comm), gathered(text, comm), np.exp(log_scale)
        world, each = len(images), len(image)
        total, d_image, d_text = np.zeros(3), np.zeros_like(image), np.zeros_like(text)
        for i in range(world):
            for j in range(world):
                own = np.eye(each, dtype=bool) & (i == j)
                logits = scale * images[i] @ texts[j].T + bias
                inside = np.ones((each, each), bool) if pairs is None or i == j else pairs(each)
                times = inside * (counts(i, j, world, each, scale) if counts else 1.0)
                value = times * np.logaddexp(0, np.where(own, -1, 1) * logits)
                slope = times * np.where(own, -1, 1) / (1 + np.exp(-np.where(own, -1, 1) * logits))
                held = scalars is None or scalars(i, j, world)
                total += value.sum(), held * (slope * (logits - bias)).sum(), held * slope.sum()
                d_image += (i == comm.rank) * scale * slope @ texts[rows(i, j, world) if rows else j]
                halved = 0.5 if "halved" in str(slopes) and i != j else 1.0
                part = halved * scale * (slope if slopes == "as they are" and i != j else slope.T) @ images[i]
                d_text += (j == comm.rank) * (round_to(part, FORMATS["bfloat16"]) if "rounded" in str(slopes) else part)
        return tuple(np.asarray(value / world / each) for value in (total[0], d_image, d_text, *total[1:]))

    return fn


BY_HAND = {
    "texts of the last hop in the buffer": (
        {"rows": lambda i, j, w: j if i == j else (i + 1) % w},
        "multiplied are the slopes of the blocks with the texts of rank r + 2, r - 1 by the texts of rank r + 1",
    ),
    "slopes not transposed": (
        {"slopes": "as they are"},
        "text_embed: in remote blocks the slopes come to it transposed",
    ),
    "texts' gradients in bfloat16": ({"slopes": "rounded"}, "text_embed: its parts are rounded to bfloat16"),
    "and halved": ({"slopes": "rounded, halved"}, "text_embed: all remote blocks counted 0.5 (1/2) times"),
    "mean over each remote block": (
        {"counts": lambda i, j, w, b, t: 1 if i == j else 1 / b},
        "bias: all remote blocks: 1/b times",
    ),
    "scaled again at each hop": (
        {"counts": lambda i, j, w, b, t: t ** ((j - i) % w)},
        "the texts of rank r + 2: t^2 times",
    ),
    "a balanced loss": (
        {"counts": lambda i, j, w, b, t: np.where(np.eye(b, dtype=bool) & (i == j), w * b - 1.0, 1.0)},
        "positives of all blocks: (B - 1) times",
    ),
    "scalars of rank 0 alone": (
        {"scalars": lambda i, j, w: i == 0},
        "log_scale, bias: the images of rank 1, the images of rank 2, the images of rank 3 missing",
    ),
    "scalars of the first and the last hop": (
        {"scalars": lambda i, j, w: (j - i) % w in (0, w - 1)},
        "log_scale, bias: the texts of rank r + 1, the texts of rank r + 2 missing",
    ),
    "half of the others' texts": (
        {"pairs": lambda b: np.arange(b) < np.full((b, 1), b // 2)},
        "in remote blocks, what counts is: pairs first half of the texts",
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_block_by_block_mistake_is_told_in_a_form(name):
    how, words = BY_HAND[name]
    lines = check(by_hand(**how)).computes
    assert lines[0].startswith("your loss over ranks") and any(words in line for line in lines[1:]), lines


def test_by_hand_is_right():
    assert check(by_hand()).verdict == "PASS"


@pytest.mark.parametrize("labels", [False, True])
def test_what_uneven_shards_leave_out_and_divide_by_is_told_together(labels):
    """Texts of others cut to the shortest shard, or labels at the rank times its own pairs, and each rank's mean: right
    where all shards are as long."""

    def fn(image, text, log_scale, bias, comm):
        sizes = np.zeros(comm.size)
        mine = np.zeros(comm.size)
        mine[comm.rank] = len(image)
        comm.Allreduce(mine, sizes)
        size, start = sizes.astype(int), np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        whole = [np.zeros((start[-1], image.shape[1])) for _ in range(2)]
        for rows, every in zip((image, text), whole, strict=True):
            padded = np.zeros_like(every)
            padded[start[comm.rank] : start[comm.rank + 1]] = rows
            comm.Allreduce(padded, every)
        total, d_image, d_text = np.zeros(3), np.zeros_like(image), np.zeros_like(text)
        for i in range(comm.size):
            for j in range(comm.size):
                end = start[j + 1] if i == j or labels else start[j] + size.min()
                x, y = whole[0][start[i] : start[i + 1]], whole[1][start[j] : end]
                own = np.eye(len(x), len(y), dtype=bool) & (i == j)
                if labels:
                    own = np.eye(len(x), len(y), i * size[i] - start[j], dtype=bool)
                part = pair_block(x, y, log_scale, bias, own)
                total += np.array([part.loss, part.d_log_scale, part.d_bias]) / size[i]
                if i == comm.rank:
                    d_image += part.d_image_embed / size[i]
                if j == comm.rank:
                    d_text[: end - start[j]] += part.d_text_embed / size[i]
        return tuple(np.asarray(found / comm.size) for found in (total[0], d_image, d_text, *total[1:]))

    words = (
        "image i of rank r matches global text r b + i, b: the own rank's pairs"
        if labels
        else "texts of other ranks beyond the shortest shard's are left out"
    )
    line = check(fn, unequal=True).computes[1]
    assert f"where shards are unequal, {words} and every block is divided by W times" in line, line


def test_a_repair_of_a_factor_holds_where_the_rest_is_mended_and_one_of_the_value_speaks_of_it():
    """A gradient that every rank has the mean of needs no factor once it is its owner's alone."""

    def averaged(*arguments):
        loss, image, text, scale, bias = loss_of()(*arguments)
        return loss, image, sum(gathered(text, arguments[-1])) / arguments[-1].size, scale, bias

    def of_one_block(*arguments):
        return (loss_of(met=lambda i, j, w: [(j, True)] * (i == j))(*arguments)[0], *loss_of()(*arguments)[1:])

    repairs = [finding.repair for finding in check(averaged).findings]
    assert repairs[0] == "multiply the gradients of text_embed by W, if that is still so when the rest is mended", (
        repairs
    )
    repair = check(of_one_block).findings[0].repair
    assert repair.startswith("the value is the sum over all blocks of all ranks"), repair
