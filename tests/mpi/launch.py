"""Start a command on MPI ranks, as a user would; look whether it left anything running.

SIGLIP_RING_PYTHON names the interpreter of another environment, to test with another MPI.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

PYTHON = os.environ.get("SIGLIP_RING_PYTHON", sys.executable)
# another environment finds the project here; the own one has it installed
ELSEWHERE = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])} if "SIGLIP_RING_PYTHON" in os.environ else {}
MARK = "SIGLIP_RING_TEST"


def mpiexec(ranks):
    """The launcher beside the interpreter, else the first on the path."""
    launcher = shutil.which("mpiexec", path=str(Path(PYTHON).parent)) or shutil.which("mpiexec")
    assert launcher, 'no mpiexec: pip install ".[mpi]"'
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True, timeout=30).stdout
    open_mpi = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version or "OpenRTE" in version else []
    return [launcher, *open_mpi, "-n", str(ranks)]


class Run:
    """A finished job: .code, .out, .err, .seconds, and .left, the processes that are still there."""

    def __init__(self, command, timeout):
        mark = str(uuid.uuid4())
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        env = os.environ | threads | ELSEWHERE | {MARK: mark}
        start = time.monotonic()
        # files, not pipes: a process left behind would keep a pipe open, and us waiting
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                command, env=env, cwd=tempfile.gettempdir(), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
            try:
                self.code = process.wait(timeout)
            finally:
                process.kill()
            self.seconds = time.monotonic() - start
            self.left = still_running(mark)
            self.out, self.err = (read_back(file) for file in (out, err))

    def __repr__(self):
        return f"exit code {self.code} after {self.seconds:.1f} s\n{self.out}\n{self.err}"


def ring(*arguments, ranks=4, timeout=60, threads=False):
    """`mpiexec -n ranks siglip-ring arguments`, or with --threads."""
    command = [PYTHON, "-m", "mpi.cli", *map(str, arguments)]
    return Run([*command, "--threads", str(ranks)] if threads else [*mpiexec(ranks), *command], timeout)


def program(name, *arguments, ranks, timeout=120):
    """`mpiexec -n ranks python tests/mpi/programs/name`."""
    path = Path(__file__).parent / "programs" / name
    return Run([*mpiexec(ranks), PYTHON, str(path), *map(str, arguments)], timeout)


def still_running(mark, patience=3.0):
    """Processes with this mark in their environment, once the system has had time to bury the dead."""
    deadline = time.monotonic() + patience
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def read_back(file):
    file.seek(0)
    return file.read()
