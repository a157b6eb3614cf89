"""What fake ranks do. Each function is called in a process of its own, with the rank."""

import json
import os
import signal
import time

import numpy as np

from siglip_ref.check.ranks.child import RETURNED
from siglip_ref.check.ranks.pulse import put
from siglip_ref.check.ranks.world import RankOutcome
from siglip_ref.errors import UsageError

CALLS = 2
OUTCOME = RankOutcome(np.array(1.0), dict.fromkeys(("image_embed", "text_embed", "log_scale", "bias"), np.array(2.0)))


def pulse(one, call="", still=0.0, age=0.0):
    """As if the rank had been so long in a call of torch.distributed."""
    what = {"when": time.time() - age, "call": call, "place": "loss.py:7", "still": still}
    put(one.folder / f"pulse-{one.number}", json.dumps(what))


def stays(one, call="", still=0.0, age=0.0):
    """Does the same for ever."""
    while os.getppid() == PARENT:
        pulse(one, call, still, age)
        time.sleep(0.1)


PARENT = os.getppid()


def works(one):
    one.joined()
    for call in range(CALLS):
        one.begins(f"call {call}")
        one.brings(one.number, call, OUTCOME)
    one.finished()


def joins_late(one):
    time.sleep(1.5)
    works(one)


def never_joins(one):
    one.begins("setup")
    if one.number == 1:
        stays(one)
    works(one)


def never_leaves(one):
    works(one)
    one.begins("leaving")
    stays(one)


def dies_in_leaving(one):
    works(one)
    os.kill(os.getpid(), signal.SIGSEGV)


def one_is_slow(one):
    """Rank 1 computes, and the others wait for it."""
    one.joined()
    one.begins("call 0")
    stays(one) if one.number == 1 else stays(one, "recv from rank 1", 11.0)


def one_is_starved(one):
    """Rank 1 was last heard of five seconds ago, and then it waited."""
    one.joined()
    one.begins("call 0")
    stays(one, "send to rank 0", 11.0, age=5.0 * (one.number == 1))


def wait_for_each_other(one):
    one.joined()
    one.brings(one.number, 0, OUTCOME)
    one.begins("call 1")
    stays(one, f"send to rank {(one.number + 1) % 3}", 11.0)


def one_has_returned(one):
    one.joined()
    one.begins(("" if one.number < 2 else RETURNED) + "call 0")
    stays(one) if one.number == 2 else stays(one, "send to rank 2", 11.0)


def not_yet(one):
    """In one call, but for too short a time to say anything."""
    one.joined()
    one.begins("call 0")
    stays(one, "recv from rank 1", 9.0)


def raises(one):
    one.joined()
    one.begins("call 0")
    if one.number == 1:
        raise ValueError("no such column")
    time.sleep(0.5)
    raise RuntimeError("Connection closed by peer")


def misused(one):
    one.joined()
    raise UsageError("a number", "a dict", "two results", "give one")


def gives_up(one):
    one.joined()
    one.begins("call 0")
    raise RuntimeError("Timed out waiting 30000ms for recv operation to complete")


def killed(one):
    one.joined()
    one.begins("call 0")
    os.kill(os.getpid(), signal.SIGKILL) if one.number == 1 else stays(one)


def crashes(one):
    one.joined()
    one.begins("call 0")
    os.kill(os.getpid(), signal.SIGSEGV) if one.number == 1 else stays(one)


def ends_without_a_word(one):
    one.joined()
    one.begins("call 0")
    if one.number != 1:
        stays(one)
