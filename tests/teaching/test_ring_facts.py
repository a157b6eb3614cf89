"""What the pages of the ring assert in words, computed: whose gradient is left over, what memory consists of, which
exchange is which, and whether a repair repairs."""

import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mpi.batch import Job, bias_of, make_batch
from mpi.comm import ThreadComm
from mpi.cost import Machine, kept, memory, seconds, traffic
from mpi.job import run
from mpi.loss import ring_sigmoid_loss
from mpi.watchdog.progress import Progress
from siglip_ref.mistakes import CATALOGUE, find, reference
from siglip_ref.model.procedures import distributed_loss
from siglip_ref.model.specification import chosen
from siglip_ref.ops import pair_block

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from ring_breaks import (  # noqa: E402  # found by the line above
    BREAKS,
    PAIRS,
    WIDTH,
    WORLD,
    broken_modules,
    judged,
    run_toy,
)
from ring_page import HANDED_OUT, keeps  # noqa: E402

LESSON, PAGE, EXERCISES, HANDOUT, GENERATED = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("ring.md", "ring_page/page.html", "exercises/ring.md", "ring_page/handout.html", "generated/ring.md")
)
AUTOGRAD = r"\| autograd-like \| (\d) \|.*\| ([\d.]+) \| [\d.]+ \|"
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
    assert f"each rank adds the gradient of its {side} neighbour's texts to its own part of hop 0" in words(LESSON)
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
    world, tile, schemes = 64, 128, ("blocking", "allgather", "autograd-like")
    for item, b, dim in product((4, 8), (512,), (64, 1152)):
        block = 5 * tile * tile + 5 * tile * dim
        held = {name: memory(name, world * b, world, dim, tile, item) for name in schemes}
        assert held["blocking"] == 8 * b * dim + block == memory("blocking", 2 * world * b, 2 * world, dim, tile, item)
        assert held["allgather"] - block == 2 * world * b * dim + 2 * b * dim  # and two of its own
        temporaries = 3 * b * dim + 6 * b * b
        assert held["autograd-like"] - temporaries == sum(kept(world, b, dim, item)) / item
        for pairs in (dim // 2, dim):  # clearly smaller than the width, and no longer so
            mine, theirs = (
                memory(name, world * pairs, world, dim, tile, item) for name in ("autograd-like", "allgather")
            )
            assert (mine < theirs) == (pairs < dim)
    two, three, four = (memory("blocking", 256 * ranks, ranks, 64, 64, 8) for ranks in (2, 3, 4))
    assert two == three == four  # the model; measured, it is less for two ranks
    measured = re.findall(r"\| blocking \| (\d) \|.*\| ([\d.]+) \| [\d.]+ \|", GENERATED)
    assert [float(peak) for _, peak in measured] == sorted(float(peak) for _, peak in measured)
    assert dict(measured)["4"] == dict(measured)["8"] != dict(measured)["2"]
    for text in (LESSON, PAGE):
        text = re.sub(" · ", " ", words(text))
        assert "eight arrays of b D numbers" in text and "(from W = 3 on; less for one or two ranks)" in text
        assert "W chunks and W gradients" in text and "W - 1 chunks and W blocks" in text
        assert "if b is clearly smaller than D, and more if it is larger" in text.replace("D, more", "D, and more")
        assert "8 B D / W" in text and "2 B D" in text


def test_which_scheme_needs_the_least_memory():
    """Both ways, but for an autograd ring of few ranks with small b: at those it does, and at no others."""
    schemes = ("blocking", "overlapped", "bidirectional", "autograd-like", "allgather", "masked-allreduce")
    least = {
        (world, b, dim, item): min(schemes, key=lambda name: memory(name, world * b, world, dim, 128, item))
        for world, b, dim, item in product(
            (2, 3, 4, 7, 8, 9, 16, 64, 256), (1, 4, 16, 128, 1024, 8192), (64, 768, 1152), (4, 8)
        )
    }
    few = [size for size, name in least.items() if name != "bidirectional"]
    assert {least[size] for size in few} == {"autograd-like"}
    assert {world for world, *_ in few} == {2, 3, 4, 7}
    assert max(b for _, b, *_ in few) < 1024
    said = (
        "it is the smallest of these schemes, except that with fewer than 8 ranks and small b an autograd ring may need"
    )
    for text in (LESSON, PAGE):
        assert words(text).count(said) == 1 and len(re.findall(r"peak memory[^.]{0,60}smallest", words(text))) == 1


def test_with_many_ranks_an_autograd_ring_needs_less_than_an_all_gather_up_to_d():
    """With few it needs less for longer, so the sentence names many."""
    even = {
        world: next(b for b in range(1, 9999) if sum(kept(world, b, 1000, 4)) / 4 > (2 * world + 2) * b * 1000)
        for world in (2, 4, 1024)
    }
    assert (even[2] > 1900, even[4] > 1300, 800 <= even[1024] <= 810) == (True, True, True)
    assert all(
        re.search("with many ranks,? (what it keeps is )?less than", words(text), re.I) for text in (LESSON, PAGE)
    )


def test_bytes_of_unequal_shards():
    sizes = [1, 5, 2, 3]
    for rank in range(4):
        assert traffic("blocking", sizes, rank, 7).numbers == 7 * (2 * sum(sizes) - sizes[rank - 1] - sizes[rank])
    assert "rank r sends 2 B - b_(r-1) - b_r rows of D numbers" in words(LESSON)


def test_how_far_the_model_of_memory_is_off():
    """Of the measured table, whose figures have two digits behind the point."""
    rows = re.findall(r"\| [a-z -]+ \| (\d) \|.*\| ([\d.]+) \| ([\d.]+) \|", GENERATED)
    off = {
        few: max(abs(float(model) / float(peak) - 1) for world, peak, model in rows if (int(world) < 4) == few)
        for few in (True, False)
    }
    told = re.search(r"at most (\d+) %, for one and two ranks by up to (\d+) %", re.sub(r"\s+", " ", GENERATED))
    assert len(rows) == 28  # seven schemes, four numbers of ranks
    assert all(-0.5 <= int(told[1 + few]) - 100 * off[few] <= 1.5 for few in (False, True))
    assert f"for 4 and 8 ranks it was within {told[1]} %" in words(PAGE)


def test_what_an_autograd_ring_keeps_is_one_figure():
    """In the lesson and on the page in words, by one function; and what the scheme holds when it turns back is that."""
    assert keeps() in LESSON and "<!--keeps-->" in PAGE
    parts = kept(64, 512, 1152, 4)
    assert all(f"{part / 1e6:.1f} MB" in keeps() for part in (*parts, sum(parts)))
    measured = {int(ranks): float(peak) for ranks, peak in re.findall(AUTOGRAD, GENERATED)}
    for ranks, more in ((2, 4), (4, 8)):  # what a rank more adds, by tracemalloc
        found, counted = measured[more] - measured[ranks], sum(kept(more, 256, 64, 8)) - sum(kept(ranks, 256, 64, 8))
        assert abs(found - counted / 1e6) <= 0.01 * found + 0.01


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
    "twice": "remote hops are 1 to W - 1",
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


def test_divided_by_b_under_ddp_the_towers_are_right_and_the_scalars_are_not():
    """What the lesson adds to "Divided by b": the mean over ranks hides it from the towers, and only from them."""
    module = broken_modules(broken("local"))
    rows = {row.name: row for row in judged(module, replace(broken("local"), reduce="mean")).rows}
    assert {name for name, row in rows.items() if row.verdict == "pass"} == {"image_embed", "text_embed"}
    assert all(abs(rows[name].ratio / round(rows[name].ratio) - 1) < 1e-9 for name in ("loss", "log_scale", "bias"))
    assert "the towers' gradients happen to be right again, but those of log_scale and bias stay W times" in words(
        LESSON
    )


def test_the_handout_says_which_check_finds_which_mistake():
    of_ddp = [one.reduce for name in HANDED_OUT for one in BREAKS if one.name == name]
    assert of_ddp == ["none"] * 5 + ["mean"]  # the page's own test has that each is named under it
    told = words(HANDOUT)
    assert 'reduce="none", value="global") finds 1 to 5' in told and 'reduce="mean"' in told
    assert "if it then says OTHER CONVENTION, the factor W is missing" in told and broken("ddp").named == "convention"


def test_when_both_ways_beats_overlapping():
    """Only where a message takes longer than its block: during each block texts and a gradient are under way."""
    for share, faster in ((0.5, "overlapped"), (0.9, "overlapped"), (1.1, "bidirectional"), (8.0, "bidirectional")):
        world, b, dim = 64, 512, 256
        block = 1e-3
        machine = Machine(0.0, share * block / (b * dim * 4), block / b**2, 0.0, 0.0)
        took = {
            scheme: seconds(machine, scheme, world * b, world, dim, 4) for scheme in ("overlapped", "bidirectional")
        }
        assert min(took, key=took.get) == faster, (share, took)
    for text in (LESSON, PAGE):
        assert "only where a message takes longer than its block" in words(text)
    assert memory("bidirectional", 512, 2, 64, 64, 8) < memory("blocking", 512, 2, 64, 64, 8)
    assert "what is left is its smaller memory" in words(LESSON)
