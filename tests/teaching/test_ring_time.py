"""The tracks of the ring's page: their times are those of the text, however busy the machine is."""

import random
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from siglip_ref.model.specification import chosen

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import ring_time  # noqa: E402  # found by the line above

PAGE = re.sub(r"<[^>]+>", "", (ROOT / "docs" / "ring_page" / "page.html").read_text(encoding="utf-8"))
DICE = random.Random(0)
BLOCK, MESSAGE = 40_000, 25_000  # microseconds, as the page says


def busy(ops):
    """The operations on a machine that has other things to do: now and then a block takes far longer."""
    record = chosen(ops)

    def late(compute):
        def computed(*arguments):
            time.sleep(DICE.choice((0.0, 0.0, 5e-3, 40e-3)))
            return compute(*arguments)

        return computed

    return replace(record, **{name: late(getattr(record, name)) for name in ("pair_block", "softplus", "sigmoid")})


@pytest.mark.parametrize("scheme", ring_time.SCHEMES)
def test_a_busy_machine_changes_no_track(scheme, monkeypatch):
    quiet = {world: ring_time.told(scheme, world) for world in (2, 4)}
    monkeypatch.setattr(ring_time, "chosen", busy)
    assert {world: ring_time.told(scheme, world) for world in (2, 4)} == quiet


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_the_tracks_take_what_the_text_says(world):
    """W blocks, and of the messages all that is not hidden: the figures in brackets and their sums."""
    steps = world - 1
    stays = 5_000 + 10_000 * (world - 3) + 5_000 if world > 2 else 10_000
    ends = {scheme: max(row[7] for row in ring_time.told(scheme, world)) for scheme in ring_time.SCHEMES}
    assert ends["overlapped"] == world * BLOCK + stays
    for scheme in ("blocking", "autograd-like", "allgather"):
        assert ends[scheme] == world * BLOCK + 2 * steps * MESSAGE
    assert all(words in PAGE for words in ("a message 25 ms", "takes 40 ms", "added up, not measured"))


def test_each_block_takes_as_long_as_the_page_says():
    for scheme, parts in (("blocking", {40}), ("overlapped", {20, 40}), ("autograd-like", {13, 27})):
        rows = [row for row in ring_time.told(scheme, 4) if row[1] in ("block", "back")]
        assert {round((row[7] - row[6]) / 1000) for row in rows} == parts


def test_a_gain_of_time_is_said_to_come_from_computing_meanwhile():
    """Two messages at once on one link take as long as one after the other, so nothing is gained by that."""
    both = [row for row in ring_time.told("overlapped", 4) if row[0] == 0 and row[1] == "gradient" and row[3] == 2]
    assert both[0][7] - both[0][8] == 2 * MESSAGE  # it left together with texts, and came after them
    for name in ("ring.md", "ring_page/page.html", "exercises/ring.md", "ring_page/handout.html"):
        text = re.sub(r"\s+", " ", (ROOT / "docs" / name).read_text(encoding="utf-8"))
        assert not re.search(r"sav\w+ time only if|travel at once", text)
