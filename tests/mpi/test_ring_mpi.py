"""The ring on real MPI processes: the same answers, the counts of the formulas, and no failure that hangs."""

import json
import os
import signal
import subprocess
import time

import pytest
from launch import ELSEWHERE, MARK, PYTHON, mpiexec, program, ring, still_running

from mpi.schemes import SCHEMES
from mpi.watchdog.messages import killed
from mpi.watchdog.progress import Progress

PATIENCE = 40  # the jobs end in 1 to 3 s; a loaded machine may need longer to start them


@pytest.fixture(scope="module")
def measured():
    run = program("every_scheme.py", ranks=8, timeout=180)
    assert run.code == 0 and not run.left, run
    return json.loads(run.out)


def test_every_world_size_and_scheme_equals_one_process(measured):
    assert len(measured["runs"]) == 8 * 3 * (len(SCHEMES) + 1)
    wrong = [run for run in measured["runs"] if not run["error"] <= 1e-13]
    assert not wrong, wrong


def test_messages_and_bytes_equal_the_formulas(measured):
    wrong = [run for run in measured["runs"] if not all(run["exact"])]
    assert not wrong, wrong


def test_memory_is_flat_for_one_trip_and_grows_where_everything_is_kept(measured):
    for scheme, (_, four, eight) in measured["memory"].items():
        if scheme in ("allgather", "autograd-like"):
            assert eight >= 1.3 * four, (scheme, four, eight)
        else:
            assert eight <= 1.02 * four, (scheme, four, eight)


@pytest.mark.parametrize("threads", [False, True])
def test_the_table(threads, tmp_path):
    run = ring("loss", "--scheme", "overlapped", "--unequal", "--svg", tmp_path, threads=threads)
    assert run.code == 0 and not run.left, run
    assert "chunk 2 from 1, gradient 2 from 1" in run.out and "PASS" in run.out
    assert len(list(tmp_path.glob("hop-*.svg"))) == 5  # four hops, and the way home


def test_threads_and_mpi_print_the_same():
    out = [ring("loss", threads=threads).out for threads in (False, True)]
    assert out[0] == out[1] and "loss" in out[0]


def test_trace(tmp_path):
    run = ring("trace", tmp_path, "--scheme", "bidirectional")
    assert run.code == 0 and not run.left, run
    document = json.loads((tmp_path / "trace.json").read_text())
    assert len([e for e in document["events"] if e[1] == "send"]) == 4 * 12
    assert json.loads((tmp_path / "perfetto.json").read_text())["traceEvents"]


def test_prediction_prints_every_scheme():
    run = ring("loss", "--predict", "--pairs", 256, "--dim", 16, "--tile", 64, ranks=2)
    assert run.code == 0, run
    assert run.out.count("masked-allreduce") == 1 + 12 + 1 and "1,048,576  4096" in run.out


def our_messages(run):
    return run.err.count("siglip-ring:")


@pytest.mark.parametrize("kind", ["raise", "kill"])
@pytest.mark.parametrize("hop", range(4))
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.sampled(3)
def test_a_failing_or_killed_rank_ends_the_job_with_its_name(rank, hop, kind):
    run = ring("loss", "--fault", f"{rank}:{hop}:{kind}", timeout=PATIENCE)
    assert run.code != 0 and not run.left, run
    assert our_messages(run) == 1, run
    assert f"rank {rank} failed" in run.err, run
    assert f"hop {hop}, block (images of rank {rank}, texts of rank {(rank + hop) % 4})" in run.err, run
    assert ("SIGKILL" if kind == "kill" else "this failure was asked for") in run.err, run


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme_names_the_hop(scheme):
    run = ring("loss", "--scheme", scheme, "--fault", "1:2:kill", timeout=PATIENCE)
    assert run.code != 0 and not run.left and our_messages(run) == 1, run
    assert "hop 2, block (images of rank 1, texts of rank 3)" in run.err, run


@pytest.mark.parametrize("kind", ["stall", "stop"])
def test_a_rank_that_stalls_is_named_after_the_limit(kind):
    run = ring("loss", "--fault", f"2:1:{kind}", "--stall-limit", 3, timeout=PATIENCE)
    assert run.code != 0 and not run.left and our_messages(run) == 1, run
    assert "rank 2 failed" in run.err and "hop 1" in run.err and "did not move for 3 s" in run.err, run


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "text_embed holds NaN"),
        ("shape", "4 images and 3 texts"),
        ("dtype", "dtype float32"),
        ("scale", "log_scale 2.302586"),
    ],
)
def test_what_does_not_fit_is_refused_with_exit_code_2(kind, words):
    run = ring("loss", "--fault", f"3:0:{kind}", timeout=PATIENCE)
    assert run.code == 2 and not run.left and our_messages(run) == 1, run
    assert "on rank 3: " in run.err and words in run.err, run


@pytest.mark.parametrize("kind", ["raise", "kill", "stall", "stop", "nan"])
def test_failures_among_threads(kind):
    run = ring("loss", "--fault", f"1:0:{kind}", "--stall-limit", 3, threads=True, timeout=PATIENCE)
    assert run.code != 0 and not run.left and our_messages(run) == 1, run
    assert ("on rank 1: " if kind == "nan" else "rank 1 failed") in run.err, run
    assert kind == "nan" or "hop 0, block (images of rank 1, texts of rank 1)" in run.err, run
    assert kind != "kill" or "threads of one process here, so all ended" in run.err, run


def test_threads_that_somebody_kills_are_not_blamed_one_for_all():
    """A signal hits the process: which of its ranks it was meant for nobody knows, and none is called guilty."""
    progress = Progress(4)
    for rank in range(4):
        progress.listener(rank, rank)
    assert "siglip-ring: the process of all ranks failed" in killed(progress, 9)
    progress.tell(asked=2)
    assert "siglip-ring: rank 2 failed" in killed(progress, 9)


@pytest.mark.parametrize("victim", ["watcher", "launcher"])
def test_nothing_is_left_when_the_watcher_or_the_launcher_is_killed(victim, tmp_path):
    mark = f"{victim} {time.monotonic()}"
    command = [*mpiexec(3), PYTHON, "-m", "mpi.cli", "loss", "--fault", "1:1:stall"]
    env = os.environ | ELSEWHERE | {MARK: mark, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "err").open("w+") as err:
        job = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err)
        deadline = time.monotonic() + PATIENCE
        while len(ours := ranks_of(mark)) < 6 and time.monotonic() < deadline:  # three watchers, three ranks
            time.sleep(0.1)
        time.sleep(1)
        os.kill(min(ours) if victim == "watcher" else job.pid, signal.SIGKILL)
        assert job.wait(PATIENCE) != 0
        assert still_running(mark, patience=5) == []
        err.seek(0)
        assert victim == "launcher" or err.read().count("siglip-ring:") == 1


def ranks_of(mark):
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/environ", "rb") as env, open(f"/proc/{entry}/cmdline", "rb") as line:
                command = line.read()
                if mark.encode() in env.read() and command.startswith(PYTHON.encode()):
                    found.append(int(entry))
        except OSError:
            continue
    return found
