"""The training loop, the same for one process and for many ranks."""

import math
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.model.optim import State
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.process.blas_threads import one_pool
from siglip_ref.training.data.inputs import read_inputs
from siglip_ref.training.first_step import compiled_beside
from siglip_ref.training.parallel import Parallel
from siglip_ref.training.saved.folder import one_training, require_own
from siglip_ref.training.saved.resume import find, origin
from siglip_ref.training.saved.store import Saved, save
from siglip_ref.training.settings import Settings, TrainingStopped
from siglip_ref.training.siglip2 import prepare_siglip2
from siglip_ref.training.task import Task, prepare

HISTORY = ("loss", "log_scale", "bias")  # columns of the record, before those of `Task.beside`: one row a step


class Quiet:
    """Nobody watches: what every rank but the first is given."""

    def say(self, text: str) -> None:
        """A sentence."""

    def begin(self, task: Task, step: int) -> None:
        """The loop starts at this step."""

    def step(self, step: int, row: Array) -> None:
        """A step is done; row: see `HISTORY`."""

    def judged(self, step: int, found: dict[str, float]) -> None:
        """The model was judged."""

    def end(self) -> None:
        """The loop is over."""


@dataclass
class Run:
    """Where a training stands."""

    task: Task
    settings: Settings
    step: int
    params: Params
    state: State
    history: list[Array] = field(default_factory=list)
    judged: list[dict[str, float]] = field(default_factory=list)
    kept: Params = field(default_factory=dict)  # beside the parameters: a teacher, centres
    broken: int = 0  # pictures that could not be read, over all ranks

    @property
    def skipped(self) -> dict[str, str]:
        """Of this rank: names of pictures that could not be read, and why."""
        batches = self.task.batches
        return {batches.part.names(number): reason for number, reason in batches.skipped.items()}


