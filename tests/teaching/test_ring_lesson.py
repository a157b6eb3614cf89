"""What the lesson of the ring says of its arrays, its buffers, its links and a fresh loss, counted and run."""

import re
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpi.batch import Job, bias_of, make_batch
from mpi.comm import ThreadComm, Wrapper
from mpi.loss import Home, ring_sigmoid_loss
from mpi.ring import CHUNK, ring
from siglip_ref.mistakes import find, reference
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.model.specification import chosen

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import ring_time  # noqa: E402  # found by the line above
from ring_breaks import BREAKS, PAIRS, WIDTH, WORLD, broken_modules  # noqa: E402  # found by the line above

LESSON, PAGE, NORMAL = (
    re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", (ROOT / "docs" / name).read_text(encoding="utf-8")))
    for name in ("ring.md", "ring_page/page.html", "is-my-loss-normal.md")
)


class Mirror:
    """Rank 0 of W, alone: what it sends comes back."""

    def __init__(self, size):
        self.rank, self.size = 0, size

    def Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag):  # noqa: N802
        recvbuf[...] = sendbuf


def arrays(world, b=40):
    """At the end of each block: how many arrays of the size of a chunk there are, beside images and texts."""
    images, texts, counts = np.ones((b, 3)), np.ones((b, 3)), []
    tracemalloc.start()
    home = Home(0, images, np.array(0.0), np.array(0.0), chosen(None), tile=8)

    def visit(owner, texts):
        answer = home.visit(owner, texts)
        counts.append(sum(trace.size == texts.nbytes for trace in tracemalloc.take_snapshot().traces))
        return answer

    ring(Mirror(world), texts, [b] * world, visit)
    tracemalloc.stop()
    return counts


def test_the_eight_arrays():
    """Before the buffers two; four buffers; at hop 1 the block's own; from hop 2 on also that of the block before."""
    assert [arrays(world) for world in (1, 2, 3, 6)] == [[2], [2, 7], [2, 7, 8], [2, 7, 8, 8, 8, 8]]
    for text in (LESSON, PAGE.replace(" · ", " ")):
        assert "eight arrays of b D numbers" in text
        assert (
            "of the images; of the texts at hop 0; of the texts in the present block; and of the texts in the" in text
        )


class Overtaken(Wrapper):
    """What comes overwrites a buffer before it was sent; rank 0 is quicker, or all would wait."""

    def Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag):  # noqa: N802
        late = self.rank > 0 and np.shares_memory(sendbuf, recvbuf)
        for step in ("receive", "send") if late else ("send", "receive"):
            if step == "send":
                self.Isend(sendbuf, dest, sendtag)
            else:
                self.Irecv(recvbuf, source, recvtag).Wait()


def test_one_rank_alone_has_no_buffers():
    """Of no scheme: what an overlapped ring holds, it holds for messages."""
    images, texts = (np.ones((64, 16)) for _ in range(2))
    peaks = {}
    for scheme in ("blocking", "overlapped", "bidirectional"):
        tracemalloc.start()
        ring_sigmoid_loss(ThreadComm.alone(), images, texts, 0.0, 0.0, scheme=scheme, tile=8)
        peaks[scheme] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(peaks.values()) - min(peaks.values()) < texts.nbytes


def toy(module, network=Wrapper, scheme="blocking", world=WORLD):
    job = Job(world * PAIRS // WORLD, WIDTH, scheme)
    images, texts = (np.split(rows, world) for rows in make_batch(job, job.pairs))
    return ThreadComm.run(
        world,
        lambda comm: module(
            network(comm), images[comm.rank], texts[comm.rank], job.log_scale, bias_of(job), scheme=scheme
        ),
        timeout=60,
    )


@pytest.mark.parametrize(
    ("kind", "wrong"), [("CHUNK", set(LossAndGrads._fields)), ("ANSWER", {"d_text_embed"}), ("2", set())]
)
def test_what_is_wrong_if_a_buffer_of_texts_or_of_gradients_is_reused_too_early(kind, wrong):
    source = (ROOT / "mpi" / "ring.py").read_text(encoding="utf-8")
    line = next(line for line in source.splitlines() if "coming = buffers[hop % 2]" in line)
    one = f"        coming = buffers[0 if kind == {kind} else hop % 2][: sizes[owner]]"
    change = replace(BREAKS[0], name=f"one_{kind}", file="mpi/ring.py", old=line, new=one)
    found, right = toy(broken_modules(change).ring_sigmoid_loss, Overtaken), toy(ring_sigmoid_loss)
    differs = {
        name
        for name in LossAndGrads._fields
        for mine, theirs in zip(found, right, strict=True)
        if not np.allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-12, atol=1e-14)
    }
    assert differs == wrong
    assert "If a buffer of gradients is, only texts' gradients are wrong" in LESSON


