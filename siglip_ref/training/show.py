"""What is seen of a training: a moving line on a terminal, a few lines elsewhere; curves at the end."""

import csv
import io
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.ops.elementary import Array
from siglip_ref.process.atomic import write_atomically
from siglip_ref.process.clock import at, duration
from siglip_ref.training.loop import HISTORY, Quiet, Run
from siglip_ref.training.task import Task
from siglip_ref.use.inference import computes_with

LINES = 10  # printed in all where there is no terminal


class Terminal(Quiet):
    """Loss, scale, bias, images a second, and after three steps the expected end."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = Console(highlight=False)
        columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.times: deque[float] = deque(maxlen=50)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def begin(self, task: Task, step: int) -> None:
        self.total, self.images, self.losses = task.total, task.batches.size, task.beside.losses
        learnt = sum(task.params[name].size for name in task.learnt)
        self.say(
            f"{task.cfg.name}: {learnt:,} numbers to learn, batches of {self.images}; "
            f"computed with {computes_with(task.ops)}"
        )
        self.line = self.bar.add_task("", total=task.total, completed=step)
        if self.console.is_terminal:
            self.bar.start()

    def step(self, step: int, row: Array) -> None:
        self.times.append(time.monotonic())
        words = f"step {step}/{self.total}  loss {row[0]:.4f}  scale {math.exp(row[1]):.2f}  bias {row[2]:.2f}"
        words += "".join(
            f"  {name} {value:.4f}" for name, value in zip(self.losses, row[3:], strict=True) if not math.isnan(value)
        )
        if len(self.times) > 3:
            a_step = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
            left = a_step * (self.total - step)
            words += f"  {self.images / a_step:,.0f} images/s"
            words += f"  ends in {duration(left)}, at {at(left)}"
        self.bar.update(self.line, completed=step, description=words.partition("  ")[2])
        if not self.console.is_terminal and (step % max(1, self.total // LINES) == 0 or step == 4):
            self.say(words)

    def judged(self, step: int, found: dict[str, float]) -> None:
        self.say(f"after {step} steps: " + in_words(found))

    def end(self) -> None:
        self.bar.stop()


def in_words(found: dict[str, float]) -> str:
    """An evaluation."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items() if name != "step")


def write_history(out: Path, run: Run) -> None:
    """history.csv and, where matplotlib is installed, curves.png."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["step", *HISTORY, *run.task.beside.losses])
    rows = ([repr(float(value)) if not math.isnan(value) else "" for value in row] for row in run.history)
    table.writerows([step, *row] for step, row in enumerate(rows, start=1))
    write_atomically(out / "history.csv", text.getvalue().encode())
    try:
        import matplotlib

        matplotlib.use("Agg")
    except ImportError:
        return
    title = f"{run.task.cfg.name} on {run.settings.data}, {run.step:,} steps"
    draw(out / "curves.png", np.array(run.history), run.judged, title, run.task.beside.losses)


def draw(path: Path, history: Array, judged: list[dict[str, float]], title: str, losses: tuple[str, ...] = ()) -> None:
    """Loss, scale, bias and evaluations over the steps; the title ends with the last evaluation.

    losses : names of the history's further columns, the parts of the loss
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    steps = np.arange(1, len(history) + 1)
    curves = (("loss", history[:, 0]), ("scale", np.exp(history[:, 1])), ("bias", history[:, 2]))
    for axis, (name, values) in zip(axes.flat, curves, strict=False):
        axis.plot(steps, values, linewidth=1)
        axis.set(title=name, xlabel="step")
    for name, values in zip(losses, history[:, 3:].T, strict=True):
        axes.flat[0].plot(steps, values, linewidth=1, label=name)
    if losses:
        axes.flat[0].legend(fontsize=8)
    axes.flat[0].set_yscale("log")
    for axis in axes.flat[:3]:
        for kind in ("major", "minor"):
            getattr(axis.yaxis, f"set_{kind}_formatter")(ScalarFormatter(useOffset=False))
    for name in [name for name in judged[-1] if name != "step"] if judged else []:
        line = axes.flat[3].plot([at["step"] for at in judged], [100 * at[name] for at in judged], ".-", label=name)[0]
        if judged[0]["step"] == 0:
            axes.flat[3].axhline(100 * judged[0][name], color=line.get_color(), linestyle=":", linewidth=1)
    axes.flat[3].set(title="on held-out pictures (dotted: a fresh model)", xlabel="step", ylabel="%", ylim=(0, 100))
    if judged:
        axes.flat[3].legend(fontsize=8)
        title += ": " + in_words(judged[-1])
    figure.suptitle(title, fontsize=10)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100, metadata={"Software": None})
    write_atomically(path, image.getvalue())