def train(
    settings: Settings,
    out: Path,
    parallel: Parallel,
    show: Quiet,
    every: int = 0,
    judge_every: int = 0,
    stop_after: int = 0,
    force: bool = False,
    finish: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Train, or go on with a training that was interrupted.

    Parameters
    ----------
    settings : every choice that the numbers depend on
    out : folder of the training; its checkpoints, if it has some of these settings, are gone on from
    parallel : this rank among the others
    show : is told what happens
    every : steps between checkpoints (0: a twentieth of all)
    judge_every : steps between evaluations (0: a quarter of all); there is one before the first step and one at the end
    stop_after : steps after which to stop, as if interrupted (0: never)
    force : take a folder that holds other things, too
    finish : is given the run at its end, while the folder is still this training's alone
    """
    parallel.at(0, "preparing the data and the model")
    if parallel.rank == 0:
        require_own(out, force)
    inputs = read_inputs(settings, parallel.size)
    parallel.keeps_in(out)
    with one_training(out, show.say) if parallel.rank == 0 else nullcontext():
        saved = find(settings, inputs, out, parallel, show.say)
        made = prepare_siglip2 if settings.recipe == "siglip2" else prepare
        run = begin(settings, saved, made(settings, inputs, parallel, out, show.say))
        every, judge_every = every or max(1, run.task.total // 20), judge_every or max(1, run.task.total // 4)
        show.begin(run.task, run.step)
        try:
            with compiled_beside(settings, inputs, parallel, run.task.ops.compiled) as wait:
                if saved is None and parallel.rank == 0:
                    judge(run, parallel, show)
                wait()
            while run.step < run.task.total and not run.step == stop_after > 0:
                step_and_keep(run, out, parallel, show, every, judge_every, origin(settings, inputs))
        finally:
            show.end()
        run.broken = count_broken(run, parallel)
        finish(run)
    return run


def begin(settings: Settings, saved: Saved | None, task: Task) -> Run:
    """The run where it was, or at its beginning."""
    if saved is None:
        return Run(task, settings, 0, task.params, State())
    params = {name: saved.tensors.get(f"params/{name}", value) for name, value in task.params.items()}
    slots, kept = (subtree(saved.tensors, name) for name in ("slots", "kept"))
    state, history = State(saved.step, slots), list(saved.tensors["history"])
    return Run(task, settings, saved.step, params, state, history, list(saved.about["judged"]), kept)


def judge(run: Run, parallel: Parallel, show: Quiet) -> None:
    """The model on what was held out, as it is now; a fresh one says what chance is."""
    parallel.at(run.step, "judging the model")
    run.judged.append({"step": run.step} | run.task.judge(run.params))
    show.judged(run.step, run.judged[-1])


def step_and_keep(
    run: Run, out: Path, parallel: Parallel, show: Quiet, every: int, judge_every: int, about: dict[str, Any]
) -> None:
    """One step, and what is due after it: a judgement, a checkpoint."""
    with one_pool(run.task.ops.compiled):  # once a step, not once a kernel
        one_step(run, parallel)
    show.step(run.step, run.history[-1])
    last = run.step == run.task.total
    if parallel.rank == 0 and (last or run.step % judge_every == 0):
        judge(run, parallel, show)
    if last or run.step % every == 0:
        require_same_bits(run, parallel)
        if parallel.rank == 0:
            parallel.at(run.step, "writing a checkpoint")
            keep(run, out, about | {"ranks": parallel.size, "judged": run.judged})


def one_step(run: Run, parallel: Parallel) -> None:
    """Take the parameters one step further, and keep a record of it."""
    beside = run.task.beside
    run.params, run.state, run.kept = beside.enter(run.step, run.params, run.state, run.kept)
    loss, sums = summed(run, parallel)
    parallel.at(run.step, "the optimiser")
    told, grads = subtree(sums, "told"), {name: sums[name] for name in run.task.learnt if name in sums}
    loss, *apart = beside.record(run.step, loss, told)
    row = [loss, float(run.params["log_scale"]), float(run.params["bias"]), *apart]
    learnt = {name: run.params[name] for name in grads} if len(grads) < len(run.params) else run.params
    moved, run.state = run.task.step(learnt, grads, run.state, run.step)
    run.params = moved if len(moved) == len(run.params) else {**run.params, **moved}
    run.kept = beside.follow(run.step, run.params, run.kept, told)
    run.history.append(np.array(row))
    run.step += 1


def count_broken(run: Run, parallel: Parallel) -> int:
    """Pictures that any rank could not read."""
    found = np.zeros(run.task.batches.part.count)
    found[list(run.task.batches.skipped)] = 1
    return int((parallel.sum(found) > 0).sum())


def summed(run: Run, parallel: Parallel) -> tuple[float, Params]:
    """Loss and gradients of this step, and what else is told, the same on every rank."""
    task, batches = run.task, run.settings.accumulate
    parallel.at(run.step, "reading its batch")
    loss, given = 0.0, {**run.params, **run.kept}
    for part in range(batches):
        found, grads = task.gradient(given, run.step * batches + part)
        names = [name for name in task.learnt if name in grads] + [name for name in grads if name.startswith("told/")]
        if part == 0:
            shapes = [np.shape(grads[name]) for name in names]
            ends = np.cumsum([0, *map(math.prod, shapes)])
            kind = np.result_type(*(np.asarray(grads[name]).dtype for name in names))
            whole = np.zeros(ends[-1] + parallel.size, kind)  # and what of each rank is finite
        loss += found / batches
        for name, start, stop in zip(names, ends, ends[1:], strict=False):
            mine = _own(name, grads.pop(name), task, parallel)  # which may go now: large models have one copy less
            whole[start:stop] += mine.reshape(-1)
    flat = whole[: ends[-1]]
    if batches > 1:
        flat /= batches
    whole[flat.size + parallel.rank] = np.isfinite(flat).all() and math.isfinite(loss)
    parallel.at(run.step, "summing up the gradients")
    total = parallel.sum(whole)
    if not total[flat.size :].all():
        ranks = ", ".join(str(rank) for rank in np.flatnonzero(total[flat.size :] != 1))
        raise TrainingStopped(
            run.step,
            f"the loss or a gradient of rank {ranks} is not a finite number (loss {loss:.6g})",
            "lower --lr, lengthen --warmup or clip harder; the checkpoints are from before",
        )
    pieces = zip(names, shapes, ends, ends[1:], strict=False)
    return loss, {name: total[start:stop].reshape(shape) for name, shape, start, stop in pieces}


def _own(name: str, grad: Array, task: Task, parallel: Parallel) -> Array:
    """What this rank adds to the sum over ranks.

    A key's bias moves no attention weight: its gradient is zero, and what is computed is rounding, which an adaptive
    optimiser would blow up to full steps. So it is made the zero it is.
    """
    if name.endswith("/k/bias") or (name in task.shared and parallel.rank > 0):
        return np.zeros_like(grad)
    return np.asarray(grad)


def require_same_bits(run: Run, parallel: Parallel) -> None:
    """Every rank must hold the same parameters, bit for bit."""
    parallel.at(run.step, "comparing the ranks")
    marks = np.zeros(parallel.size)
    for value in (*run.params.values(), *run.kept.values()):
        marks[parallel.rank] = zlib.crc32(value.tobytes(), int(marks[parallel.rank]))
    marks = parallel.sum(marks)
    if (marks != marks[0]).any():
        rank = int(np.argmax(marks != marks[0]))
        raise TrainingStopped(
            run.step,
            f"the parameters of rank {rank} are not those of rank 0",
            "its memory or its libraries differ: give every rank the same environment; the checkpoints are from before",
        )


def keep(run: Run, out: Path, about: dict[str, Any]) -> None:
    """Write a checkpoint; of a training with a locked tower, what it learns: the rest is that of --init."""
    names = run.task.learnt if run.settings.freeze else run.params
    tensors = {f"params/{name}": run.params[name] for name in names}
    tensors |= prefixed("slots", run.state.slots) | prefixed("kept", run.kept)
    tensors["history"] = np.array(run.history)
    save(out / "checkpoints", run.step, tensors, about)
