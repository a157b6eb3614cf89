"""The processes of a distributed loss: started, watched until all of them have written what they found, and ended.

Ranks that are slow are no fault of the loss. Imports have a limit of their own, the clock starts when all ranks have
joined, and what counts is that the results are written: a rank may hang in leaving the group. "deadlock" is said only
of ranks that are seen to wait for each other, see `siglip_ref.check.ranks.pulse`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from siglip_ref.check.ranks.child import RETURNED
from siglip_ref.check.ranks.pulse import EVERY, last_pulse, wait_for_ever
from siglip_ref.check.ranks.stop import Died, State, deadlock, ended, failed, not_joined, told, too_late
from siglip_ref.check.ranks.world import Ran, Task, read
from siglip_ref.errors import UsageError

JOINING = 600.0  # seconds until all ranks have imported what they need; a whole `limit`, where that is longer
GRACE = 2.0  # seconds that the other ranks get to fall silent by themselves after one has failed

Process = subprocess.Popen[bytes]


def run_processes(module: str, task: Task, processes: int, variables: Mapping[str, str] | None = None) -> Ran:
    """Run `python -m module FOLDER RANK` in so many processes; all are ended in the end, whatever happens.

    The ranks find the task in FOLDER/task. They write what they begin to FOLDER/stage-RANK, results to
    FOLDER/RANK-CALL.npz, a cause of failure to FOLDER/error-RANK, their pulse to FOLDER/pulse-RANK, and empty files
    FOLDER/joined-RANK and FOLDER/finished-RANK: see `siglip_ref.check.ranks.child`. variables: of their environment,
    besides.

    Raises
    ------
    UsageError : of a rank, or the function cannot be sent
    """
    with tempfile.TemporaryDirectory(prefix="siglip-ref-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "task").write_bytes(_pickled(task))
        command = [sys.executable, "-m", module, name]
        # one thread each, and no network beyond this machine
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **(variables or {})}
        running: list[Process] = []
        try:
            for rank in range(processes):
                with (folder / f"log-{rank}").open("wb") as log:
                    running.append(subprocess.Popen([*command, str(rank)], stdout=log, stderr=log, env=environment))
            end = _watch(folder, running, task.limit)
            states = [_state(folder, rank, process) for rank, process in enumerate(running)]
        finally:
            for process in running:
                process.kill()
                process.wait()
        calls = (
            [folder / f"{rank}-{number}.npz" for rank in range(task.world_size)] for number in range(len(task.splits))
        )
        outcomes = [[read(path) for path in paths] for paths in calls if all(path.exists() for path in paths)]
    if end == "finished":
        return Ran(outcomes)
    if end == "failed":
        return Ran(outcomes, failed(states))
    if end == "deadlock":
        return Ran(outcomes, deadlock(states))
    return Ran(outcomes, not_joined(states, _joining(task.limit)) if end == "joining" else too_late(states, task.limit))


End = Literal["finished", "failed", "deadlock", "joining", "time"]


def _watch(folder: Path, processes: Sequence[Process], limit: float) -> End:
    """Until all have finished, one has failed, all that are left wait for each other, or it takes too long."""
    begun = heard = time.monotonic()
    joined = np.inf
    ranks = range(len(processes))
    while True:
        if all((folder / f"finished-{rank}").exists() for rank in ranks):
            return "finished"
        if any(_has_failed(folder, rank, process) for rank, process in enumerate(processes)):
            _let_them_end(processes)
            return "failed"
        now = time.monotonic()
        if joined == np.inf and all((folder / f"joined-{rank}").exists() for rank in ranks):
            joined = now
        if now - joined > limit:
            return "time"
        if joined == np.inf and now - begun > _joining(limit):
            return "joining"
        if now - heard > EVERY:
            heard = now
            pulses = [last_pulse(folder / f"pulse-{rank}") for rank in ranks]
            if wait_for_ever([_returned(folder, rank) for rank in ranks], pulses, time.time()):
                return "deadlock"
        time.sleep(0.02)


def _joining(limit: float) -> float:
    return max(JOINING, limit)


def _has_failed(folder: Path, rank: int, process: Process) -> bool:
    """Raised, or ended before it had written everything."""
    ended = process.poll() is not None  # asked first: what it wrote, it wrote before it ended
    finished = (folder / f"finished-{rank}").exists()
    return not finished and (ended or (folder / f"error-{rank}").exists())


def _let_them_end(processes: Sequence[Process]) -> None:
    end = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.02)


def _returned(folder: Path, rank: int) -> bool:
    """From the user's function, in the last call that it began."""
    stage = folder / f"stage-{rank}"
    return stage.exists() and stage.read_text(encoding="utf-8").startswith(RETURNED)


def _state(folder: Path, rank: int, process: Process) -> State:
    """What is known of a rank at the end."""
    stage, error, log = (folder / f"{kind}-{rank}" for kind in ("stage", "error", "log"))
    begun = stage.read_text(encoding="utf-8") if stage.exists() else "importing"
    returned = _returned(folder, rank)
    died = told(error) if error.exists() else None
    if died is None and process.poll() is not None and not returned:
        died = Died(
            ended(process.returncode, log.read_text(encoding="utf-8", errors="replace")), code=process.returncode
        )
    return State(rank, begun.removeprefix(RETURNED), returned, last_pulse(folder / f"pulse-{rank}"), died)


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
