"""The command `siglip-ref train`, and its options, which `siglip-ring train` has too. Nothing heavy loads here."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from siglip_ref.process.options import Force, as_command
from siglip_ref.training.settings import Settings, TrainingStopped

if TYPE_CHECKING:
    from siglip_ref.training.loop import Run
    from siglip_ref.training.parallel import Parallel


def options(
    data: Annotated[
        str, typer.Option(help="shapes, digits, a folder of captioned images, or a captions.csv")
    ] = "shapes",
    out: Annotated[Path | None, typer.Option(help="folder of the training; default: runs/DATA")] = None,
    model: Annotated[str, typer.Option(help='a size, as "mu/16"; default: one that suits the data')] = "",
    bottleneck: Annotated[int, typer.Option(min=0, help="columns of the token table, as mSigLIP; 0: all")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="0: what suits the data")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="pairs of all ranks together; 0: what suits the data")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="0: what suits the data")] = 0.0,
    optimiser: Annotated[Literal["adamw", "big_vision"], typer.Option(help="big_vision: its Adafactor")] = "adamw",
    decay: Annotated[float | None, typer.Option(help="weight decay; default 0.1, of big_vision 1e-4")] = None,
    warmup: Annotated[int, typer.Option(help="steps; -1: a tenth of all")] = -1,
    clip: Annotated[float, typer.Option(help="longest gradient")] = 1.0,
    loss: Annotated[Literal["sigmoid", "softmax"], typer.Option(help="softmax: CLIP's")] = "sigmoid",
    recipe: Annotated[
        Literal["siglip", "siglip2"],
        typer.Option(help="siglip2: captions too; distillation and masked prediction from 80 % of the steps on"),
    ] = "siglip",
    resolution: Annotated[int, typer.Option(min=0, help="pixels in siglip2's last 5 %; 0: as before")] = 0,
    labels: Annotated[bool, typer.Option("--labels", help="train the image encoder as a classifier")] = False,
    init: Annotated[str, typer.Option(help="a released checkpoint to start from")] = "",
    freeze: Annotated[Literal["", "image"], typer.Option(help="image: keep the image tower of --init")] = "",
    learn: Annotated[
        Literal["", "text", "head"],
        typer.Option(help="of --init, its images locked: text: the text tower, slowly; head: its last layer alone"),
    ] = "",
    accumulate: Annotated[int, typer.Option(min=1, help="batches a step, each with its own negatives")] = 1,
    micro: Annotated[int, typer.Option(min=0, help="pairs computed at once; 0: all. All negatives are kept")] = 0,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="of all numbers")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="of weights, order and variation")] = 0,
    save_every: Annotated[int, typer.Option(min=0, help="steps between checkpoints; 0: a twentieth of all")] = 0,
    judge_every: Annotated[int, typer.Option(min=0, help="steps between evaluations; 0: a quarter of all")] = 0,
    force: Annotated[bool, typer.Option("--force", help="train in a folder that holds other things, too")] = False,
) -> None:
    """Train on a plain CPU. Interrupted, it goes on where it was: give the same command again."""


def with_options(runner: Callable[..., None]) -> Callable[..., None]:
    """A command with the runner's own options and those above, which the runner is given as one dict, `chosen`."""
    own = [p for p in inspect.signature(runner).parameters.values() if p.name != "chosen"]
    shared = list(inspect.signature(options).parameters.values())

    def command(**given: Any) -> None:
        runner(chosen={p.name: given.pop(p.name) for p in shared}, **given)

    return as_command(command, [*shared, *own], options)


def run(chosen: dict[str, Any], parallel: "Parallel") -> None:
    """One rank's part: train, and let the first rank show and write what came of it."""
    import numpy as np

    from siglip_ref.process.memory import keep_freed_memory
    from siglip_ref.training.finish import finish, watcher
    from siglip_ref.training.loop import train

    keep_freed_memory()
    chosen = dict(chosen)
    out, force = chosen.pop("out"), chosen.pop("force")
    every, judge_every = chosen.pop("save_every"), chosen.pop("judge_every")
    if chosen.pop("labels"):
        chosen["loss"] = "labels"
    if chosen.get("learn"):
        chosen["freeze"] = "image"
    settings = Settings(**chosen)
    out = out or Path("runs") / (Path(settings.data).stem or "data")
    show = watcher(parallel)

    def end(done: "Run") -> None:
        finish(settings, out, done, parallel, show)

    with np.errstate(all="ignore"):  # a loss that is no number stops the training, and says so
        train(settings, out, parallel, show, every, judge_every, force=force, finish=end)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(with_options(alone))
    app.command("study")(study)


def alone(chosen: dict[str, Any]) -> None:
    """One process."""
    from siglip_ref.training.parallel import Alone

    try:
        run(chosen, Alone())
    except TrainingStopped as stopped:
        typer.echo(
            f"siglip-ref: the training stopped\nstep:     {stopped.step}\ncause:    {stopped.cause}\n"
            f"repair:   {stopped.repair}",
            err=True,
        )
        raise typer.Exit(1) from None


def study(
    name: Annotated[str, typer.Argument(help="initialisation, batch, noise, beta2, negatives or bottleneck")],
    seeds: Annotated[int, typer.Option(min=2, help="trainings of each variant")] = 5,
    out: Annotated[Path, typer.Option(help="folder for NAME.json and NAME.svg")] = Path("studies"),
    quick: Annotated[bool, typer.Option("--quick", help="a fiftieth of the steps: does it work? No figures")] = False,
    force: Force = False,
) -> None:
    """Repeat one of the paper's studies at toy scale, with spread, beside the paper's own table."""
    from siglip_ref.errors import lookup
    from siglip_ref.training.study.run import run
    from siglip_ref.training.study.table import STUDIES

    chosen = lookup(STUDIES, name, "study", "siglip-ref study batch")
    typer.echo(run(chosen, seeds, out, typer.echo, force, quick))
    typer.echo(f"{out / name}.svg")
