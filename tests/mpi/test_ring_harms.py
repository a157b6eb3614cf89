"""Whatever is done to the processes of a job, it ends in time, leaves nothing behind, and one voice says the cause."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from harms import JOBS, PROGRAMS, SHORT, SIGNALS, Harm, Processes, harm, summary
from launch import ELSEWHERE, MARK, PYTHON, Run, mpiexec, still_running

from mpi.observe import Event
from mpi.watchdog import launcher
from mpi.watchdog.crowd import Crowd
from mpi.watchdog.launcher import is_from_launcher, require_one_world
from mpi.watchdog.progress import Progress
from siglip_ref.errors import UsageError
from siglip_ref.process import compiling


@pytest.mark.parametrize(
    "kind, name",
    [
        ("rank", "interrupt"),
        ("rank", "stop"),
        ("watcher", "terminate"),
        ("watcher", "stop"),
        ("watcher", "kill"),
        ("guard", "stop"),
        ("proxy", "kill"),
    ],
)
def test_a_harm(kind, name):
    for delay in (2.0, 0.5, 0.0):  # a quick machine may have ended the job before it is harmed
        found = Harm(random.Random(1), "loss", kind, name, 3, delay)
        if not found.over:
            break
    assert not found.fault and not found.over and found.named in (None, True), found
    assert found.named or kind not in ("rank", "watcher"), found
    assert (found.code == 0) == (kind == "guard"), found


@pytest.mark.nightly
@pytest.mark.parametrize("number, seed, compiles", [(180, 10, False), (20, 11, True)], ids=["any time", "compiling"])
def test_two_hundred_random_harms(number, seed, compiles):
    done = harm(number, seed, compiles)
    print(summary(done))
    assert not [str(one) for one in done if one.fault]
    named = [one.named for one in done if one.named is not None]
    assert sum(named) >= 0.99 * len(named), [str(one) for one in done if one.named is False]


HELD = """
import ctypes, sys
from mpi.watchdog.progress import Progress
from mpi.watchdog.watch import supervise

def work():
    print("working", flush=True)
    return ctypes.PyDLL(None).sleep(60)  # as MPI's start: no other thread of Python runs meanwhile

sys.exit(supervise(work, Progress()))
"""


def test_a_rank_that_no_thread_of_python_could_end_ends_with_its_watcher():
    """It waited in MPI's start for a rank that was gone, for ever."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    watcher = subprocess.Popen([PYTHON, "-c", HELD], **pipes)
    assert watcher.stdout.readline() == "working\n"
    watcher.kill()
    _, err = watcher.communicate(timeout=20)  # the pipes end when the rank and the guard have ended, too
    assert "its watcher, the process that the launcher started, was killed" in err


@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_whose_launcher_and_watchers_are_killed_do_not_stay(stopped):
    """They spun for ever: the thread that should have ended them died of a write to a dead stderr."""
    mark = f"orphans {stopped} {time.monotonic()}"
    env = os.environ | ELSEWHERE | {MARK: mark, "OMP_NUM_THREADS": "1"}
    command = [*mpiexec(2), PYTHON, "-m", "siglip_ring", *JOBS["loss"]]
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # pipes that die with us
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        found = Processes(mark, job.pid)
        if sum(len(found.children(watcher)) == 2 for watcher in found.watchers()) == 2:
            break
        time.sleep(0.05)
    time.sleep(1.5)
    ranks = [found.children(watcher)[0] for watcher in found.watchers()]
    if stopped:
        for process in ranks:
            os.kill(process, signal.SIGSTOP)
    for process in [job.pid, *(set(found.of) - set(ranks))]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    job.communicate()
    assert still_running(mark, patience=8) == []


def test_ctrl_c_of_a_terminal_ends_a_job_with_one_sentence(tmp_path):
    """All processes hear it at the same time: launcher, watchers, ranks."""
    mark = f"terminal {time.monotonic()}"
    env = os.environ | ELSEWHERE | {MARK: mark, "OMP_NUM_THREADS": "1"}
    for ranks, launch in ((2, mpiexec(2)), (1, [])):
        command = [*launch, PYTHON, "-m", "siglip_ring", *JOBS["loss"], *(["--threads", "2"] if not launch else [])]
        with (tmp_path / "err").open("w+") as err:
            job = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                found = Processes(mark, job.pid)
                if sum(len(found.children(watcher)) == 2 for watcher in found.watchers()) == ranks:
                    break
                time.sleep(0.05)
            time.sleep(1.5)
            os.killpg(job.pid, signal.SIGINT)
            code = job.wait(30)
            err.seek(0)
            said = err.read()
        assert code != 0 and said.count("was interrupted (Ctrl-C)") == 1 and "Traceback" not in said, (code, said)
        assert launch or code == 130
        assert still_running(mark, patience=5) == []


