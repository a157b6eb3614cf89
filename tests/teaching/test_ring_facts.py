"""What the pages of the ring assert in words, computed: whose gradient is left over, what memory consists of, which
exchange is which, and whether a repair repairs."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpi.batch import Job, bias_of, make_batch
from mpi.comm import ThreadComm
from mpi.cost import memory
from mpi.job import run
from mpi.loss import ring_sigmoid_loss
from mpi.watchdog.progress import Progress
from siglip_ref.mistakes import CATALOGUE, find, reference
from siglip_ref.model.procedures import distributed_loss
from siglip_ref.model.specification import chosen
from siglip_ref.ops import pair_block

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from ring_breaks import BREAKS, PAIRS, WIDTH, WORLD, broken_modules, run_toy  # noqa: E402  # found by the line above

LESSON, PAGE, EXERCISES, HANDOUT = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("ring.md", "ring_page/page.html", "exercises/ring.md", "ring_page/handout.html")
)
B, EACH = PAIRS, PAIRS // WORLD


def words(text):
    """On one line, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text)).replace("\u2212", "-")


def broken(name):
    return next(one for one in BREAKS if one.name == name)


def test_without_the_move_home_a_rank_adds_the_gradient_of_its_left_neighbours_texts():
    job = Job(PAIRS, WIDTH, "blocking")
    images, texts = (np.split(rows, WORLD) for rows in make_batch(job, PAIRS))
    parts = [[None] * WORLD for _ in range(WORLD)]  # of each chunk's gradient, what each rank's images give
    for rank in range(WORLD):
        for owner in range(WORLD):
            match = np.eye(EACH, dtype=bool) & (rank == owner)
            block = pair_block(images[rank], texts[owner], np.array(job.log_scale), np.array(bias_of(job)), match)
            parts[owner][rank] = block.d_text_embed / B
    found, _ = run_toy(broken_modules(broken("astray")))
    sides = set()
    for rank, result in enumerate(found):
        strange = result.d_text_embed - parts[rank][rank]
        others = [sum(parts[owner]) - parts[owner][owner] for owner in range(WORLD)]
        owner = min(range(WORLD), key=lambda one: np.abs(strange - others[one]).max())
        assert np.abs(strange - others[owner]).max() <= 1e-14
        sides.add({WORLD - 1: "left", 1: "right"}[(owner - rank) % WORLD])
    side = sides.pop()
    assert not sides
    assert f"which belongs to its {side} neighbour's texts" in words(LESSON)
    assert f"the other ranks' part belongs to the {side} neighbour" in words(LESSON)
    assert f"of its {side} neighbour's texts" in broken("astray").told


def events(world, scheme="blocking"):
    job, progress = Job(2 * world, 3, scheme, check=False), Progress(world)
    return ThreadComm.run(world, lambda comm: run(job, comm, progress, comm.rank), timeout=60)[0].events


@pytest.mark.parametrize("world", [2, 3, 4])
def test_hops_exchanges_and_the_move_home(world):
    mine = [event for event in events(world) if event.rank == 0]
    assert sorted(event.hop for event in mine if event.kind == "block") == list(range(world))
    assert sorted(e.hop for e in mine if e.kind == "recv" and e.what == "chunk") == list(range(1, world))
    moves = [e for e in mine if e.kind == "recv" and e.what == "gradient"]
    assert len(moves) == world - 1  # they begin at hop 1; the last of them is the move home
    assert [(e.hop, e.chunk) for e in moves][-1] == (world, 0)
    assert [e.bytes for e in mine if e.kind == "sum"] == [11 * world * 8, 3 * 8]
    assert "one sum of 11 W whole numbers of 8 bytes, the totals are three numbers of 8 bytes" in words(LESSON)
    assert "hops 0 to W - 1: at each, every rank computes one block" in words(LESSON)
    assert "before each of the hops 1 to W - 1, so W - 1 of them" in words(LESSON)


# The last hop of what? The hop W - 1, the last exchange of texts, the move home: each has a name, and no other.
AMBIGUOUS = re.compile(r"last (hop|move|message)|last exchange(?! of texts)|exchanges?(?! (of )?texts)\b")


def test_each_has_one_name():
    said = [LESSON, EXERCISES, HANDOUT, words(PAGE)]
    said += [text for one in BREAKS for text in (one.title, one.told, one.here, one.brief)]
    across = [mistake for mistake in CATALOGUE.values() if mistake.kind == "across ranks"]
    said += [text for mistake in across for text in (mistake.text, mistake.shows, mistake.repair)]
    said += [(ROOT / "siglip_ref" / "report" / "blocks.py").read_text(encoding="utf-8")]
    assert [found[0] for text in said for found in AMBIGUOUS.finditer(re.sub(r"\s+", " ", text))] == []


