"""The commands `siglip-ref classify` and `siglip-ref heatmap`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siglip_ref.cli.search import require_one
from siglip_ref.cli.zeroshot import (
    Batch,
    How,
    ModelPath,
    Prefix,
    Threads,
    Tokens,
    end,
    files_of,
    labels_of,
    notes,
    once,
    progress,
)
from siglip_ref.errors import UsageError
from siglip_ref.process.options import no_overwriting
from siglip_ref.process.typed import visible

if TYPE_CHECKING:
    from siglip_ref.use.search.calibrate import Calibration
    from siglip_ref.use.search.classes import Sorted
    from siglip_ref.use.search.classifier import Classifier
    from siglip_ref.use.zeroshot import Model


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("classify")(no_overwriting(files="save", inputs="calibrate calibration")(classify))
    app.command("heatmap")(no_overwriting(files="out", inputs="photo")(heatmap))


def classify(
    model: ModelPath,
    image: Annotated[list[Path], typer.Option(help="an image, or a folder with all below it; may be repeated")],
    labels: Annotated[str | None, typer.Option(help='"cat,dog", or @FILE; else the classes that were learnt')] = None,
    prompts: Annotated[Path | None, typer.Option(help="a file with one template a line, {} for the label")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="a CSV image,label: fit scale and bias on these")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="keep what --calibrate fitted, as JSON")] = None,
    calibration: Annotated[Path | None, typer.Option(metavar="FILE", help="use what --save kept")] = None,
    top: Annotated[int, typer.Option("-t", "--top", min=1, help="labels shown per image; JSON and CSV have all")] = 3,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    tokenizer: Tokens = None,
    preprocess: How = None,
    prefix: Prefix = None,
    batch: Batch = 8,
    threads: Threads = 2,
) -> None:
    """What is on each photo? With the classes that train --labels taught, or with labels in words, calibrated."""
    from siglip_ref.process.memory import keep_freed_memory
    from siglip_ref.use.search import classes, results
    from siglip_ref.use.search.identity import loaded
    from siglip_ref.use.zeroshot import TEMPLATE

    require_one({"--json": json, "--csv": csv})
    _require_together(labels, prompts, calibrate, save, calibration)
    keep_freed_memory()
    files = files_of(image)
    learnt = classes.learnt_classes(model) if labels is None else None
    words = once(labels_of(labels)) if labels is not None else []
    texts = classes.read_prompts(prompts) if prompts else (TEMPLATE,)
    opened, identity = loaded(model, prefix=prefix, preprocess=preprocess, tokenizer=tokenizer)
    how: dict[str, Any] = {"batch": batch, "threads": threads}
    notes(opened.notes if learnt is None else [note for note in opened.notes if "siglip-ref classify" not in note])
    if learnt is not None:
        if calibrate:
            learnt = replace(learnt, scale=_scale(opened, learnt, calibrate, how))
        with progress("images") as report:
            found = classes.by_learnt(opened, learnt, files, report, **how)
    else:
        of = classes.holds_for(identity["digest"], texts)
        two = _two_numbers(opened, of, words, texts, calibrate, calibration, how)
        if two and save:
            from siglip_ref.process.atomic import write_atomically
            from siglip_ref.use.search.calibrate import calibration_as_json

            write_atomically(save, calibration_as_json(two))
        with progress("images") as report:
            found = classes.by_words(opened, words, texts, files, two, report, **how)
    notes(found.notes)
    if csv:
        results.write_bytes(classes.sorted_as_csv(found))
    else:
        typer.echo(classes.sorted_as_json(found) if json else classes.sorted_as_text(found, top))
    end(found.skipped, len(found.names))


def heatmap(
    photo: Annotated[Path, typer.Argument(help="an image")],
    text: Annotated[str, typer.Argument(help='"the red star"')],
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="the PNG to write")] = Path("heatmap.png"),
    tokenizer: Tokens = None,
    preprocess: How = None,
    prefix: Prefix = None,
) -> None:
    """Where on a photo is it? A picture of how well each place fits a text."""
    from siglip_ref.process.atomic import write_atomically
    from siglip_ref.use.load import load
    from siglip_ref.use.search import heatmap as drawing

    opened = load(model, tokenizer=tokenizer, preprocess=preprocess, prefix=prefix)
    notes(opened.notes)
    found = drawing.similarity_map(opened, photo, text)
    write_atomically(out, drawing.as_png(photo, found))
    x, y = drawing.peak(found)
    rows, columns = found.shape
    typer.echo(
        f"{out}: {columns} x {rows} patches, similarity {found.min():.3f} (dark) to {found.max():.3f} (light); "
        f"most at {100 * x:.0f} % from the left, {100 * y:.0f} % from the top"
    )


def _require_together(
    labels: str | None, prompts: Path | None, calibrate: Path | None, save: Path | None, calibration: Path | None
) -> None:
    """Options that fit together."""
    problems = [
        (
            labels is None and prompts,
            "--labels with --prompts",
            "--prompts alone",
            "the learnt classes need no prompts",
        ),
        (labels is None and calibration, "--labels with --calibration", "no --labels", "it is of labels in words"),
        (
            save and (labels is None or not calibrate),
            "--labels and --calibrate with --save",
            "--save",
            "nothing is fitted",
        ),
        (calibrate and calibration, "--calibrate or --calibration", "both", "one fits what the other brings"),
    ]
    for wrong, expected, got, cause in problems:
        if wrong:
            raise UsageError(expected, got, cause, "siglip-ref classify --help")


def _two_numbers(
    model: "Model",
    holds_for: str,
    labels: list[str],
    prompts: tuple[str, ...],
    calibrate: Path | None,
    calibration: Path | None,
    how: dict[str, Any],
) -> "Calibration | None":
    """Fitted now, brought from a file, or none: the model's own."""
    import numpy as np

    from siglip_ref.use.search import calibrate as fitting
    from siglip_ref.use.search import classes

    if calibration:
        return fitting.read_calibration(calibration, holds_for)
    if not calibrate:
        return None
    examples, theirs = fitting.read_examples(calibrate, labels)
    found, truth = _known(classes.by_words(model, labels, prompts, examples, **how), examples, theirs)
    assert found.similarities is not None
    own = float(np.exp(model.params["log_scale"])), float(model.params["bias"])
    two = fitting.calibrate(found.similarities, np.array(truth), *own, holds_for, labels)
    typer.echo(fitting.curve_as_text(two), err=True)
    typer.echo(f"accuracy on these examples: {100 * classes.accuracy(found.chances, np.array(truth)):.1f} %", err=True)
    return two


