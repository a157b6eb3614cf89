"""check_distributed_loss: a chunked loss on real ranks, judged where each gradient has its owner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from siglip_ref.check.compare import Row
from siglip_ref.check.frameworks import ARGUMENTS, Inputs, Outcome, Setting, describe, framework_of
from siglip_ref.check.loss_words import conventions_in_words
from siglip_ref.check.probes import POINTS, Probe, make_probe
from siglip_ref.check.ranks import WAITING, Outcomes, RankFailure, RankOutcome, Split, Task, run_processes
from siglip_ref.check.report import Finding, Report, verdict_of, worst_rows
from siglip_ref.check.truth import CONVENTIONS, Convention, EmbeddingKind, ScaleKind, judge, truth
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array

Reduce = Literal["mean", "sum", "none"]
Value = Literal["local", "global"]
Ranks = Callable[[int, Callable[[Any], Any]], Sequence[Any]]

# The points at which what ranks can do wrong shows: every term weighs, as fresh, as trained, and with sure logits.
HUNTED = ("balanced", "init", "trained", "saturated, wrong")
WIDTH = 14

_REDUCE = {
    "mean": "gradients are averaged over ranks afterwards: an embedding shard's is W times its global one before that",
    "sum": "gradients are added over ranks afterwards: an embedding shard's is its global one",
    "none": "gradients are final: a shard's is its global one, scale and bias are the same on every rank",
}
_VALUE = {"local": "a rank returns its part; their mean is the loss", "global": "every rank returns the whole loss"}


@dataclass(frozen=True)
class Observed:
    """What the ranks of one call brought back, and the probe that they were given."""

    probe: Probe
    split: Split
    ranks: Sequence[RankOutcome]

    def together(self, reduce: Reduce, value: Value) -> Outcome:
        """One process's view: the loss, each shard's gradient from its owner, scale and bias reduced as declared."""
        world = len(self.ranks)
        losses = np.array([float(rank.loss) for rank in self.ranks])
        # local values: W / B times the local sum where gradients are averaged, 1 / B times where they are added
        loss = _scalar(losses, "none" if value == "global" else reduce)
        factor = 1 / world if reduce == "mean" else 1.0
        gradients: dict[str, Array | None] = {}
        for name in ARGUMENTS:
            parts = [part for part in (rank.gradients[name] for rank in self.ranks) if part is not None]
            if len(parts) < world:
                gradients[name] = None
            elif name in ("image_embed", "text_embed"):
                gradients[name] = factor * np.concatenate(parts)
            else:
                gradients[name] = _scalar(np.array([float(np.sum(part)) for part in parts]), reduce)
        return Outcome(np.array(loss), gradients)


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
        jax: fn(image_shard, text_shard, log_scale, bias, *, axis_name); numpy: fn(image_shard, text_shard, log_scale,
        bias, comm) -> loss and four gradients. It may return (loss, losses hop by hop). A string names it
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
        splits, probes = _splits(world, unequal, sorted({c.scale for c in candidates}))
        task = Task(fn, setup, setting, splits, world, backend, limit)
        outcomes = _run(name, task, in_group=bool(group), ranks=ranks)
        failures = [failure for failure in outcomes if isinstance(failure, RankFailure)]
        if failures:
            return _failed(f"{describe(fn)} ({name}, {setting.words}, {world} ranks)", failures, limit)
        for number, of_ranks in enumerate(outcomes):
            split, (kind, probe) = splits[number % len(splits)], probes[number % len(splits)]
            observed.setdefault(kind, []).append(Observed(probe, split, of_ranks))
    return _judged(fn, name, setting, observed, candidates, reduce, value)


def _judged(
    fn: Callable[..., Any],
    name: str,
    setting: Setting,
    observed: dict[str, list[Observed]],
    candidates: Sequence[Convention],
    reduce: Reduce,
    value: Value,
) -> Report:
    """The report under the convention that fits best; the declared way of reducing comes first."""
    alternatives: tuple[Reduce, ...] = ("mean", "sum", "none") if name == "numpy" else ("mean", "sum")
    ways = [reduce, *(way for way in alternatives if way != reduce)]
    scored = [
        (
            _wrong(rows := _rows(observed[convention.scale], convention, setting, way, value)),
            ways.index(way),
            place,
            rows,
        )
        for way in ways
        for place, convention in enumerate(candidates)
    ]
    # the declared reduction, unless only another one explains everything
    right = [entry for entry in scored if entry[0] == 0]
    best = min(right, key=lambda e: e[1:3]) if right else min((e for e in scored if e[1] == 0), key=lambda e: e[:3])
    _, used, place, details = best
    convention = candidates[place]
    report = Report(
        title=f"{describe(fn)} ({name}, {setting.words}, {_worlds(observed)})",
        verdict=verdict_of(details),
        rows=worst_rows(details),
        conventions=conventions_in_words(convention, candidates)
        | {f'reduce="{ways[used]}"': _REDUCE[ways[used]], f'value="{value}"': _VALUE[value]},
        details=details,
    )
    if report.passed and used:
        report.verdict = "OTHER CONVENTION"
        evidence = f'declared was reduce="{reduce}", but everything is right under reduce="{ways[used]}"'
        repair = f'if that is meant, declare it: check_distributed_loss(fn, reduce="{ways[used]}")'
        report.findings.append(Finding("convention", "", "", evidence, repair))
    if not report.passed:
        report.findings += _diagnosis(observed[convention.scale], convention, setting, ways[used], value)
    calls = sum(len(calls) for calls in observed.values())
    report.notes.append(f"{len(details)} comparisons in {calls} collective calls; every rank had other data")
    return report


def _rows(
    observed: Sequence[Observed], convention: Convention, setting: Setting, reduce: Reduce, value: Value
) -> list[Row]:
    rows: list[Row] = []
    for call in observed:
        right = truth(call.probe, convention, setting)
        for row in judge(call.together(reduce, value), right, call.split.label):
            rows.append(replace(row, rows=_with_ranks(row, call)))
    return rows


def _diagnosis(
    observed: Sequence[Observed], convention: Convention, setting: Setting, reduce: Reduce, value: Value
) -> list[Finding]:
    """Mistakes between ranks first, then those of any loss."""
    from siglip_ref.check.diagnose import explain, seen_of
    from siglip_ref.check.mistakes import Mistake, executable
    from siglip_ref.check.predict import in_the_loss, predict_loss

    seen = [
        one
        for call in observed
        for one in seen_of(call.split.label, call.together(reduce, value), truth(call.probe, convention, setting))
    ]

    def predict(mistakes: Sequence[Mistake]) -> dict[tuple[str, str], Array]:
        return {
            (call.split.label, name): values
            for call in observed
            for name, values in predict_loss(mistakes, call.probe, convention, setting.dtype, call.split.sizes).items()
        }

    return explain(seen, executable("across ranks") + [m for m in executable("one vector") if in_the_loss(m)], predict)


def _with_ranks(row: Row, call: Observed) -> str:
    """Which ranks own the wrong rows, said beside the rows."""
    return f"{row.rows} (shards of {', '.join(map(str, call.split.sizes))} pairs)" if row.rows else ""


def _wrong(rows: Sequence[Row]) -> int:
    return sum(row.verdict == "FAIL" for row in rows)


def _scalar(parts: Array, reduce: Reduce) -> Array:
    if reduce == "none":  # final on every rank: the one that differs most speaks
        return np.array(parts[np.abs(parts - np.median(parts)).argmax()])
    return np.array(parts.mean() if reduce == "mean" else parts.sum())


def _worlds(observed: dict[str, list[Observed]]) -> str:
    sizes = sorted({len(call.ranks) for calls in observed.values() for call in calls})
    return f"{' and '.join(map(str, sizes))} ranks"


def _splits(world: int, unequal: bool, scales: Sequence[str]) -> tuple[list[Split], list[tuple[str, Probe]]]:
    """Every point, for every kind of scale the function may want; pairs a rank and ranks are never equal."""
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
            loss, *gradients = task.fn(*rows, kind.type(shard.scale), kind.type(shard.bias), comm)
            wide = [np.asarray(gradient, np.float64) for gradient in gradients]
            return RankOutcome(np.asarray(loss, np.float64).reshape(()), dict(zip(ARGUMENTS, wide, strict=True)))

        return on_rank

    return [list(ranks(task.world_size, one_call(split))) for split in task.splits]


def _failed(title: str, failures: Sequence[RankFailure], limit: float) -> Report:
    """Ranks that raised, died, or waited for ever; the one that failed first tells the cause, the others noticed."""
    hanging = all(failure.cause == WAITING for failure in failures)
    first = min(failures, key=lambda failure: failure.when)
    if hanging:
        who = ", ".join(str(failure.rank) for failure in failures)
        evidence = f"ranks {who} did not end within {limit:g} s; the first of them was at {first.stage}"
        repair = "every rank sent before it received, or one makes a call more: use Sendrecv, or isend and irecv"
    else:
        evidence = f"rank {first.rank} failed at {first.stage}: {first.cause}"
        repair = "run that rank's shard alone; if unequal shards are not supported, leave unequal=False"
    finding = Finding("p2p-order-deadlock" if hanging else "rank-failed", "", f"rank {first.rank}", evidence, repair)
    return Report(title=title, verdict="FAIL", rows=[], findings=[finding], not_checked=["values and gradients"])
