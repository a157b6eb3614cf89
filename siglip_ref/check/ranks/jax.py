"""All ranks of a JAX loss in one child process, in which the host pretends to have as many devices as there are ranks.

Judged is what comes of shard_map on these devices. vmap with an axis name is a second opinion: it has ranks, but one
device, which a loss that asks for its devices may notice.

python -m siglip_ref.check.ranks.jax FOLDER 0
"""

import os
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from siglip_ref.check.call.frameworks import ARGUMENTS
from siglip_ref.check.call.results import no_scalar
from siglip_ref.check.ranks.arguments import named_axis
from siglip_ref.check.ranks.child import Child, child
from siglip_ref.check.ranks.stop import in_a_line
from siglip_ref.check.ranks.world import Outcomes, RankOutcome, Split, Task, parts_of
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

_COUNT = "--xla_force_host_platform_device_count"
_ALIKE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}  # another loss differs by far more


def run(task: Task, way: str) -> Outcomes:
    """Every split, one way of having ranks. Both transpose collectives as autograd does: all ranks' cotangents add."""
    import jax
    from jax.sharding import Mesh, PartitionSpec

    notes: dict[str, None] = {}

    def rank_loss(*values: Any) -> Any:
        loss, hops, note = parts_of(task.fn(*values, **named_axis(task.fn, task.axis)))
        if getattr(loss, "shape", None) != ():
            raise no_scalar(loss, getattr(loss, "shape", None))
        notes[note] = None
        return loss, None if hops is None else jax.numpy.asarray(hops)

    graded = jax.value_and_grad(rank_loss, (0, 1, 2, 3), has_aux=True)
    if way == "vmap":
        together: Callable[..., Any] = jax.vmap(graded, axis_name=task.axis)
    else:
        mesh = Mesh(np.array(jax.devices()[: task.world_size]), (task.axis,))
        spec = PartitionSpec(task.axis)

        def one_device(*values: Any) -> Any:
            results = graded(*(value[0] for value in values))
            return jax.tree.map(lambda result: result[None], results)

        together = jax.shard_map(one_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    compiled = jax.jit(together)
    outcomes = [_call(compiled, split, task) for split in task.splits]
    return [[replace(rank, note=" ".join(filter(None, notes))) for rank in call] for call in outcomes]


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


def second_opinion(task: Task, judged: Outcomes) -> str:
    """What is to be said of the same under vmap; nothing, where it gives the same."""
    try:
        other = run(task, "vmap")
    except Exception as cause:  # whatever it raises: it is right, or wrong, without vmap
        return f"judged by shard_map alone: under vmap it raises {in_a_line(cause)}"
    alike = _ALIKE[task.setting.dtype]
    for ranks, others in zip(judged, other, strict=True):
        for one, two in zip(ranks, others, strict=True):
            pairs = [(one.loss, two.loss), *((one.gradients[name], two.gradients[name]) for name in ARGUMENTS)]
            if not all(_same(a, b, alike * float(np.abs(one.loss))) for a, b in pairs):
                return (
                    "judged by shard_map alone: under vmap it gives other numbers, as does a loss that asks for its "
                    "devices (jax.device_count), of which vmap has but one"
                )
    return ""


def _same(a: Array | None, b: Array | None, room: float) -> bool:
    if a is None or b is None:
        return a is b
    return np.allclose(a, b, rtol=0, atol=room + room * float(np.max(np.abs(a), initial=0.0)), equal_nan=True)


def environment(world_size: int) -> dict[str, str]:
    """Of the process, before it starts: what a user's module imports may already ask for the devices."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_COUNT)]
    return {"XLA_FLAGS": " ".join([*flags, f"{_COUNT}={world_size}"]), "JAX_PLATFORMS": "cpu"}


def _work(one: Child) -> None:
    """All ranks, by shard_map; then by vmap, for what is to be said of it."""
    import jax

    jax.devices()  # made now, for a user's module may set other flags
    one.begins("importing the function")
    task: Task = pickle.loads((one.folder / "task").read_bytes())  # written by the parent process a moment ago
    if "float64" in (task.setting.dtype, task.setting.scalar_dtype):
        jax.config.update("jax_enable_x64", True)
    if task.setup:
        one.begins("setup")
        task.setup()
    one.joined()
    one.begins("shard_map")
    try:
        outcomes = run(task, "shard_map")
    except NameError as cause:
        other = re.search(r"unbound axis name: ([^\s.]+)", str(cause))
        if other is None:
            raise
        raise UsageError(
            expected=f'a loss whose axis is called "{task.axis}", as axis_name= says',
            got=in_a_line(cause),
            cause=f'the function has a name of its own for its axis, "{other[1]}"',
            repair=f'check_ranks(fn, axis_name="{other[1]}")',
        ) from cause
    for number, call in enumerate(outcomes):
        for rank, outcome in enumerate(call):
            one.brings(rank, number, outcome)
    one.begins("vmap")
    note = second_opinion(task, outcomes)
    if note:
        first = outcomes[0][0]
        one.brings(0, 0, replace(first, note=". ".join(filter(None, (first.note, note)))))
    one.finished()


if __name__ == "__main__":
    with child(sys.argv[1], sys.argv[2]) as one:
        _work(one)