def test_a_job_that_is_stopped_as_a_whole_goes_on(tmp_path):
    """As a batch system suspends it, for longer than the stall limit."""
    mark = f"suspended {time.monotonic()}"
    env = os.environ | ELSEWHERE | {MARK: mark, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "err").open("w+") as err:
        command = [*mpiexec(2), PYTHON, "-m", "siglip_ring", *SHORT, "--pairs", "9000", "--stall-limit", "3"]
        job = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err)
        time.sleep(2.5)
        for number, pause in ((signal.SIGSTOP, 6), (signal.SIGCONT, 0)):
            for process in Processes(mark, job.pid).of:
                os.kill(process, number)
            time.sleep(pause)
        code = job.wait(60)
        err.seek(0)
        assert code == 0, err.read()


def started(variables, *words, parent=None):
    """siglip-ring as one of several processes of a launcher that its MPI does not know; perhaps below a program."""
    command = [PYTHON, "-m", "siglip_ring", "loss", *words]
    if parent == "shell":
        command = ["bash", "-c", f"{' '.join(command)}; exit $?"]
    if parent == "program":
        command = [PYTHON, "-c", f"import subprocess, sys; sys.exit(subprocess.run({command!r}).returncode)"]
    return Run(["env", *(f"{name}={value}" for name, value in variables.items()), *command], 60)


OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_RANK": 0}


@pytest.mark.parametrize(
    "variables, parent",
    [(OPEN_MPI, None), (OPEN_MPI, "shell"), ({"SLURM_STEP_NUM_TASKS": 4}, None), ({"MPI_LOCALNRANKS": 3}, None)],
)
def test_several_that_mpi_does_not_see_are_refused(variables, parent):
    run = started(variables, parent=parent)
    assert run.code == 2 and "MPI sees 1" in run.err and "SIGLIP_RING_ALONE=1" in run.err and not run.left, run


@pytest.mark.parametrize(
    "variables, words, parent",
    [
        ({"SLURM_NTASKS": 4, "SLURM_JOB_ID": 7}, [], None),  # a shell in an allocation
        ({"SLURM_NTASKS": 4, "SLURM_STEP_NUM_TASKS": 1, "SLURM_PROCID": 0}, [], None),  # the same, interactive
        (OPEN_MPI, [], "program"),  # a program of a job starts us: nobody else may be started
        (OPEN_MPI | {"SIGLIP_RING_ALONE": 1}, [], None),
        (OPEN_MPI, ["--threads", "2"], None),
    ],
)
def test_leaked_variables_refuse_nothing(variables, words, parent):
    run = started(variables, *words, parent=parent)
    assert run.code == 0 and "PASS" in run.out and not run.left, run


def test_a_launcher_inside_a_job_of_another():
    outer = ["env", "OMPI_COMM_WORLD_SIZE=8", "OMPI_COMM_WORLD_RANK=3"]
    for ranks in (1, 2):
        run = Run([*outer, *mpiexec(ranks), PYTHON, "-m", "siglip_ring", "loss"], 60)
        assert run.code == 0 and "PASS" in run.out, run


def test_what_a_launcher_says_is_weighed(monkeypatch):
    for name in launcher.SIZES:
        monkeypatch.delenv(name, raising=False)
    require_one_world(1)
    for nothing in ("\u00b2", "", "-2", "two"):  # the first is a digit, and no number
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", nothing)
        require_one_world(1)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    require_one_world(2)
    with pytest.raises(UsageError, match="2 processes were started"):
        require_one_world(1)
    monkeypatch.setenv("PMI_SIZE", "1")  # its own launcher's word
    require_one_world(1)


def test_whose_child_we_are(monkeypatch):
    """Typed in a shell of a job: its input is a terminal."""
    monkeypatch.setenv("X", "1")
    tree = {100: (90, "python"), 90: (80, "bash"), 80: (1, "prted")}
    has = {90}
    monkeypatch.setattr(launcher, "STARTED", 100)
    monkeypatch.setattr(launcher, "_parent", lambda process: tree.get(process, (0, ""))[0])
    monkeypatch.setattr(launcher, "_command", lambda process: tree.get(process, (0, ""))[1])
    monkeypatch.setattr(launcher, "_has", lambda process, setting: process in has)
    monkeypatch.setattr(launcher, "_is_interactive", lambda process: False)
    assert is_from_launcher("X")
    monkeypatch.setattr(launcher, "_is_interactive", lambda process: process == 90)
    assert not is_from_launcher("X")
    tree[90] = (80, "tmux: server")
    assert not is_from_launcher("X")
    tree[90], has = (1, "bash"), {90}  # a script that outlived its launcher
    monkeypatch.setattr(launcher, "_is_interactive", lambda process: False)
    assert not is_from_launcher("X")


