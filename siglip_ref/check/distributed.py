"""check_distributed_loss: a chunked loss on real ranks, judged where each gradient has its owner."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from siglip_ref.check.frameworks import ARGUMENTS, Inputs, Setting, describe, framework_of
from siglip_ref.check.probes import POINTS, Probe, make_probe
from siglip_ref.check.ranks import Outcomes, RankFailure, RankOutcome, Split, Task, loss_and_hops, run_processes
from siglip_ref.check.ranks_judge import Observed, Reduce, Value, failed_ranks, judge_ranks
from siglip_ref.check.report import Report
from siglip_ref.check.truth import CONVENTIONS, EmbeddingKind, ScaleKind
from siglip_ref.errors import UsageError

Ranks = Callable[[int, Callable[[Any], Any]], Sequence[Any]]

# The points at which what ranks can do wrong shows: every term weighs, as fresh, as trained, and with sure logits.
HUNTED = ("balanced", "init", "trained", "saturated, wrong")
WIDTH = 14


def check_distributed_loss(
    fn: Callable[..., Any] | str,
    world_size: int = 4,
    framework: str | None = None,
    reduce: Reduce = "mean",
    value: Value = "local",
    unequal: bool = False,
    backend: str = "gloo",
    setup: Callable[..., Any] | None = None,
    *,
    dtype: str = "float32",
    scale: ScaleKind | Literal["auto"] = "auto",
    embeddings: EmbeddingKind | Literal["auto"] = "auto",
    limit: float = 120.0,
    ranks: Ranks | None = None,
) -> Report:
    """Judge a loss whose pairs are spread over ranks: its value and four gradients, each at its owner.

    Parameters
    ----------
    fn : torch: fn(image_shard, text_shard, log_scale, bias, rank, world_size) on real processes, default group ready;
        jax: fn(image_shard, text_shard, log_scale, bias, axis_name=...); numpy: fn(image_shard, text_shard, log_scale,
        bias, comm) -> loss and four gradients. In place of the loss may stand (loss, losses hop by hop), from which the
        report reads whose texts were met at every hop. A string names it
    world_size : ranks; a second world size is always tried too, so that 1/W cannot pose as a constant
    framework : "torch", "jax" or "numpy"; None: seen from the function
    reduce : what happens to gradients over ranks afterwards, "mean", "sum", or "none" (they are final)
    value : each rank returns its "local" part or the "global" loss
    unequal : also give the ranks different numbers of pairs
    backend : of torch.distributed; a group that is already running (torchrun) is used as it is
    setup : torch: setup(rank, world_size), called on every rank before the first call; jax: setup()
    dtype, scale, embeddings : as in check_loss
    limit : seconds after which ranks that have not ended are ended
    ranks : numpy: how ranks are run, `mpi.comm.ThreadComm.run`

    Returns
    -------
    Report

    Raises
    ------
    UsageError : fn cannot be sent to ranks, or called on them
    """
    if isinstance(fn, str):
        from siglip_ref.check.target import load_callable

        fn = load_callable(fn)
    if not 2 <= world_size <= 8:
        raise UsageError("from 2 to 8 ranks", str(world_size), "1 is check_loss; many do not fit", "world_size=4")
    name = framework or framework_of(fn)
    setting = Setting(dtype, "float64" if dtype == "float64" else "float32", "cpu", False)
    candidates = [c for c in CONVENTIONS if scale in (c.scale, "auto") and embeddings in (c.embeddings, "auto")]
    group = _running_group(name)
    observed: dict[str, list[Observed]] = {}
    for world in [group] if group else [world_size, world_size - 1 if world_size > 2 else 3]:
        splits, probes = calls_of(world, unequal, sorted({c.scale for c in candidates}))
        task = Task(fn, setup, setting, splits, world, backend, limit)
        outcomes = _run(name, task, in_group=bool(group), ranks=ranks)
        failures = [failure for failure in outcomes if isinstance(failure, RankFailure)]
        if failures:
            return failed_ranks(f"{describe(fn)} ({name}, {setting.words}, {world} ranks)", failures, limit)
        for number, of_ranks in enumerate(outcomes):
            split, (kind, probe) = splits[number % len(splits)], probes[number % len(splits)]
            observed.setdefault(kind, []).append(Observed(probe, split, of_ranks))
    return judge_ranks(fn, name, setting, observed, candidates, reduce, value)


def calls_of(world: int, unequal: bool, scales: Sequence[str]) -> tuple[list[Split], list[tuple[str, Probe]]]:
    """The collective calls of one world size, and of each the kind of scale and the probe: every point, for every kind
    of scale that the function may want; pairs a rank and ranks are never equal."""
    each = 5 if world != 5 else 6
    shapes = [(each,) * world] + ([tuple(each - 2 + (3 * rank) % 4 for rank in range(world))] if unequal else [])
    splits, probes = [], []
    for sizes in shapes:
        for point in (point for point in POINTS if point.name in HUNTED):
            probe = make_probe(point, (sum(sizes), WIDTH))
            for kind in scales:
                scale = probe.scale if kind == "linear" else probe.log_scale
                label = f"{point.name} (W={world}, pairs {'+'.join(map(str, sizes))})"
                splits.append(Split(label, Inputs(probe.image_embed, probe.text_embed, scale, probe.bias), sizes))
                probes.append((kind, probe))
    return splits, probes


def _running_group(framework: str) -> int:
    """The size of the Torch process group this process is in (torchrun), else 0."""
    if framework != "torch":
        return 0
    import torch.distributed as dist

    return int(dist.get_world_size()) if dist.is_available() and dist.is_initialized() else 0


def _run(framework: str, task: Task, in_group: bool, ranks: Ranks | None) -> Sequence[Any]:
    """Outcomes by split and rank, or the failures of ranks."""
    if framework == "torch" and in_group:
        from siglip_ref.check.ranks_torch import run_in_group

        return run_in_group(task)
    if framework == "torch":
        return run_processes("siglip_ref.check.ranks_torch", task, task.world_size, len(task.splits))
    if framework == "jax":
        return run_processes("siglip_ref.check.ranks_jax", task, 1, 2 * len(task.splits))  # vmap, then shard_map
    if ranks is None:
        raise UsageError(
            expected="ranks=, a way to run a NumPy function on several ranks",
            got="none",
            cause="siglip_ref does not communicate; the package mpi beside it does",
            repair="from mpi.comm import ThreadComm; check_distributed_loss(fn, ranks=ThreadComm.run)",
        )
    return _run_numpy(task, ranks)


def _run_numpy(task: Task, ranks: Ranks) -> Outcomes:
    kind = np.dtype(task.setting.dtype)

    def one_call(split: Split) -> Callable[[Any], RankOutcome]:
        def on_rank(comm: Any) -> RankOutcome:
            shard = split.shard(comm.rank)
            rows = shard.image_embed.astype(kind), shard.text_embed.astype(kind)
            first, *gradients = task.fn(*rows, kind.type(shard.scale), kind.type(shard.bias), comm)
            loss, hops = loss_and_hops(first)
            wide = [np.asarray(gradient, np.float64) for gradient in gradients]
            told = None if hops is None else np.asarray(hops, np.float64)
            return RankOutcome(np.asarray(loss, np.float64).reshape(()), dict(zip(ARGUMENTS, wide, strict=True)), told)

        return on_rank

    return [list(ranks(task.world_size, one_call(split))) for split in task.splits]
