"""Harm a running job at a random instant: kill, stop, interrupt, terminate a rank, a watcher, the launcher.

Then it must end within the stated limit, nothing may be left, checkpoints are whole, one voice names the right rank.

python harms.py NUMBER SEED [compiling]: prints a line for each job and a summary.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

from launch import ELSEWHERE, MARK, PYTHON, mpiexec, still_running

from siglip_ref.training.saved import store

LIMIT = 10  # --stall-limit, seconds
ALLOWED = 1.5 * LIMIT + 61 + 20  # the longest that ring-manual.md states, for ranks that join, and time to say it
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
TARGETS = ("rank", "watcher", "guard", "launcher", "proxy")
JOBS = {
    "loss": ["loss", "--pairs", "24000", "--dim", "256", "--no-check", "--dtype", "float32"],
    "train": ["train", "--data", "digits", "--model", "mini", "--batch", "16", "--steps", "4000", "--save-every", "5"],
    "compiling": ["train", "--data", "shapes", "--model", "small", "--batch", "16", "--steps", "4000"],
}
PROGRAMS = {"train": [str(Path(__file__).parent / "programs" / "mini_ring.py")]}
SHORT = ["loss", "--pairs", "4000", "--dim", "64", "--no-check"]  # where nothing is to end it before its time


class Processes:
    """Of a job: by kind, and of which rank."""

    def __init__(self, mark, launcher):
        self.launcher = launcher
        self.of = {}  # process: (parent, command, rank, start)
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes()
                if mark.encode() in environment:
                    variables = dict(item.partition(b"=")[::2] for item in environment.split(b"\0"))
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    rank = int(variables.get(b"PMI_RANK", b"-1"))
                    command = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                    self.of[int(entry.name)] = (int(stat[1]), command, rank, int(stat[19]))
            except (OSError, IndexError):
                continue

    def watchers(self):
        ours = {p for p, (_, command, _, _) in self.of.items() if command == PYTHON}
        return [p for p in ours if self.of[p][0] not in ours]

    def children(self, watcher):
        """The rank, then the guard, in the order in which they were made."""
        found = [p for p, (parent, *_) in self.of.items() if parent == watcher]
        return sorted(found, key=lambda p: (self.of[p][3], p))

    def pick(self, kind, rng):
        """A process of this kind and the rank it belongs to."""
        if kind == "launcher":
            return self.launcher, -1
        if kind == "proxy":
            return next(p for p, (_, command, _, _) in self.of.items() if "proxy" in command), -1
        watcher = rng.choice(sorted(self.watchers()))
        process = watcher if kind == "watcher" else self.children(watcher)[kind == "guard"]
        return process, self.of[watcher][2]


class Harm:
    """One job and what became of it: .fault is "" if all is as it should be."""

    def __init__(self, rng, job, kind, name, ranks, delay):
        self.what = f"{name} {kind} of {ranks} in {job}, {delay:.1f} s"
        self.named, self.fault, self.over = None, "", False
        folder = Path(tempfile.mkdtemp(prefix="harm-"))
        mark = str(uuid.uuid4())
        ends = kind == "guard" or (name == "stop" and kind in ("launcher", "proxy"))  # by itself: nobody ends it
        words = SHORT if ends else JOBS[job] + ["--out", str(folder / "run")] * (job != "loss")
        env = os.environ | ELSEWHERE | {MARK: mark, "OMP_NUM_THREADS": "1"}
        env |= {"NUMBA_CACHE_DIR": str(folder / "kernels")} if job == "compiling" else {}
        program = [PYTHON, *PROGRAMS.get("" if ends else job, ["-m", "siglip_ring"])]
        command = [*mpiexec(ranks), *program, *words, "--stall-limit", str(LIMIT)]
        with (folder / "err").open("w") as err:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            process = subprocess.Popen(command, env=env, stderr=err, **quiet)
            try:
                self.run(rng, process, mark, kind, SIGNALS[name], ranks, delay)
            finally:
                for pid in Processes(mark, process.pid).of:
                    os.kill(pid, signal.SIGKILL)
                process.kill()
        self.err = (folder / "err").read_text(errors="replace")
        self.judge(kind, name, folder)
        shutil.rmtree(folder)

    def run(self, rng, process, mark, kind, number, ranks, delay):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = Processes(mark, process.pid)
            if sum(len(found.children(watcher)) == 2 for watcher in found.watchers()) == ranks:
                break
            time.sleep(0.05)
        time.sleep(delay)
        found = Processes(mark, process.pid)
        try:
            victim, self.rank = found.pick(kind, rng)
            os.kill(victim, number)
        except (IndexError, StopIteration, ProcessLookupError):  # it was over before
            self.over, self.rank = True, -1
        start = time.monotonic()
        stopped = number == signal.SIGSTOP and kind in ("launcher", "proxy") and not self.over
        while stopped and ours(mark, process.pid) and time.monotonic() - start < ALLOWED:
            time.sleep(0.1)  # all of ours end, or go on to the end; the launcher itself is its owner's
        if stopped and kind == "launcher" and not ours(mark, process.pid):
            os.kill(victim, signal.SIGCONT)
        if stopped and kind == "proxy":
            os.kill(victim, signal.SIGCONT)
        try:
            self.code = process.wait(max(1.0, ALLOWED - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            self.code, self.fault = None, "HANGS"
        self.seconds = time.monotonic() - start
        left = still_running(mark, patience=5)
        self.fault = self.fault or (f"LEFT {len(left)}" if left else "")

    def judge(self, kind, name, folder):
        said = self.err.count("siglip-ring: rank") + self.err.count("siglip-ring: the job")
        aimed = kind in ("rank", "watcher") and not self.over
        if aimed and self.code != 0:
            self.named = f"siglip-ring: rank {self.rank} " in self.err
        if not self.fault and said > 1:
            self.fault = f"{said} VOICES"
        if not self.fault and "Traceback" in self.err:
            self.fault = "TRACEBACK"
        if not self.fault and aimed and self.code == 0 and name != "stop":
            self.fault = "NOT ENDED"
        checkpoints = folder / "run" / "checkpoints"
        if checkpoints.is_dir() and store.newest(checkpoints)[1]:
            self.fault = "BROKEN CHECKPOINT"

    def __str__(self):
        words = self.err.partition("siglip-ring: ")[2].splitlines()
        named = {None: "", True: "named", False: "NOT NAMED"}[self.named]
        over = "over before" if self.over else ""
        return f"{self.what}: code {self.code} after {self.seconds:.1f} s {over}{named} {self.fault} | {words[:3]}"


def ours(mark, launcher):
    return [p for p, (_, command, _, _) in Processes(mark, launcher).of.items() if command == PYTHON]


def harm(number, seed, compiling=False, most=8):
    """So many harms; the list of them."""
    rng, done = random.Random(seed), []
    for _ in range(number):
        job = "compiling" if compiling else rng.choice(["train", "loss"])
        kind = rng.choices(TARGETS, (4, 3, 1, 1, 1))[0]
        name = rng.choice(
            [name for name in SIGNALS if kind != "proxy" or name in ("kill", "stop")]
        )  # it ignores others
        ranks = rng.randint(2, most)
        delay = rng.uniform(0, 15 if compiling else 10)
        done.append(Harm(rng, job, kind, name, ranks, delay))
        print(len(done), done[-1], flush=True)
    return done


def summary(done):
    """Counts of faults, and of the right rank named among those that could be."""
    named = [one.named for one in done if one.named is not None]
    return {
        "harms": len(done),
        "over before": sum(one.over for one in done),
        "faults": dict(Counter(one.fault for one in done if one.fault)),
        "named": f"{sum(named)} of {len(named)}",
        "longest": round(max(one.seconds for one in done), 1),
    }


if __name__ == "__main__":
    print(summary(harm(int(sys.argv[1]), int(sys.argv[2]), "compiling" in sys.argv)))