def test_one_voice(monkeypatch, capfd):
    """Of two that want to speak one does, and the other hears of it, whenever it comes."""
    one, two = Crowd(), Crowd()
    one.name = two.name = f"siglip-ring-test-{os.getpid()}"
    child = os.fork()
    if not child:
        two.open()
        deadline = time.monotonic() + 10
        while not (words := list(two.heard())) and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if words == ["spoken now"] and not two.speak(b"two\n") else 1)
    deadline = time.monotonic() + 10
    while not one.others() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one.speak(b"one\n")
    assert os.waitpid(child, 0)[1] == 0 and capfd.readouterr().err == "one\n"


def test_who_compiles_moves(monkeypatch):
    """Kernels took longer than the limit, and the rank was said to stand still."""
    from mpi.watchdog.watched import Link

    progress = Progress(1)
    progress.listener(0, rank=0)
    link = Link(progress, Crowd(), 0, 0)
    monkeypatch.setattr(compiling, "_depth", 1)
    began = progress._get(0, "since")
    time.sleep(0.02)
    sum(range(2_000_000))
    worked = link.note_compiling(-1.0)
    assert progress._get(0, "since") > began and "while kernels compiled" in progress.where(0)
    began = progress._get(0, "since")
    link.note_compiling(worked + 1)  # it has not worked since: it hangs
    assert progress._get(0, "since") == began
    monkeypatch.setattr(compiling, "_depth", 0)
    link.note_compiling(worked)
    assert "compiled" not in progress.where(0)


def test_who_waits_is_not_blamed_while_another_is_known_to_work():
    progress = Progress(1)
    progress.listener(0, rank=0)("wait", Event(0, "recv", peer=1))
    progress._set(0, since=time.monotonic() - 100)
    assert progress.stalled(10) == 0
    assert progress.stalled(10, others=time.monotonic()) is None
    assert progress.stalled(10, awake=time.monotonic()) is None


def test_a_harm_of_a_training_names_what_is_saved(tmp_path):
    """Terminated, as at the end of a batch system's time: the checkpoint is named, and the same command goes on."""
    out = tmp_path / "run"
    line = [PYTHON, *PROGRAMS["train"], *JOBS["train"], "--threads", "2", "--out", str(out)]
    with (tmp_path / "err").open("w+") as err:
        job = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=err)
        deadline = time.monotonic() + 200
        while not list(out.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        job.send_signal(SIGNALS["terminate"])
        assert job.wait(30) == 143
        err.seek(0)
        said = err.read()
    assert "the job was told to end (SIGTERM)" in said and "the same command goes on from there" in said, said


def test_versions_and_modules():
    for module, name in (("siglip_ring", "siglip-ring"), ("siglip_ref", "siglip-ref")):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith(f"{name} 0."), done
    done = subprocess.run([sys.executable, "-m", "siglip_ring", "loss"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "4 ranks as threads" in done.stderr and "PASS" in done.stdout
    one = subprocess.run(
        [sys.executable, "-m", "siglip_ring", "loss", "--threads", "0"], capture_output=True, text=True, timeout=60
    )
    assert one.returncode == 0 and "one rank; for a ring add --threads 4" in one.stderr and "PASS" in one.stdout


def test_help_is_short_for_h_and_begins_with_the_checks():
    for module, first in (("siglip_ref", "check"), ("siglip_ring", "loss")):
        short, long = (
            subprocess.run([sys.executable, "-m", module, word], capture_output=True, text=True, timeout=60)
            for word in ("-h", "--help")
        )
        assert short.returncode == 0 and short.stdout == long.stdout
        assert short.stdout.partition("Commands")[2].split()[1:3][-1] == first, short.stdout


def test_nothing_of_ours_waits_by_spinning(tmp_path):
    """One rank writes for three seconds what all have computed: the others sleep until it ends."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import os, sys, time\n"
        "from mpi import cli, job\n"
        "import mpi.show\n"
        "mpi.show.show = lambda *_: time.sleep(3) or 0\n"
        "import atexit\n"
        "atexit.register(lambda: os.write(2, f'CPU {sum(os.times()[:2])}\\n'.encode()))\n"  # in one piece
        "cli.main()\n"
    )
    run = Run([*mpiexec(2), PYTHON, str(program), "loss"], 60)
    used = [float(line.split()[1]) for line in run.err.splitlines() if line.startswith("CPU")]
    assert run.code == 0 and used and max(used) < 2.5, run
