"""The sixteen answers of docs/exercises/ring.md, from runs and counts."""

import math
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import siglip_ref as sr
from mpi import loss
from mpi.batch import Job
from mpi.comm import ThreadComm
from mpi.cost import traffic
from mpi.job import run
from mpi.loss import ring_sigmoid_loss
from mpi.watchdog.progress import Progress

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from ring_breaks import BREAKS, broken_modules, run_toy  # noqa: E402  # found by the line above

PAGE = (ROOT / "docs" / "exercises" / "ring.md").read_text(encoding="utf-8")


def printed(number):
    """What stands in bold in the answer."""
    return re.findall(
        r"\*\*(.+?)\*\*", re.search(rf"\*\*{number}\.\*\*.*?</summary>(.*?)</details>", PAGE, re.DOTALL)[1]
    )


def events(world, scheme="blocking"):
    """A run of the toy, two pairs a rank."""
    job = Job(2 * world, 3, scheme, check=False)
    progress = Progress(world)
    return ThreadComm.run(world, lambda comm: run(job, comm, progress, comm.rank), timeout=60)[0].events


def received(world, scheme="blocking"):
    return [e for e in events(world, scheme) if e.kind == "recv"]


def broken(name):
    return broken_modules(next(one for one in BREAKS if one.name == name))


def holds():
    return [f"rank {next(e.chunk for e in events(4) if e.kind == 'block' and (e.rank, e.hop) == (1, 3))}"]


def born():
    first = min(
        (e for e in events(4) if e.kind == "send" and (e.what, e.chunk) == ("gradient", 2)), key=lambda e: e.hop
    )
    block = next(e for e in events(4) if e.kind == "block" and (e.rank, e.chunk) == (first.rank, 2))
    return [f"rank {block.rank}, at hop {block.hop}"]


def alone():
    kinds = {hop: {e.what for e in received(4) if e.hop == hop} for hop in range(1, 5)}
    return [f"round {hop}" for what in ("chunk", "gradient") for hop, whats in kinds.items() if whats == {what}]


def rounds():
    """A rank waits once a hop for what comes together, in an autograd ring once for texts and once for gradients."""
    one_trip = {e.hop for e in received(8)}
    autograd = {(e.what, e.hop) for e in received(8, "autograd-like")}
    return [f"{len(one_trip)} and {len(autograd)}"]


def messages():
    counted = {sum(e.kind == "send" and e.rank == rank for e in events(8)) for rank in range(8)}
    assert counted == {traffic("blocking", [2] * 8, 0, 3).messages}
    return [str(counted.pop())]


def size(scheme="blocking"):
    return 8 * traffic(scheme, [256] * 4, 0, 64).numbers


def last_sum():
    return [str([e for e in events(4) if e.kind == "sum" and e.rank == 0][-1].bytes)]


def owners():
    owner = {e.rank for e in received(4) if e.what == "gradient" and e.chunk == 3 and e.hop == 4}
    images = {e.rank for e in events(4) if e.kind == "block" and e.chunk == 3}
    return [f"{len(owner)} and {len(images)}"]


def missing():
    _, meetings = run_toy(broken("forget"))
    return [str(64 - 4 * len({(rank, owner) for rank, _, owner, actual, _ in meetings if actual >= 0}))]


def zeros():
    _, meetings = run_toy(broken("early"))
    blocks = {round(value, 12) for *_, actual, value in meetings if actual == -1}
    assert len(blocks) == 1 and abs(min(blocks) - 4 * math.log(8 / 7)) <= 1e-12
    return [f"{min(blocks):.4f}"]


def averaged():
    right, wrong = run_toy(loss)[0], run_toy(broken("average"))[0]
    factors = {
        name: float(np.sum(getattr(wrong[0], name) / getattr(right[0], name)) / np.size(getattr(right[0], name)))
        for name in ("d_image_embed", "d_text_embed", "loss")
    }
    assert abs(factors["d_image_embed"] - factors["d_text_embed"]) <= 1e-13
    return [str(Fraction(factors[name]).limit_denominator(100)) for name in ("d_text_embed", "loss")]


