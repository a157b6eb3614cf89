"""What a call costs in time and memory, what a larger one will, and whether that can be afforded here."""

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siglip_ref.process import memory

SECONDS = 20.0  # that one call may take
SHARE = 0.5  # of the free memory
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Of one call on B pairs of width D. memory: bytes beyond what was in use before; 0 where it cannot be seen."""

    pairs: int
    width: int
    seconds: float = 0.0
    memory: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.memory / 2**30:.0f} GB"


@contextmanager
def measured(pairs: int, width: int, device: str) -> Iterator[Cost]:
    """The cost of what runs inside the `with` block, filled in at its end."""
    cost = Cost(pairs, width)
    before, start = _begin(device), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - start
    cost.memory = max(0.0, _peak(device) - before)


def extrapolated(costs: Sequence[Cost], pairs: int, width: int) -> Cost:
    """From the largest call so far: time and memory beyond those of the cheapest call grow with the pairs' square, and
    with the width.

    >>> small, large = Cost(9, 20, 0.5, 0), Cost(100, 10, 1.5, 2.0**20)
    >>> str(extrapolated([small, large], 1000, 10))
    '100 s, 0 GB'
    """
    last = max(costs, key=lambda cost: cost.pairs)
    growth = (pairs / last.pairs) ** 2 * max(1.0, width / last.width)
    fixed = min(cost.seconds for cost in costs)
    return Cost(pairs, width, fixed + (last.seconds - fixed) * growth, last.memory * growth)


def affordable(cost: Cost, device: str) -> bool:
    """Whether a call keeps within SECONDS, and within SHARE of the free memory."""
    free = free_memory(device)
    return cost.seconds <= SECONDS and (free is None or cost.memory <= SHARE * free)


def return_freed() -> None:
    """Give the system back what was freed: else a call takes it once more, and seems to need none."""
    with suppress(AttributeError, OSError, TypeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device: str = "cpu") -> float | None:
    """Bytes that this process can still take, on its device; None where nobody says."""
    cuda = _cuda(device)
    if cuda:
        return float(cuda.mem_get_info(device)[0])
    free = memory.free_memory()
    return _installed() if free is None else float(free)


def _installed() -> float | None:
    """All that a machine has, where the system does not say what is free: macOS."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return None


def _cuda(device: str) -> Any:
    """torch.cuda, for a loss that runs there."""
    torch = sys.modules.get("torch")
    return torch.cuda if device.startswith("cuda") and torch is not None and torch.cuda.is_available() else None


def _begin(device: str) -> float:
    """Bytes in use; the mark of the peak is put back to them."""
    cuda = _cuda(device)
    if cuda:
        cuda.reset_peak_memory_stats(device)
        return float(cuda.memory_allocated(device))
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return _peak(device)
    return _status("VmRSS") or _peak(device)


def _peak(device: str) -> float:
    cuda = _cuda(device)
    if cuda:
        return float(cuda.max_memory_allocated(device))
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _status(name: str) -> float | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