def _scale(model: "Model", learnt: "Classifier", calibrate: Path, how: dict[str, Any]) -> float:
    """Of a trained layer, fitted on the user's own examples: one number, as a bias changes no softmax."""
    import numpy as np

    from siglip_ref.training.classify import calibrating_scale
    from siglip_ref.use.search import calibrate as fitting
    from siglip_ref.use.search import classes

    examples, theirs = fitting.read_examples(calibrate, learnt.classes)
    found, truth = _known(classes.by_learnt(model, replace(learnt, scale=1.0), examples, **how), examples, theirs)
    scale = calibrating_scale(np.log(found.chances), np.array(truth))
    right = classes.accuracy(found.chances, np.array(truth))
    typer.echo(f"accuracy on these examples: {100 * right:.1f} %; scale {scale:.4g}, was {learnt.scale:.4g}", err=True)
    return scale


def _known(found: "Sorted", examples: list[Path], labels: list[str]) -> tuple["Sorted", list[int]]:
    """The labels of the examples that could be read; others are said."""
    skipped = dict(found.skipped)
    for name, reason in skipped.items():
        typer.echo(f"  {visible(name)}: {visible(reason)}", err=True)
    kept = [label for file, label in zip(examples, labels, strict=True) if str(file) not in skipped]
    return found, [found.labels.index(label) for label in kept]
