"""One rank of a Torch process group, as a program: python -m siglip_ref.check.ranks.torch FOLDER RANK."""

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from siglip_ref.check.call.frameworks import ARGUMENTS, Setting
from siglip_ref.check.call.in_torch import leaves_of, to_numpy
from siglip_ref.check.call.results import no_scalar
from siglip_ref.check.ranks.child import RETURNED, Child, child
from siglip_ref.check.ranks.pulse import counting
from siglip_ref.check.ranks.stop import in_a_line
from siglip_ref.check.ranks.world import Outcomes, RankOutcome, Split, Task, numbers, parts_of
from siglip_ref.errors import UsageError

FOR_EVER = timedelta(days=1)  # that a rank waits too long is for the process that watches to say


def call(fn: Callable[..., Any], split: Split, setting: Setting, rank: int, world_size: int) -> RankOutcome:
    """Forward and backward of one rank's shard; all ranks call this together."""
    leaves = leaves_of(split.shard(rank), setting, "plain")
    loss, hops, note = parts_of(fn(*leaves, rank, world_size))
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise no_scalar(loss, tuple(loss.shape) if isinstance(loss, torch.Tensor) else None)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    gradients = {
        name: None if leaf.grad is None else to_numpy(leaf.grad) for name, leaf in zip(ARGUMENTS, leaves, strict=True)
    }
    return RankOutcome(to_numpy(loss).reshape(()), gradients, numbers(hops), note)


def run_in_group(task: Task) -> Outcomes:
    """The same on a group that is already running (torchrun); every rank gets every rank's outcomes."""
    rank = dist.get_rank()
    setting = on_device(task.setting, rank)
    if task.setup:
        task.setup(rank, task.world_size)
    mine = [call(task.fn, split, setting, rank, task.world_size) for split in task.splits]
    gathered: list[Any] = [None] * task.world_size
    dist.all_gather_object(gathered, mine)
    return [list(of_ranks) for of_ranks in zip(*gathered, strict=True)]


def on_device(setting: Setting, rank: int) -> Setting:
    """Of several GPUs every rank has its own, as far as there are enough of them."""
    if setting.device != "cuda":
        return setting
    mine = rank % torch.cuda.device_count()
    torch.cuda.set_device(mine)
    return replace(setting, device=f"cuda:{mine}")


def require_group(backend: str, device: str, world_size: int) -> None:
    """A backend that Torch has, on devices on which its ranks do not block each other."""
    names = [part.split(":")[-1] for part in backend.split(",")]
    here = [name for name in ("gloo", "nccl", "ucc") if dist.is_available() and dist.is_backend_available(name)]
    unknown = [name for name in names if name not in here]
    if unknown:
        raise UsageError(
            expected=f"a backend with which processes can be started here: {', '.join(here) or 'none'}",
            got=f"backend={backend!r}",
            cause="ranks of mpi are started by mpiexec"
            if unknown == ["mpi"]
            else f"Torch {torch.__version__} has none",
            repair='backend="gloo"; or start the ranks yourself: a group that is running is used as it is',
        )
    gpus = torch.cuda.device_count()
    kind, shared = torch.device(device).type, device != "cuda" or gpus < world_size
    if kind not in ("cpu", "cuda") or ("nccl" in names and shared):
        raise UsageError(
            expected='device="cpu" or "cuda"; for NCCL a GPU of its own for every rank, device="cuda"',
            got=f'device="{device}", backend="{backend}", {world_size} ranks, {gpus} GPUs',
            cause="NCCL moves nothing but GPU memory" * (kind == "cpu")
            or "ranks that share a GPU wait for each other in NCCL" * (kind == "cuda")
            or "no backend of Torch moves that memory between processes here",
            repair=f'backend="gloo", device="{kind if kind in ("cpu", "cuda") else "cpu"}"',
        )


def _beyond_gloo(error: Exception) -> UsageError:
    """What to do where gloo has no such call for GPU memory."""
    return UsageError(
        expected="calls that gloo has for GPU memory",
        got=in_a_line(error),
        cause="gloo reduces and gathers there, but sends and receives the CPU's memory only",
        repair='device="cpu"; or backend="nccl", with a GPU for every rank',
    )


def _work(one: Child, rank: int) -> None:
    """Join the group, make every call, write what came of it."""
    one.begins("importing the function")
    task: Task = pickle.loads((one.folder / "task").read_bytes())  # written by the parent process a moment ago
    torch.set_num_threads(1)
    dist.Work.wait = counting(one.heart, dist.Work.wait)  # type: ignore[method-assign]
    one.begins("joining the group")
    store = dist.FileStore(str(one.folder / "store"), task.world_size)  # type: ignore[attr-defined]  # it is there
    store.set_timeout(FOR_EVER)
    setting = on_device(task.setting, rank)
    dist.init_process_group(task.backend, store=store, rank=rank, world_size=task.world_size, timeout=FOR_EVER)
    if task.setup:
        one.begins("setup")
        task.setup(rank, task.world_size)
    one.joined()
    for number, split in enumerate(task.splits):
        one.begins(split.label)
        try:
            outcome = call(task.fn, split, setting, rank, task.world_size)
        except RuntimeError as cause:
            if setting.device.startswith("cuda") and "ProcessGroupGloo" in str(cause):
                raise _beyond_gloo(cause) from cause
            raise
        one.brings(rank, number, outcome)
        one.begins(RETURNED + split.label)
        if number == len(task.splits) - 1:
            one.finished()  # and stay: others may still wait for what this one sent
        dist.barrier()  # a rank that is ahead must not start the next call into a late one's messages
    dist.destroy_process_group()


if __name__ == "__main__":
    with child(sys.argv[1], sys.argv[2]) as one:
        _work(one, one.number)
