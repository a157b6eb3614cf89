"""Who watches ranks: what is slow, what waits for ever, what has failed. The ranks are fakes, ended within seconds."""

import subprocess
import sys
import threading
import time

import fake_ranks
import pytest

from siglip_ref.check.call.frameworks import Inputs, Setting
from siglip_ref.check.ranks import processes as ranks_processes
from siglip_ref.check.ranks import pulse as ranks_pulse
from siglip_ref.check.ranks.pulse import LATE, STILL, Heart, Pulse, standing, wait_for_ever
from siglip_ref.check.ranks.world import Split, Task
from siglip_ref.errors import UsageError

SPLIT = Split("call", Inputs(None, None, 1.0, 0.0), (5, 5, 5))


def run(fn, limit=1.0):
    """Three ranks that do this, and how many seconds it took."""
    task = Task(fn, None, Setting("float32", "float32", "cpu", False), [SPLIT] * fake_ranks.CALLS, 3, "fake", limit)
    begun = time.monotonic()
    return ranks_processes.run_processes("fake_rank", task, 3), time.monotonic() - begun


def test_the_clock_starts_when_all_have_joined():
    ran, took = run(fake_ranks.joins_late, limit=1.0)
    assert ran.stop is None and took > 1.5
    assert [len(call) for call in ran.outcomes] == [3, 3]


def test_joining_has_a_limit_of_its_own(monkeypatch):
    monkeypatch.setattr(ranks_processes, "JOINING", 4.0)
    ran, _ = run(fake_ranks.never_joins, limit=0.1)
    assert ran.stop.kind == "time"
    assert "rank 1 was at setup" in ran.stop.evidence and "limit=8" in ran.stop.repair


@pytest.mark.parametrize("fn", [fake_ranks.never_leaves, fake_ranks.dies_in_leaving])
def test_what_happens_after_the_results_are_written_is_no_failure(fn):
    ran, _ = run(fn, limit=60.0)
    assert ran.stop is None
    assert [len(call) for call in ran.outcomes] == [3, 3]


@pytest.mark.parametrize(
    ("fn", "evidence"),
    [
        (fake_ranks.one_is_slow, "ranks 0, 2 waited in recv from rank 1 (loss.py:7), rank 1 was at loss.py:7"),
        (fake_ranks.one_is_starved, "rank 1 gave no sign for 5 s"),
        (fake_ranks.not_yet, "ranks 0, 1, 2 waited in recv from rank 1 (loss.py:7)"),
    ],
)
def test_who_is_merely_slow_is_not_called_a_deadlock(fn, evidence):
    ran, _ = run(fn, limit=2.0)
    assert ran.stop.kind == "time" and ran.outcomes == []
    assert evidence in ran.stop.evidence and "after 2 s" in ran.stop.evidence
    assert ran.stop.repair.startswith("limit=4")


def test_who_waits_for_each_other_is_named_within_the_limit():
    ran, took = run(fake_ranks.wait_for_each_other, limit=60.0)
    assert ran.stop.kind == "deadlock" and took < 30
    assert "rank 0 waits in send to rank 1 (loss.py:7), rank 1 waits in send to rank 2" in ran.stop.evidence
    assert "before it receives" in ran.stop.repair
    assert len(ran.outcomes) == 1  # what was brought back before is judged


def test_who_has_returned_is_named():
    ran, _ = run(fake_ranks.one_has_returned, limit=60.0)
    assert ran.stop.kind == "deadlock"
    assert "rank 2 has returned, ranks 0, 1 wait in send to rank 2 (loss.py:7)" in ran.stop.evidence
    assert "the same calls" in ran.stop.repair


@pytest.mark.parametrize(
    ("fn", "kind", "evidence"),
    [
        (fake_ranks.raises, "failed", "rank 1 failed at call 0: ValueError: no such column (fake_ranks.py:"),
        (fake_ranks.crashes, "failed", "rank 1 failed at call 0: ended by SIGSEGV"),
        (fake_ranks.ends_without_a_word, "failed", "rank 1 failed at call 0: ended with exit code 0"),
        (fake_ranks.killed, "time", "rank 1 was ended from outside, by SIGKILL, at call 0"),
        (fake_ranks.gives_up, "time", "gave up waiting at call 0: RuntimeError: Timed out waiting"),
    ],
)
def test_who_failed_first_is_named_and_who_was_ended_is_not_blamed(fn, kind, evidence):
    ran, _ = run(fn, limit=60.0)
    assert ran.stop.kind == kind
    assert evidence in ran.stop.evidence


def test_wrong_use_on_a_rank_is_wrong_use_here():
    with pytest.raises(UsageError, match="give one"):
        run(fake_ranks.misused, limit=60.0)


# --- the pulse