def handed():
    """A linear tower on four ranks: by what the ring's gradients must be multiplied, so that the mean, or the sum, over
    ranks of the tower's gradients is one process's."""
    rng = np.random.default_rng(0)
    inputs, kernel, texts = rng.normal(size=(8, 5)), rng.normal(size=(5, 3)), rng.normal(size=(8, 3))
    whole = inputs.T @ sr.sigmoid_loss(inputs @ kernel, texts, 0.3, -1.0).d_image_embed

    def work(comm):
        mine = slice(2 * comm.rank, 2 * comm.rank + 2)
        embedded = ring_sigmoid_loss(comm, inputs[mine] @ kernel, texts[mine], 0.3, -1.0).d_image_embed
        return inputs[mine].T @ embedded

    parts = np.array(ThreadComm.run(4, work))
    factors = [float(np.sum(whole * found) / np.sum(found * found)) for found in (parts.mean(0), parts.sum(0))]
    for factor, found in zip(factors, (parts.mean(0), parts.sum(0)), strict=True):
        assert np.abs(factor * found - whole).max() <= 1e-13 * np.abs(whole).max()
    return [" and ".join(f"{factor:.0f}" for factor in factors)]


def local_divisor():
    right, wrong = run_toy(loss)[0], run_toy(broken("local"))[0]
    factors = [
        np.ravel(getattr(wrong[0], name)) / np.ravel(getattr(right[0], name))
        for name in ("loss", "d_image_embed", "d_text_embed", "d_log_scale", "d_bias")
    ]
    assert all(np.abs(factor - 4).max() <= 1e-12 for factor in factors)
    return ["4"]


def unequal():
    """What the blocks must be divided by for the loss, and the largest message, in texts."""
    job = Job(6, 3, "blocking", unequal=True, check=False)
    progress = Progress(3)
    found = ThreadComm.run(3, lambda comm: run(job, comm, progress, comm.rank), timeout=60)[0]
    assert list(found.sizes) == [1, 2, 3]
    divisor = sum(e.loss for e in found.events if e.kind == "block") / found.loss
    largest = max(e.bytes for e in found.events if e.kind == "recv") / (3 * 8)
    return [f"{divisor:.0f}", f"{largest:.0f}"]


def under_way():
    """Messages to rank 0 that were asked for before a block and had not come when it began."""
    counts = []
    for scheme in ("overlapped", "blocking"):
        job = Job(8, 3, scheme, tile=1, check=False)
        progress = Progress(4)
        found = ThreadComm.run(4, lambda comm, job=job, progress=progress: run(job, comm, progress, comm.rank))[
            0
        ].events
        mine = [e for e in found if e.rank == 0]
        blocks = [e for e in mine if e.kind == "block"]
        counts.append(sum(any(e.start <= b.start < e.end for b in blocks) for e in mine if e.kind == "recv"))
    return [f"{counts[0]} and {counts[1]}"]


ANSWERS = {
    1: holds,
    2: born,
    3: alone,
    4: rounds,
    5: messages,
    6: lambda: [f"{size():,}"],
    7: lambda: [f"{size('autograd-like') - size():,}"],
    8: last_sum,
    9: owners,
    10: missing,
    11: zeros,
    12: averaged,
    13: handed,
    14: local_divisor,
    15: unequal,
    16: under_way,
}


def test_there_are_sixteen_questions_and_each_has_an_answer():
    assert [int(number) for number in re.findall(r"^\*\*(\d+)\.\*\* ", PAGE, re.MULTILINE)] == list(ANSWERS)
    assert PAGE.count("<summary>Answer</summary>") == len(ANSWERS) == 16


@pytest.mark.parametrize("number", ANSWERS)
def test_the_answer_is_what_a_run_says(number):
    assert ANSWERS[number]() == printed(number)