def sent(scheme, world):
    """Bytes from each rank to each other."""
    counted = Counter()

    class Counted(Wrapper):
        def Sendrecv(self, sendbuf, dest, *others):  # noqa: N802
            counted[self.rank, dest] += sendbuf.nbytes
            super().Sendrecv(sendbuf, dest, *others)

        def Isend(self, buf, dest, tag):  # noqa: N802
            counted[self.rank, dest] += buf.nbytes
            return super().Isend(buf, dest, tag)

    toy(ring_sigmoid_loss, Counted, scheme, world)
    return counted


@pytest.mark.parametrize("world", [2, 3, 4])
def test_both_ways_saves_bytes_on_a_link_between_neighbours_and_none_on_a_card(world):
    """A link has two directions, each carries its own bytes; a card sends all that its rank sends."""
    links = {scheme: sent(scheme, world) for scheme in ("blocking", "overlapped", "bidirectional")}
    cards = {
        scheme: [sum(n for (rank, _), n in found.items() if rank == one) for one in range(world)]
        for scheme, found in links.items()
    }
    assert cards["bidirectional"] == cards["overlapped"] == cards["blocking"]
    one_way = {(rank, (rank - 1) % world) for rank in range(world)}
    assert set(links["blocking"]) == set(links["overlapped"]) == one_way
    assert set(links["bidirectional"]) == one_way | {(b, a) for a, b in one_way}
    share = max(links["bidirectional"].values()) / max(links["blocking"].values())
    assert share == (1 if world == 2 else 0.5)
    for text in (LESSON, PAGE):
        assert "a one-way ring uses only one direction of each link" in text
        assert "It saves none if a rank has one full-duplex network card for both neighbours" in text


@pytest.mark.parametrize(("world", "each"), [(4, 8), (8, 128)])
def test_a_fresh_loss_with_matches_on_every_diagonal(world, each):
    """All similarities 0: at bias -10 every match costs about 10, and there are W for each image."""
    images, texts = (np.split(np.tile(np.eye(2)[k], (world * each, 1)), world) for k in (0, 1))
    wrong = reference(find("remote-diagonal-as-positive").edits).procedures.distributed_loss
    found, _ = wrong(images, texts, np.array(np.log(10.0)), np.array(-10.0))
    assert abs(sum(float(share.loss) for share in found) / (10 * world) - 1) <= 0.01
    assert "about 10 W at bias -10, on W ranks" in NORMAL


def beside(world, tile):
    """Of rank 0 of the overlapped ring: what it computes, in tiles, and what travels meanwhile."""
    told = []

    class Told(Wrapper):
        def Isend(self, buf, dest, tag):  # noqa: N802
            told.append("texts" if tag % 4 == CHUNK else "gradient")
            return super().Isend(buf, dest, tag)

        def Irecv(self, buf, source, tag):  # noqa: N802
            return Waited(super().Irecv(buf, source, tag))

    class Waited:
        def __init__(self, request):
            self.request, self.Test = request, request.Test

        def Wait(self):  # noqa: N802
            told.append("wait")
            return self.request.Wait()

    def block(*arguments):
        told.append("tile")
        return chosen(None).pair_block(*arguments)

    def work(comm):
        mine = comm.rank == 0
        ops = replace(chosen(None), pair_block=block) if mine else None
        rows = np.ones((2, 3))
        ring_sigmoid_loss(Told(comm) if mine else comm, rows, rows, 0.0, 0.0, scheme="overlapped", tile=tile, ops=ops)

    ThreadComm.run(world, work, timeout=60)
    parts = re.split(r"(?: wait)+ ?", " ".join(told))
    return [(part.split().count("tile"), [one for one in part.split() if one != "tile"]) for part in parts[:-1]]


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_what_overlap_hides(world):
    """What is computed beside which messages; and from the times of the page, what of them stays."""
    half, whole, both = (2, 4, ["texts", "gradient"])
    middle = [(whole, ["texts"]), *[(whole, both)] * (world - 3), (whole, ["gradient"])]
    if world == 2:  # the block of hop 1 is computed beside nothing, before the move home
        assert beside(world, 1) == [(half, ["texts"]), (whole + half, ["gradient"])]
        middle = []
    else:
        assert beside(world, 1) == [(half, ["texts"]), *middle, (half, ["gradient"])]
    message = ring_time.LATENCY + ring_time.CHUNK
    assert (round(1e3 * message), round(1e3 * whole * ring_time.PAIR)) == (25, 40)
    parts = [(half, ["texts"]), *middle, (half, ["gradient"])]
    stays = sum(max(0.0, len(sent) * message - tiles * ring_time.PAIR) for tiles, sent in parts)
    told = {2: "10 of 50 ms stay", 4: "20 of 150 ms for W = 4", 8: "60 of 350 ms for W = 8"}
    words = f"{1e3 * stays:.0f} of {1e3 * 2 * (world - 1) * message:.0f} ms"
    assert words in told.get(world, "10 of 100 ms")
    assert all(told.get(world, "5 + 10 (W - 3) + 5 ms") in text.replace("\u2212", "-") for text in (LESSON, PAGE))


def test_the_first_message_is_not_hidden_by_a_block_of_one_tile():
    assert beside(3, 2) == [(0, ["texts"]), (1, ["texts"]), (1, ["gradient"]), (1, ["gradient"])]
