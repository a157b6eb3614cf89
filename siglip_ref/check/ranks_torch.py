"""One rank of a Torch process group, as a program: python -m siglip_ref.check.ranks_torch FOLDER RANK."""

import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from siglip_ref.check.frameworks import ARGUMENTS, Setting
from siglip_ref.check.in_torch import leaves_of, to_numpy
from siglip_ref.check.ranks import Outcomes, RankOutcome, Split, Task, loss_and_hops, write
from siglip_ref.check.results import no_scalar


def call(fn: Callable[..., Any], split: Split, setting: Setting, rank: int, world_size: int) -> RankOutcome:
    """Forward and backward of one rank's shard; all ranks call this together."""
    leaves = leaves_of(split.shard(rank), setting, "plain")
    loss, hops = loss_and_hops(fn(*leaves, rank, world_size))
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise no_scalar(loss, tuple(loss.shape) if isinstance(loss, torch.Tensor) else None)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    gradients = {
        name: None if leaf.grad is None else to_numpy(leaf.grad) for name, leaf in zip(ARGUMENTS, leaves, strict=True)
    }
    told = None if hops is None else np.array([float(hop) for hop in hops])
    return RankOutcome(to_numpy(loss).reshape(()), gradients, told)


def run_in_group(task: Task) -> Outcomes:
    """The same on a group that is already running (torchrun); every rank gets every rank's outcomes."""
    rank = dist.get_rank()
    if task.setup:
        task.setup(rank, task.world_size)
    mine = [call(task.fn, split, task.setting, rank, task.world_size) for split in task.splits]
    gathered: list[Any] = [None] * task.world_size
    dist.all_gather_object(gathered, mine)
    return [list(of_ranks) for of_ranks in zip(*gathered, strict=True)]


def main(folder: Path, rank: int) -> None:
    """Join the group, make every call, write what came of it."""
    task: Task = pickle.loads((folder / "task").read_bytes())  # written by the parent process a moment ago
    stage = folder / f"stage-{rank}"
    try:
        torch.set_num_threads(1)
        stage.write_text("joining the group")
        store = dist.FileStore(str(folder / "store"), task.world_size)  # type: ignore[attr-defined]  # it is there
        limit = timedelta(seconds=task.limit)
        if task.backend == "nccl":
            torch.cuda.set_device(rank % torch.cuda.device_count())
        dist.init_process_group(task.backend, store=store, rank=rank, world_size=task.world_size, timeout=limit)
        if task.setup:
            stage.write_text("setup")
            task.setup(rank, task.world_size)
        for number, split in enumerate(task.splits):
            stage.write_text(split.label)
            write(folder / f"{rank}-{number}.npz", call(task.fn, split, task.setting, rank, task.world_size))
            dist.barrier()  # a rank that is ahead must not start the next call into a late one's messages
        stage.write_text("leaving the group")
        dist.destroy_process_group()
    except Exception as cause:  # whatever a user's function raises is told by the parent process
        lines = str(cause).strip().splitlines() or [""]
        (folder / f"error-{rank}").write_text(f"{type(cause).__name__}: {lines[0][:300]}")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
