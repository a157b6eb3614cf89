"""Which kernels lie compiled on disk: a mark beside Numba's cache, which is void where Numba's cache is."""

import hashlib
from contextlib import suppress
from pathlib import Path

import llvmlite.binding as llvm
import numba

from siglip_ref.fast.kernels import block
from siglip_ref.fast.machine.compile import package_stamp


def is_ready(job: str) -> bool:
    """Whether this job was computed before, by this version on this processor: then nothing is left to compile."""
    mark = _mark(job)
    return mark is not None and mark.exists()


def can_keep() -> bool:
    """Whether what one process compiles is there for another."""
    return _mark("any") is not None


def mark_ready(job: str) -> None:
    """After the job was computed; where nothing can be written, it is forgotten."""
    mark = _mark(job)
    if mark is not None:
        with suppress(OSError):
            mark.touch()


def _mark(job: str) -> Path | None:
    folder = getattr(getattr(block.forward, "_cache", None), "cache_path", None)
    if folder is None:  # kernels are compiled anew in every process
        return None
    of = repr(
        (job, package_stamp(), numba.__version__, llvm.get_host_cpu_name(), getattr(numba.config, "CPU_NAME", None))
    )
    return Path(folder) / f"ready-{job}-{hashlib.sha256(of.encode()).hexdigest()[:16]}"
