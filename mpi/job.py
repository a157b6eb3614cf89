"""The run behind `siglip-ring loss` and `siglip-ring trace`: a batch from a seed, the ring, its trace, the check."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from mpi.batch import Job, Outcome, bias_of, make_batch, shard_sizes
from mpi.comm import Array, Communicator
from mpi.loss import ring_sigmoid_loss
from mpi.observe import Faults, Listener, Observed
from mpi.trace import Trace, collect
from mpi.watchdog.progress import Progress
from siglip_ref import ops
from siglip_ref.errors import UsageError
from siglip_ref.model.loss import LossAndGrads, sigmoid_loss

TOLERANCE = {"float64": 1e-13, "float32": 1e-5}


def run(job: Job, comm: Communicator, progress: Progress, slot: int) -> Outcome:
    """One rank's part."""
    sizes = shard_sizes(job.pairs, comm.size, job.unequal)
    images, texts = make_batch(job, job.pairs)
    first = sum(sizes[: comm.rank])
    mine = slice(first, first + sizes[comm.rank])
    bias = bias_of(job)

    trace = Trace()
    listeners: list[Listener] = [trace, progress.listener(slot, comm.rank)]
    x, y, log_scale = images[mine], texts[mine], job.log_scale
    if job.fault:
        rank, hop, kind = parse_fault(job.fault, comm.size)
        listeners.append(Faults(rank, hop, partial(_fault, kind, progress, slot)))
        if rank == comm.rank:
            x, y, log_scale = _spoil(kind, x, y, log_scale)
    observed = Observed(comm, *listeners)
    result = ring_sigmoid_loss(observed, x, y, log_scale, bias, scheme=job.scheme, tile=job.tile, ops=observed.ops(ops))
    worst = _worst_error(comm, result, images, texts, mine, job.log_scale, bias) if job.check else None
    events = collect(comm, trace.events)
    return Outcome(events, sizes, float(result.loss), float(result.d_log_scale), float(result.d_bias), worst)


def _worst_error(
    comm: Communicator, result: LossAndGrads, images: Array, texts: Array, mine: slice, log_scale: float, bias: float
) -> tuple[float, str]:
    """Largest error of all ranks against one process, which computes in float64."""
    whole = sigmoid_loss(images.astype(float), texts.astype(float), log_scale, bias, tile=1024)
    table = np.zeros((comm.size, len(whole)))
    for column, name in enumerate(whole._fields):
        b = np.asarray(getattr(whole, name))
        a = np.asarray(getattr(result, name))
        gap = np.abs(a - (b[mine] if b.ndim else b)).max(initial=0.0)
        table[comm.rank, column] = gap / np.abs(b).max()
    everyone = np.empty_like(table)
    comm.Allreduce(table, everyone)
    by_name = everyone.max(0)  # a NaN wins
    column = int(by_name.argmax())
    return float(by_name[column]), whole._fields[column]


def _fault(kind: str, progress: Progress, slot: int) -> None:
    """Among threads a signal does not say whom it was meant for: that is noted before."""
    progress.tell(asked=slot)
    FAULTS[kind]()


def _fail() -> None:
    raise RuntimeError("this failure was asked for with --fault")


def _signal_here(number: int) -> None:
    """To this very thread: one sent to the process lets the rank go on until another of its threads has taken it."""
    signal.pthread_kill(threading.get_ident(), number)


FAULTS: dict[str, Callable[[], None]] = {
    "raise": _fail,
    "kill": lambda: _signal_here(signal.SIGKILL),
    "stall": lambda: time.sleep(3600),
    "stop": lambda: _signal_here(signal.SIGSTOP),
} | dict.fromkeys(("nan", "shape", "dtype", "scale"), lambda: None)  # these four spoil that rank's input instead


def parse_fault(text: str, world: int) -> tuple[int, int, str]:
    """rank:hop:kind."""
    rank, _, rest = text.partition(":")
    hop, _, kind = rest.partition(":")
    if not (rank.isdecimal() and hop.isdecimal() and kind in FAULTS and int(rank) < world and int(hop) < world):
        expected = f"--fault rank:hop:kind, rank and hop below {world}, kind one of {', '.join(FAULTS)}"
        raise UsageError(expected, repr(text), "a typing mistake", "for instance --fault 1:2:raise")
    return int(rank), int(hop), kind


def _spoil(kind: str, x: Array, y: Array, log_scale: float) -> tuple[Array, Array, float]:
    if kind == "nan":
        y = np.where(np.arange(len(y))[:, None] == 0, np.nan, y)
    elif kind == "shape":
        y = y[1:]
    elif kind == "dtype":
        other = np.float32 if x.dtype == np.float64 else np.float64
        x, y = x.astype(other), y.astype(other)
    elif kind == "scale":
        log_scale += 1e-6
    return x, y, log_scale
