"""A repair of a factor over ranks, followed as it stands, leads to PASS under the way that was judged."""

import re
from itertools import product

import numpy as np
import pytest

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from siglip_ref.check.diagnosis.blocks.faults import Fault
from siglip_ref.check.diagnosis.blocks.times import Times
from siglip_ref.report.blocks import repair_of

NAMES = ("loss", "image_embed", "text_embed", "log_scale", "bias")
GRADIENTS, ROWS, SCALARS = NAMES[1:], NAMES[1:3], NAMES[3:]
WAYS = tuple(product(("mean", "sum", "none"), ("local", "global")))
# by what, which tensors are multiplied; its entry where it has one
FACTORS = (
    (Times(1.0, 0, -1), NAMES, "ring-local-b2"),
    (Times(1.0, -1, -1), NAMES, "sum-vs-mean-vs-b2"),
    (Times(1.0, 1, 1), NAMES, "loss-not-divided"),
    (Times(2.0), NAMES, "both-directions-summed"),
    (Times(4.0), NAMES, "accum-loss-not-divided"),
    (Times(2.0, 0, -1), NAMES, "derived"),
    (Times(-1.0), NAMES, "derived"),
    (Times(0.37), NAMES, "derived"),
    (Times(1.0, 1), GRADIENTS, "grad-times-w"),
    (Times(1.0, 1), ROWS, "embed-grad-times-w"),
    (Times(1.0, -1), SCALARS, "scalar-grads-one-over-w"),
    (Times(1.0, 1), SCALARS, "derived"),
    (Times(3.0), SCALARS, "accum-cached-not-divided"),
    (Times(1.0, 0, 1), ("text_embed",), "derived"),
    (Times(1.0, -1), ("loss",), "derived"),
    (Times(1.0, -1), ("loss", "bias"), "derived"),
)


def due(way, world):
    """By what a global loss and final gradients are multiplied, to be right under this way."""
    reduce, value = way
    rows = float(world) if reduce == "mean" else 1.0
    numbers = 1 / world if reduce == "sum" else 1.0
    loss = 1 / world if value == "local" and reduce != "mean" else 1.0
    return dict(zip(NAMES, (loss, rows, rows, numbers, numbers), strict=True))


def check(way, *changes):
    """Of the ring, each change a function of W and b that gives factors by tensor."""

    def loss(image, text, log_scale, bias, comm):
        right = ring_sigmoid_loss(comm, image, text, log_scale, bias)
        by = [due(way, comm.size), *(change(comm.size, len(image)) for change in changes)]
        factors = [np.prod([one.get(name, 1.0) for one in by]) for name in NAMES]
        return tuple(np.asarray(one) * factor for one, factor in zip(right, factors, strict=True))

    return sr.check_ranks(
        loss, framework="numpy", reduce=way[0], value=way[1], scale="log", embeddings="unit", dtype="float64",
        ranks=ThreadComm.run, world_size=3,
    )  # fmt: skip


def wrong(times, tensors):
    return lambda world, b: dict.fromkeys(tensors, times.number * world**times.ranks * float(b) ** times.pairs)


def number_of(form, world, b):
    """2B, 1/W, -b/3."""
    above, _, below = form.partition("/")
    total = 1.0
    for side, sign in ((above, 1), (below or "1", -1)):
        number, letters = re.fullmatch(r"(-?[\d.e-]*)([WbB]*)", side).groups()
        letter = {"W": world, "b": b, "B": world * b}
        total *= np.prod([float(f"{number}1" if number in ("", "-") else number), *map(letter.get, letters)]) ** sign
    return total


def followed(repair):
    """What somebody does who reads it, and nothing else."""
    found = re.search(r"(multiply|divide) (.*?) by ([^\s,]+)", repair)
    do, what, form = found.groups()
    power = -1 if do == "divide" else 1
    named = [name for name in GRADIENTS if name in what] + ["loss"] * ("the value" in what)
    tensors = NAMES if what.startswith("the loss, and so all") else named
    return lambda world, b: dict.fromkeys(tensors, number_of(form, world, b) ** power)


CASES = [(way, *factor) for way in WAYS for factor in FACTORS]


@pytest.mark.parametrize(("way", "times", "tensors"), [case[:3] for case in CASES], ids=str)
def test_what_a_repair_says_undoes_the_factor(way, times, tensors):
    fault = Fault("factor", dict.fromkeys(tensors, ""), factor=times)
    repair = repair_of(fault, [fault], way)
    for world, b in ((2, 5), (3, 7)):
        made, undone = wrong(times, tensors)(world, b), followed(repair)(world, b)
        assert {name: made[name] * undone[name] for name in tensors} == pytest.approx(
            dict.fromkeys(tensors, 1.0), 1e-14
        )
        assert set(undone) == set(tensors)
    whole = tensors == NAMES
    assert not whole or ("whole batch" if way[1] == "global" else f'reduce="{way[0]}"') in repair


@pytest.mark.parametrize(("way", "times", "tensors", "id"), CASES, ids=str)
@pytest.mark.sampled(16, in_turn=True)
def test_a_factor_of_ranks_is_mended_by_what_its_repair_says(way, times, tensors, id):
    mistake = wrong(times, tensors)
    found = check(way, mistake).findings
    assert len(found) == 1 and found[0].id in (id, "convention"), found
    repaired = check(way, mistake, followed(found[0].repair))
    assert repaired.verdict == "PASS", (found[0].repair, repaired)


def test_a_story_of_a_factor_is_one_way_to_come_by_it():
    """What is seen is 1/b; whether blocks are divided by their pairs is not."""
    found = check(("mean", "local"), wrong(Times(1.0, 0, -1), NAMES)).findings[0]
    assert found.evidence.startswith("loss, ") and "; one way to come by it: each block is divided" in found.evidence
    assert "by b (b: the images of a rank, B/W)" in found.repair


def test_digits_that_are_left_out_are_spoken_of():
    found = check(("none", "global"), wrong(Times(float(np.log(2))), ["text_embed"])).findings[0]
    assert found.repair == "multiply the gradients of text_embed by 1.4427 (rounded to six digits)"
