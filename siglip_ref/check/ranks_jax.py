"""All ranks of a JAX loss in one child process: under vmap with an axis name, and on W pretended devices of the host.

python -m siglip_ref.check.ranks_jax FOLDER 0
"""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.check.frameworks import ARGUMENTS
from siglip_ref.check.ranks import Outcomes, RankOutcome, Split, Task, loss_and_hops, write
from siglip_ref.ops.elementary import Array

AXIS = "ranks"
WAYS = ("vmap", "shard_map")


def run(task: Task, way: str) -> Outcomes:
    """Every split, one way of having ranks. Both transpose collectives as autograd does: all ranks' cotangents add."""
    import jax
    from jax.sharding import Mesh, PartitionSpec

    def rank_loss(*values: Any) -> Any:
        loss, hops = loss_and_hops(task.fn(*values, axis_name=AXIS))
        return loss, None if hops is None else jax.numpy.asarray(hops)

    graded = jax.value_and_grad(rank_loss, (0, 1, 2, 3), has_aux=True)
    if way == "vmap":
        together: Callable[..., Any] = jax.vmap(graded, axis_name=AXIS)
    else:
        mesh = Mesh(np.array(jax.devices()[: task.world_size]), (AXIS,))
        spec = PartitionSpec(AXIS)

        def one_device(*values: Any) -> Any:
            results = graded(*(value[0] for value in values))
            return jax.tree.map(lambda result: result[None], results)

        together = jax.shard_map(one_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return [_call(jax.jit(together), split, task) for split in task.splits]


def _call(together: Callable[..., Any], split: Split, task: Task) -> list[RankOutcome]:
    import jax.numpy as jnp

    shards = [split.shard(rank) for rank in range(task.world_size)]
    kinds = (task.setting.dtype, task.setting.dtype, task.setting.scalar_dtype, task.setting.scalar_dtype)
    stacked: list[Array] = [
        jnp.asarray(np.stack([np.asarray(getattr(shard, name)) for shard in shards])).astype(kind)
        for name, kind in zip(("image_embed", "text_embed", "scale", "bias"), kinds, strict=True)
    ]
    (losses, hops), gradients = together(*stacked)
    told = [None] * len(shards) if hops is None else np.asarray(hops, np.float64)
    wide = [np.asarray(value).astype(np.float64) for value in (losses, *gradients)]
    return [
        RankOutcome(loss.reshape(()), dict(zip(ARGUMENTS, parts, strict=True)), of_rank)
        for of_rank, loss, *parts in zip(told, *wide, strict=True)
    ]


def main(folder: Path) -> None:
    """Both ways, the splits of the second after those of the first."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        task: Task = pickle.loads((folder / "task").read_bytes())  # written by the parent process a moment ago
        import jax

        if "float64" in (task.setting.dtype, task.setting.scalar_dtype):
            jax.config.update("jax_enable_x64", True)
        if task.setup:
            task.setup()
        for place, way in enumerate(WAYS):
            (folder / "stage-0").write_text(way)
            for number, of_ranks in enumerate(run(task, way)):
                for rank, outcome in enumerate(of_ranks):
                    write(folder / f"{rank}-{place * len(task.splits) + number}.npz", outcome)
    except Exception as cause:  # whatever a user's function raises is told by the parent process
        lines = str(cause).strip().splitlines() or [""]
        (folder / "error-0").write_text(f"{type(cause).__name__}: {lines[0][:300]}")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
