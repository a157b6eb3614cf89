"""The ring across hosts: the same bits, the bytes on the wire, the cost model, and a cable that is pulled."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from deterministic_cases import KINDS, SHARDS, bits, shards
from hosts import hosts, possible
from launch import MARK
from ring_cases import BIAS, LOG_SCALE

import siglip_ref as sr
from mpi.schemes import REPRODUCIBLE

pytestmark = pytest.mark.nightly
PROGRAM = Path(__file__).parent / "programs" / "across_hosts.py"
AGREE = 0.25  # of what the cost model predicts


@pytest.fixture(scope="module", autouse=True)
def _hosts_can_be_made():
    reason = possible()
    assert not reason, f"no hosts can be made on this machine: {reason}"


@pytest.mark.parametrize("count", [2, 3])
def test_same_bits_as_one_process(count, tmp_path):
    with hosts(count, tmp_path) as several:
        run = several.run(PROGRAM, "bits", ranks=count)
        assert run.code == 0 and not run.left, run
        report = json.loads(run.out)
    assert report["hosts"] == sorted(several.names)  # one rank on each
    sizes = SHARDS[1][0]
    expected = {}
    for kind in KINDS:
        (image,), (text,) = shards(sizes, kind)
        expected[kind.__name__] = bits([sr.sigmoid_loss(image, text, LOG_SCALE, BIAS, deterministic=True)])
    assert len(report["fingerprints"]) == len(KINDS) * len(REPRODUCIBLE) * len(SHARDS[count])
    assert [entry for entry in report["fingerprints"] if entry[2] != expected[entry[0]]] == []


@pytest.mark.parametrize("count", [2, 3])
def test_what_a_rank_sends_goes_over_the_wire(count, tmp_path):
    """If MPI had used shared memory, the cards would have seen next to nothing."""
    with hosts(count, tmp_path) as several:
        run = several.run(PROGRAM, "bytes", ranks=count)
        assert run.code == 0 and not run.left, run
        sent = json.loads(run.out)["sent"]
        for rank, host in enumerate(several.names):
            neighbour = sent[(rank + 1) % count]  # texts travel to the left: what comes is what the right one sends
            assert neighbour <= several.received(host) <= 1.05 * neighbour + 1e6, (host, neighbour)


@pytest.mark.parametrize(("rate", "latency"), [(10, 0), (50, 0), (200, 0), (50, 0.02)])
def test_the_cost_model_fitted_on_other_sizes_predicts(rate, latency, tmp_path):
    with hosts(2, tmp_path) as several:
        several.limit(rate)
        run = several.run(PROGRAM, "cost", rate, latency, ranks=2, timeout=300)
    assert run.code == 0 and not run.left, run
    report = json.loads(run.out)
    print(rate, latency, report)
    off = {scheme: took / predicted for scheme, (took, predicted) in report["rows"].items()}
    assert all(1 - AGREE <= ratio <= 1 + AGREE for ratio in off.values()), off


def test_a_pulled_cable_ends_every_rank_and_watcher_on_both_sides(tmp_path):
    """Within the stall limit and ten seconds; mpiexec itself knows nothing of it, see docs/ring-manual.md."""
    limit, finished = 5.0, []
    job = ["-m", "mpi.cli", "loss", "--pairs", 6000, "--dim", 256, "--no-check", "--stall-limit", limit]
    with hosts(2, tmp_path) as several:
        several.limit(1)  # so that six megabytes are under way for six seconds
        thread = threading.Thread(target=lambda: finished.append(several.run(*job, ranks=2, timeout=100)))
        thread.start()
        until(lambda: several.received(several.names[1]) > 1e6, 30)
        running = ours()
        assert len([where for where in running.values() if where == "rank"]) == 6, running  # ranks, watchers, guards
        several.unplug(several.names[1])
        pulled = time.monotonic()
        until(lambda: "rank" not in ours().values(), limit + 10)
        took = time.monotonic() - pulled
        print(f"every rank and watcher ended {took:.1f} s after the cable was pulled")
        for process in ours():  # mpiexec waits for a host that cannot answer
            os.kill(process, signal.SIGKILL)
        thread.join(30)
    (run,) = finished
    assert "did not move" in run.err, run


def ours():
    """Processes of the job: "rank" for ranks and their watchers, "launcher" for mpiexec and its proxies."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if MARK.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = "rank" if b"mpi.cli" in words and b"mpiexec" not in words[0] else "launcher"
        except OSError:
            continue
    return found


def until(condition, seconds):
    """Wait for it, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
