"""A NumPy loss over ranks: on any communicator, run by whatever runs ranks (`mpi.comm.ThreadComm.run`)."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import ARGUMENTS
from siglip_ref.check.call.in_numpy import numpy_dtype, require_five
from siglip_ref.check.call.results import no_scalar
from siglip_ref.check.ranks.stop import in_a_line
from siglip_ref.check.ranks.world import Outcomes, Ran, RankOutcome, Split, Stop, Task, numbers, parts_of
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

Ranks = Callable[[int, Callable[[Any], Any]], Sequence[Any]]


def run_numpy(task: Task, ranks: Ranks) -> Ran:
    """Every call, as long as none fails; on a thread of its own, for ranks that never end must not hold the caller."""
    outcomes: Outcomes = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for split in task.splits:
                outcomes.append(_complete(list(ranks(task.world_size, _on_rank(task, split))), task.world_size))
        except BaseException as cause:
            failure.append(cause)

    thread = threading.Thread(target=work, daemon=True, name="siglip-ref ranks")
    thread.start()
    thread.join(task.limit)
    done = outcomes[:]
    if thread.is_alive():
        label = task.splits[min(len(done), len(task.splits) - 1)].label
        what = "they may compute, or wait for each other"
        evidence = f"after {task.limit:g} s not all ranks had returned, at {label}; {what}"
        return Ran(done, Stop("time", 0, evidence, f"limit={2 * task.limit:g}, if they are only slow here"))
    if not failure:
        return Ran(done)
    rank, cause = getattr(failure[0], "rank", 0), failure[0].__cause__ or failure[0]
    if isinstance(cause, UsageError):
        raise cause
    if not isinstance(failure[0], Exception):  # Ctrl-C
        raise failure[0]
    evidence = f"rank {rank} failed at {task.splits[len(done)].label}: {in_a_line(cause)}"
    return Ran(done, Stop("failed", rank, evidence, "make that call alone, with that rank's shard"))


def _on_rank(task: Task, split: Split) -> Callable[[Any], RankOutcome]:
    rows, scalars = (numpy_dtype(kind) for kind in (task.setting.dtype, task.setting.scalar_dtype))

    def on_rank(comm: Any) -> RankOutcome:
        shard = split.shard(comm.rank)
        values = shard.image_embed.astype(rows), shard.text_embed.astype(rows)
        with np.errstate(all="ignore"):
            result = task.fn(*values, scalars.type(shard.scale), scalars.type(shard.bias), comm)
        require_five(result, "check_ranks")
        loss, hops, note = parts_of(result[0])
        value = np.asarray(loss)
        if value.size != 1 or value.dtype.kind in "OSU":
            raise no_scalar(loss, value.shape if value.dtype.kind not in "OSU" else None)
        gradients = dict(zip(ARGUMENTS, map(_wide, result[1:]), strict=True))
        return RankOutcome(value.astype(np.float64).reshape(()), gradients, numbers(hops), note)

    return on_rank


def _wide(gradient: Any) -> Array | None:
    return None if gradient is None else np.asarray(gradient).astype(np.float64)


def _complete(outcomes: list[Any], world_size: int) -> list[RankOutcome]:
    if len(outcomes) != world_size or not all(isinstance(one, RankOutcome) for one in outcomes):
        raise UsageError(
            expected=f"ranks=, which calls a function on {world_size} ranks and returns what each of them returned",
            got=f"{len(outcomes)} results: {', '.join(sorted({type(one).__name__ for one in outcomes}))}",
            cause="another order of arguments, or not all ranks' results",
            repair="ranks=lambda world_size, work: [work(comm) for comm in ...], or mpi.comm.ThreadComm.run",
        )
    return outcomes