def pulses(*still, call="recv", age=0.0):
    return [Pulse(100.0 - age, call, "", seconds) for seconds in still]


def test_waiting_for_ever_takes_all_that_have_not_returned():
    waits, works = STILL + 1, 0.0
    assert wait_for_ever([False] * 2, pulses(waits, waits), 100.0)
    assert not wait_for_ever([False] * 2, pulses(waits, works), 100.0)
    assert wait_for_ever([False, True], pulses(waits, works), 100.0)
    assert not wait_for_ever([True, True], pulses(waits, waits), 100.0)
    assert not wait_for_ever([False, False], [*pulses(waits), None], 100.0)
    assert not wait_for_ever([False], pulses(waits, call=""), 100.0)
    assert not wait_for_ever([False], pulses(waits, age=LATE + 1), 100.0)


@pytest.fixture
def beats(tmp_path, monkeypatch):
    """A heart in an invented time: beat(seconds later, processor time used, call) -> how long it was still."""
    heart, state = Heart(tmp_path / "pulse"), {"now": 100.0, "used": 0.0, "call": "recv"}
    monkeypatch.setattr(ranks_pulse.time, "monotonic", lambda: state["now"])
    monkeypatch.setattr(ranks_pulse.time, "process_time", lambda: state["used"])
    monkeypatch.setattr(ranks_pulse, "standing", lambda frame: (state["call"], "loss.py:7"))

    def beat(later=0.5, used=0.0, call="recv", waits=0):
        state["now"] += later
        state["used"] += used
        state["call"] = call
        heart.waits += waits
        return heart.beat().still

    beat()
    return beat


def test_stillness_grows_in_one_call_and_ends_with_it(beats):
    assert [beats() for _ in range(3)] == [0.5, 1.0, 1.5]
    assert beats(call="send") == 0.0
    assert beats(call="send") == 0.5
    assert beats(call="send", waits=1) == 0.0  # the same line once more
    assert beats(call="") == 0.0
    assert beats(call="") == 0.0


def test_who_computes_or_is_starved_is_not_still(beats):
    beats()
    assert beats(used=0.4) == 0.0
    assert beats(later=LATE + 1) == 0.0
    assert beats() == 0.5
    assert [beats(used=0.001) for _ in range(40)][-1] == 20.5  # what waiting itself costs is less


def in_module(name, source, **known):
    """What a module of this name holds."""
    content = {"__name__": name, **known}
    exec(compile(source, f"{name.replace('.', '/')}.py", "exec"), content)
    return content


def test_where_a_rank_stands_is_read_off_its_stack():
    inside, go_on = threading.Event(), threading.Event()
    wait = "def wait():\n    inside.set()\n    return go_on.wait(30)\n"
    c10d = in_module("torch.distributed.distributed_c10d", f"{wait}def recv(tensor, src=None):\n    return wait()\n",
                     inside=inside, go_on=go_on)  # fmt: skip
    hooks = in_module("torch.nn", "def call(fn):\n    return fn()\n")
    users = in_module(
        "users",
        "def direct():\n    return c10d['recv'](None, src=2)\n"
        "def called_back():\n    inside.set()\n    return go_on.wait(30)\n",
        c10d=c10d, inside=inside, go_on=go_on,
    )  # fmt: skip
    wrapped = in_module("torch.distributed.fsdp", "def call(fn):\n    return fn()\n")

    def stands(fn):
        inside.clear()
        go_on.clear()
        thread = threading.Thread(target=fn)
        thread.start()
        assert inside.wait(30)
        # the event's own frames are the interpreter's, where a wait in C++ has none
        frame = sys._current_frames()[thread.ident]
        while frame.f_globals.get("__name__") == "threading":
            frame = frame.f_back
        found = standing(frame)
        go_on.set()
        thread.join()
        return found

    assert stands(users["direct"]) == ("recv from rank 2", "users.py:2")
    assert stands(lambda: hooks["call"](users["direct"])) == ("recv from rank 2", "users.py:2")
    # what Torch's own wrapper calls back is the user's code, not a call of torch.distributed
    assert stands(lambda: wrapped["call"](users["called_back"]))[0] == ""


def test_a_rank_ends_when_nobody_watches_it_any_more(tmp_path):
    child = "import sys, time, pathlib; from siglip_ref.check.ranks.pulse import Heart; " \
        "Heart(pathlib.Path(sys.argv[1])).start(); time.sleep(60)"  # fmt: skip
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[1]]); time.sleep(3)"
    )
    path = tmp_path / "pulse"
    subprocess.run([sys.executable, "-c", parent, str(path)], check=True, timeout=60)
    time.sleep(2 * ranks_pulse.EVERY + 1)
    last = path.stat().st_mtime_ns
    time.sleep(2 * ranks_pulse.EVERY)
    assert path.stat().st_mtime_ns == last
