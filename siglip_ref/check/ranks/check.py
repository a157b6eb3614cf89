"""check_ranks: a chunked loss on real ranks, judged where each gradient has its owner."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

from siglip_ref.check.call.frameworks import Inputs, Setting, wanted
from siglip_ref.check.call.target import called_by
from siglip_ref.check.engine.expected.convention import LossKind, Objective
from siglip_ref.check.engine.expected.expected import EmbeddingKind, ScaleKind
from siglip_ref.check.engine.expected.probes import Probe
from siglip_ref.check.engine.expected.shards import sharded_probes
from siglip_ref.check.loss.arguments import declared_conventions, setting_of
from siglip_ref.check.ranks.arguments import examined, given_a_bias
from siglip_ref.check.ranks.judge import judge_ranks
from siglip_ref.check.ranks.numpy import Ranks, run_numpy
from siglip_ref.check.ranks.observed import Observed, Reduce, Value
from siglip_ref.check.ranks.processes import run_processes
from siglip_ref.check.ranks.world import Ran, Split, Task
from siglip_ref.report.data import Report


def check_ranks(
    fn: Callable[..., Any] | str,
    world_size: int = 4,
    framework: str | None = None,
    reduce: Reduce = "mean",
    value: Value = "local",
    unequal: bool = False,
    backend: str = "gloo",
    setup: Callable[..., Any] | None = None,
    *,
    dtype: object = "float32",
    device: str = "cpu",
    scale: ScaleKind | Literal["auto"] = "auto",
    embeddings: EmbeddingKind | Literal["auto"] = "auto",
    limit: float = 120.0,
    axis_name: str | None = None,
    ranks: Ranks | None = None,
    explain: bool = False,
    loss: LossKind = "sigmoid",
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Judge a loss whose pairs are spread over ranks: its value and four gradients, each at its owner.

    Parameters
    ----------
    fn : torch: fn(image_shard, text_shard, log_scale, bias, rank, world_size) on real processes, default group ready;
        jax: fn(image_shard, text_shard, log_scale, bias, axis_name=...), or without axis_name, if it names its axis
        itself; numpy: fn(image_shard, text_shard, log_scale, bias, comm) -> loss and four gradients. In place of the
        loss may stand (loss, losses hop by hop), from which the report reads whose texts were met at every hop, or
        (loss, anything else), of which the loss is looked at. A string names it
    world_size : ranks; a second world size is always tried too, so that 1/W cannot pose as a constant
    framework : "torch", "jax" or "numpy"; None: seen from the function
    reduce : what happens to gradients over ranks afterwards, "mean", "sum", or "none" (they are final)
    value : each rank returns its "local" part or the "global" loss
    unequal : also give the ranks different numbers of pairs
    backend : of torch.distributed; a group that is already running (torchrun) is used as it is
    setup : torch: setup(rank, world_size), called on every rank before the first call; jax: setup()
    dtype, scale, embeddings : as in check_loss
    device : torch: where the ranks compute, "cpu" or "cuda"; several ranks may share a GPU, with gloo
    limit : seconds for all calls of one world size, counted from when all ranks have imported what they need and have
        joined; what has not ended by then is NOT JUDGED. With ranks that are seen to wait for each other it is FAIL
    axis_name : jax: the name of the axis; None: "ranks"
    ranks : numpy: how ranks are run, `mpi.comm.ThreadComm.run`
    explain : say what the loss computes, `Report.computes` and `Report.blocks`, also where it is right
    loss : "sigmoid", SigLIP's; "softmax", CLIP's, which may also take no bias; no gradient of it is asked
    progress : called with a line before each number of ranks is tried

    Returns
    -------
    Report

    Raises
    ------
    UsageError : fn cannot be sent to ranks, or called on them
    """
    fn = called_by(fn)
    setting = setting_of(dtype, "float32", device, "pure")
    asked = examined(
        fn, world_size, framework, reduce, value, unequal, backend, setup, device, limit, axis_name, ranks, loss
    )
    candidates = declared_conventions(scale, embeddings, Objective(loss))
    if loss == "softmax":
        setting = setting.without("bias")
    observed: dict[str, list[Observed]] = {}
    stop = None
    for world in asked.worlds:
        (progress or str)(f"{world} ranks")
        scales = sorted({c.scale for c in candidates})
        splits, probes = calls_of(world, unequal, scales, setting)
        task = Task(
            given_a_bias(fn, asked.bias), setup, setting, splits, world, backend, asked.limit, axis_name or "ranks"
        )
        ran = _run(asked.framework, task, asked.in_group, ranks)
        last: dict[tuple[int, ...], Probe] = {}
        found: dict[tuple[str, str], Observed] = {}
        for split, (kind, probe), of_ranks in zip(splits, probes, ran.outcomes, strict=False):
            found[kind, split.label] = Observed(probe, split, of_ranks, wanted(setting, "plain"), last.get(split.sizes))
            last[split.sizes] = probe
        for key in (key for key in product(scales, dict.fromkeys(split.label for split in splits)) if key in found):
            observed.setdefault(key[0], []).append(found[key])
        stop = ran.stop
        if stop:
            break
    return judge_ranks(
        fn, asked.framework, setting, observed, candidates, reduce, value, asked.worlds, stop, explain is True
    )


check_distributed_loss = check_ranks  # its name before


def calls_of(
    world: int, unequal: bool, scales: Sequence[str], setting: Setting
) -> tuple[list[Split], list[tuple[str, Probe]]]:
    """The collective calls of one world size, and of each the kind of scale and the probe: every probe, for every kind
    of scale that the function may want; after the first, two calls in turn have other rows, so that it shows what was
    kept from the call before."""
    first, *rest = sharded_probes(world, unequal, setting.dtype, setting.scalar_dtype)
    turns = [(rest[k % len(rest)], scales[k % len(scales)]) for k in range(len(rest) * len(scales))]
    splits, probes = [], []
    for one, kind in [*product([first], scales), *turns]:
        probe = one.probe
        scale = probe.scale if kind == "linear" else probe.log_scale
        inputs = Inputs(probe.image_embed, probe.text_embed, scale, probe.bias)
        splits.append(Split(one.label, inputs, one.sizes))
        probes.append((kind, probe))
    return splits, probes


def _run(framework: str, task: Task, in_group: bool, ranks: Ranks | None) -> Ran:
    """What comes of one world size."""
    if framework == "torch" and in_group:
        from siglip_ref.check.ranks.torch import run_in_group

        return Ran(run_in_group(task))
    if framework == "torch":
        return run_processes("siglip_ref.check.ranks.torch", task, task.world_size)
    if framework == "jax":
        from siglip_ref.check.ranks.jax import environment

        return run_processes("siglip_ref.check.ranks.jax", task, 1, environment(task.world_size))
    assert ranks is not None  # examined
    return run_numpy(task, ranks)
