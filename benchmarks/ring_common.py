"""Start the ring's benchmarks on MPI ranks."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def on_ranks(ranks: int, script: str, *arguments: object, threads: int = 1) -> tuple[Any, float]:
    """Run `mpiexec -n ranks python script arguments`; the JSON that rank 0 prints, and the CPU seconds of the job."""
    launcher = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    flags = ["--oversubscribe", "--allow-run-as-root"] if "Open MPI" in version else []
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [launcher, *flags, "-n", str(ranks), sys.executable, script, *map(str, arguments)]
    out = subprocess.run(command, env=os.environ | limits, stdout=subprocess.PIPE, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(out), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shard(rank: int, pairs: int, dim: int, dtype: str = "float32") -> tuple[Any, Any]:
    """A rank's embeddings: unit rows, nearly."""
    import numpy as np

    rng = np.random.default_rng(rank)
    return tuple((rng.normal(size=(pairs, dim)) / dim**0.5).astype(dtype) for _ in range(2))
