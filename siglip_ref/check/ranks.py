"""A distributed loss on real ranks: what each is given, what it brings back, and who watches that all of them end."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.check.frameworks import ARGUMENTS, Inputs, Setting
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

WAITING = "did not end"
GRACE = 2.0  # seconds that the other ranks get to fall silent by themselves after one has failed


@dataclass(frozen=True)
class Split:
    """The inputs of one collective call: those of the global batch, and how many pairs each rank has of it."""

    label: str
    inputs: Inputs
    sizes: tuple[int, ...]

    def shard(self, rank: int) -> Inputs:
        """The rows of one rank; scale and bias belong to all."""
        start = sum(self.sizes[:rank])
        rows = slice(start, start + self.sizes[rank])
        return Inputs(self.inputs.image_embed[rows], self.inputs.text_embed[rows], self.inputs.scale, self.inputs.bias)


@dataclass(frozen=True)
class RankOutcome:
    """What one rank got: its loss, gradients by argument name (None: none arrived), its losses hop by hop if told."""

    loss: Array
    gradients: dict[str, Array | None]
    hops: Array | None = None


@dataclass(frozen=True)
class RankFailure:
    """A rank that raised, died or did not end. stage: what it had last begun; when: it failed, in ns, if it told."""

    rank: int
    stage: str
    cause: str
    when: float = np.inf


@dataclass(frozen=True)
class Task:
    """What is sent to every rank: the function (and what to call before it), in what it computes, the calls to make."""

    fn: Callable[..., Any]
    setup: Callable[..., Any] | None
    setting: Setting
    splits: Sequence[Split]
    world_size: int
    backend: str
    limit: float


Outcomes = list[list[RankOutcome]]  # by split, by rank


def run_processes(module: str, task: Task, processes: int, calls: int) -> Outcomes | list[RankFailure]:
    """Run `python -m module FOLDER RANK` in so many processes; all end within `task.limit` seconds, whatever happens.

    The ranks find the task in FOLDER/task, write what they begin to FOLDER/stage-RANK, results to
    FOLDER/RANK-CALL.npz, and a cause of failure to FOLDER/error-RANK.
    """
    with tempfile.TemporaryDirectory(prefix="siglip-ref-") as name:
        folder = Path(name)
        (folder / "task").write_bytes(_pickled(task))
        command = [sys.executable, "-m", module, name]
        # one thread each, and no network beyond this machine
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        running: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(processes):
                with (folder / f"log-{rank}").open("wb") as log:
                    running.append(subprocess.Popen([*command, str(rank)], stdout=log, stderr=log, env=environment))
            _wait(running, task.limit)
            failures = [_failure(folder, rank, process) for rank, process in enumerate(running) if process.poll() != 0]
        finally:
            for process in running:
                process.kill()
                process.wait()
        if failures:
            return failures
        ranks = range(task.world_size)
        return [[_read(folder / f"{rank}-{number}.npz") for rank in ranks] for number in range(calls)]


def _wait(processes: Sequence["subprocess.Popen[bytes]"], limit: float) -> None:
    """Until all have ended, one has failed (and GRACE has passed), or the limit has."""
    end = time.monotonic() + limit
    failed = False
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if not failed and any(process.poll() for process in processes):
            failed, end = True, time.monotonic() + GRACE
        time.sleep(0.02)


def _failure(folder: Path, rank: int, process: "subprocess.Popen[bytes]") -> RankFailure:
    error, stage, log = (folder / f"{kind}-{rank}" for kind in ("error", "stage", "log"))
    begun = stage.read_text() if stage.exists() else "starting"
    if error.exists():
        return RankFailure(rank, begun, error.read_text(), error.stat().st_mtime_ns)
    if process.poll() is None:
        return RankFailure(rank, begun, WAITING)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    cause = f"ended with exit code {process.returncode}" + "".join(f": {line}" for line in last)
    return RankFailure(rank, begun, cause, 0.0)  # killed: the others only noticed


def write(path: Path, outcome: RankOutcome) -> None:
    """To the file that `run_processes` reads."""
    arrays = {name: g for name, g in outcome.gradients.items() if g is not None} | {"loss": outcome.loss}
    np.savez(path, **(arrays if outcome.hops is None else arrays | {"hops": outcome.hops}))


def _read(path: Path) -> RankOutcome:
    with np.load(path, allow_pickle=False) as file:
        return outcome_of({name: file[name] for name in file.files})


def outcome_of(arrays: Mapping[str, Array]) -> RankOutcome:
    """From arrays by name."""
    return RankOutcome(arrays["loss"], {name: arrays.get(name) for name in ARGUMENTS}, arrays.get("hops"))


def loss_and_hops(result: Any) -> tuple[Any, Any]:
    """A loss may come alone, or as (loss, losses hop by hop)."""
    if isinstance(result, tuple) and len(result) == 2:
        return result
    return result, None


def _pickled(task: Task) -> bytes:
    try:
        import cloudpickle
    except ImportError as cause:
        raise UsageError(
            expected="cloudpickle, to send the function to other processes",
            got="no installed cloudpickle",
            cause="it comes with the torch extra only",
            repair="pip install cloudpickle",
        ) from cause
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as cause:
        raise UsageError(
            expected="a function that can be sent to another process",
            got=f"{type(cause).__name__}: {cause}",
            cause="it holds something bound to this process: an open file, a lock, a group",
            repair='make it in setup=, or name it: "module:name"',
        ) from cause