def test_what_memory_consists_of():
    world, b, tile = 64, 512, 128
    for dim in (64, 1152):
        block = 5 * tile * tile + 5 * tile * dim
        held = {name: memory(name, world * b, world, dim, tile) for name in ("blocking", "allgather", "autograd-like")}
        assert held["blocking"] == 8 * b * dim + block == memory("blocking", 2 * world * b, 2 * world, dim, tile)
        assert held["allgather"] - block == 2 * world * b * dim + 2 * b * dim  # and two of its own
        logits = held["autograd-like"] - (world + 2) * b * dim
        assert world * b * b <= logits <= 1.25 * world * b * b  # with the matches, a byte each
        assert (held["autograd-like"] < held["allgather"]) == (b < dim)
    for text in (LESSON, PAGE):
        text = re.sub(" · ", " ", words(text))
        assert "eight arrays of b D numbers" in text and "whatever W is" in text
        assert "W chunks and W gradients" in text and "W-1 chunks and W blocks" in text.replace("W - 1", "W-1")
        assert "if b is smaller than D, and more if it is larger" in text.replace("D, more", "D, and more")


def matches(module):
    """Pairs that a ring counts as matches, all ranks together."""
    job = Job(PAIRS, WIDTH, "blocking")
    images, texts = (np.split(rows, WORLD) for rows in make_batch(job, PAIRS))
    plain, counted = chosen(None), []

    def block(x, y, log_scale, bias, match):
        counted.append(int(match.sum()))
        return plain.pair_block(x, y, log_scale, bias, match)

    ops = replace(plain, pair_block=block)
    ThreadComm.run(
        WORLD, lambda comm: module(comm, images[comm.rank], texts[comm.rank], job.log_scale, bias_of(job), ops=ops)
    )
    return sum(counted)


def test_matches_in_every_block_are_w_times_as_many():
    assert matches(ring_sigmoid_loss) == B
    assert matches(broken_modules(broken("positives")).ring_sigmoid_loss) == B * WORLD
    assert "B · W pairs count as matches instead of B" in LESSON


# What the report's repair, or what the page adds to it, must say for the change to be undone.
REPAIRED = {
    "forget": "hops 0 to W - 1: W blocks",
    "reuse": "exchange texts before every remote block",
    "early": "wait for the receive",
    "twice": "start the remote hops at 1",
    "average": "do not divide",
    "astray": "one more move, home",
    "positives": "a remote block has no positives",
    "race": "two buffers in turn",
    "ddp": "Multiply the embeddings' gradients by W",
}


def test_of_each_break_it_is_known_what_repairs_it():
    assert {one.name for one in BREAKS} == {*REPAIRED, "local"}  # whose repair is worked out: the page's test has it


@pytest.mark.parametrize("name", REPAIRED)
def test_a_repair_repairs(name):
    one = broken(name)
    repair = CATALOGUE[one.named].repair if one.named in CATALOGUE else ""
    assert REPAIRED[name] in f"{repair} {one.here}"


def off(found, right, name):
    """How far a tensor of all ranks is off, as a share of its length."""
    a, b = (np.concatenate([np.ravel(getattr(share, name)) for share in shares]) for shares in (found, right))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def numbers(ids, sizes, bias, dim=64):
    """Of each mistake: by how much its loss and its gradient of the texts are off on random unit rows, in percent."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(sum(sizes), dim)) for _ in range(2)]
    x, y = (np.split(r / np.linalg.norm(r, axis=1, keepdims=True), np.cumsum(sizes)[:-1]) for r in rows)
    scale, bias = np.array(np.log(10.0)), np.array(bias)
    right, _ = distributed_loss(x, y, scale, bias)
    whole = sum(float(share.loss) for share in right)
    told = {}
    for name in ids:
        found, _ = reference(find(name).edits).procedures.distributed_loss(x, y, scale, bias)
        ratio = sum(float(share.loss) for share in found) / whole
        told[name] = (100 * abs(ratio - 1), 100 * off(found, right, "d_text_embed"), ratio)
    return told


def test_what_the_catalogue_says_that_a_mistake_over_ranks_shows():
    form = re.compile(
        r"loss off by ([\d.]+) %, gradients by ([\d.]+) % at bias -10 \(4 ranks of 128 pairs\); "
        r"([\d.]+) % and (\d+) % at bias -3"
    )
    said = {one.id: form.fullmatch(one.shows) for one in CATALOGUE.values() if one.kind == "across ranks"}
    said = {name: found for name, found in said.items() if found}
    assert len(said) == 4
    early, later = numbers(said, [128] * 4, -10.0), numbers(said, [128] * 4, -3.0)
    for name, found in said.items():
        exact = (*early[name][:2], *later[name][:2])
        for shown, value in zip(found.groups(), exact, strict=True):
            digits = len(shown.partition(".")[2])
            assert f"{value:.{digits}f}" == shown, (name, exact)
    ids = ["remote-diagonal-as-positive", "gather-detached-cross-terms"]
    for world in (2, 4, 8):
        assert abs(numbers(ids, [32] * world, -10.0)[ids[0]][2] / world - 1) <= 0.05
    assert "loss times W at bias -10" in find(ids[0]).shows
    assert f"off by {numbers(ids, [128] * 4, -3.0)[ids[1]][1]:.0f} % at bias -3" in find(ids[1]).shows
    uneven = numbers(["uneven-last-batch"], [8, 8, 8, 2], -3.0)["uneven-last-batch"][1]
    assert (
        f"gradients off by {uneven:.0f} % at bias -3 (4 ranks of 8, 8, 8 and 2 pairs)"
        in find("uneven-last-batch").shows
    )
