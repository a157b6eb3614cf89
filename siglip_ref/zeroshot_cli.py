"""The commands `siglip-ref zeroshot`, `siglip-ref embed` and `siglip-ref check checkpoint`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siglip_ref.errors import UsageError

if TYPE_CHECKING:
    from siglip_ref.zeroshot import Model, Progress, ZeroShot

ModelPath = Annotated[str, typer.Option("--model", help="a directory, a file of weights, or a hub name")]
Tokens = Annotated[str | None, typer.Option(help='a SentencePiece file, a tokenizer.json, or "bytes"')]
How = Annotated[
    str | None, typer.Option(help="huggingface, huggingface-2, open_clip, big_vision; else the model's own")
]
Batch = Annotated[int, typer.Option(min=1, help="images computed together")]
Threads = Annotated[int, typer.Option("-t", "--threads", min=1, help="threads that decode images")]


def register(app: typer.Typer, check: typer.Typer) -> None:
    """Add the commands."""
    app.command("zeroshot")(zeroshot)
    app.command("embed")(embed)
    check.command("checkpoint")(checkpoint)


def zeroshot(
    model: ModelPath,
    image: Annotated[list[Path], typer.Option(help="an image or a folder; may be repeated")],
    labels: Annotated[str, typer.Option(help='"cat,dog", or @FILE with one label a line')],
    template: Annotated[str, typer.Option(help="what the labels are put into")] = "This is a photo of {}.",
    tokenizer: Tokens = None,
    preprocess: How = None,
    batch: Batch = 8,
    threads: Threads = 2,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
    top: Annotated[int, typer.Option(min=1, help="labels shown per image; JSON has all")] = 5,
) -> None:
    """How well does each label fit each image?"""
    words = read_lines(Path(labels[1:])) if labels.startswith("@") else labels.split(",")
    loaded = _load(model, tokenizer, preprocess)
    with progress("images") as report:
        found = loaded.zero_shot(_files(image), words, template, batch=batch, threads=threads, progress=report)
    if json:
        typer.echo(_as_json(found, loaded))
    else:
        _show(found, loaded, min(top, len(words)))
    _end(found.skipped, len(found.names))


def embed(
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="the .npy file to write; names go into the .txt beside it")],
    images: Annotated[list[Path] | None, typer.Option(help="an image or a folder; may be repeated")] = None,
    text: Annotated[Path | None, typer.Option(help="a file with one text a line")] = None,
    tokenizer: Tokens = None,
    preprocess: How = None,
    batch: Batch = 8,
    threads: Threads = 2,
) -> None:
    """Unit vectors of images or texts, one row each."""
    import numpy as np

    if (images is None) == (text is None):
        raise UsageError(
            expected="--images or --text",
            got="both" if images else "neither",
            cause="one file of vectors holds one kind of thing",
            repair="siglip-ref embed --model DIR --images FOLDER --out images.npy",
        )
    if out.suffix != ".npy" or not out.parent.is_dir():
        raise UsageError(
            expected="--out NAME.npy in a folder that exists",
            got=str(out),
            cause="vectors are written as one NumPy array",
            repair="--out vectors.npy",
        )
    loaded = _load(model, tokenizer, preprocess)
    skipped: list[tuple[str, str]] = []
    if images:
        with progress("images") as report:
            found = loaded.embed_images(_files(images), batch=batch, threads=threads, progress=report)
        vectors, names, skipped = found.embeddings, found.names, found.skipped
    else:
        assert text is not None
        names = read_lines(text)
        with progress("texts") as report:
            vectors = loaded.embed_texts(names, progress=report)
    np.save(out, vectors)
    out.with_suffix(".txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    rows, width = vectors.shape
    typer.echo(f"{out}: {rows} vectors of {width} numbers, {vectors.dtype}; computed with {loaded.computes_with}")
    _end(skipped, len(names))


def checkpoint(
    model: Annotated[str, typer.Argument(help="a directory, a file of weights, or a hub name")],
    images: Annotated[
        list[Path] | None, typer.Option(help="apple-ipod.jpg, then apple-blank.jpg: compares with recorded logits")
    ] = None,
    tokenizer: Tokens = None,
    preprocess: Annotated[str, typer.Option(help="the recorded logits were made with big_vision's")] = "big_vision",
) -> None:
    """Do a checkpoint's tensors fit its size, and do its logits agree with those on record?"""
    from siglip_ref.check.checkpoint import check_checkpoint

    report = check_checkpoint(model, images, tokenizer=tokenizer, preprocess=preprocess)
    typer.echo(str(report))
    raise typer.Exit(0 if report.passed else 1)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            expected=f"a UTF-8 text file at {path}",
            got=str(error),
            cause="no such file, or another encoding",
            repair="one text a line, saved as UTF-8",
        ) from error
    return [line for line in lines if line]


@contextmanager
def progress(what: str) -> "Iterator[Progress | None]":
    """A bar on terminals, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _load(model: str, tokenizer: str | None, preprocess: str | None) -> "Model":
    from siglip_ref.loading import load
    from siglip_ref.memory import keep_freed_memory

    keep_freed_memory()
    loaded = load(model, tokenizer=tokenizer, preprocess=preprocess)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    return loaded


def _files(places: list[Path]) -> list[Path]:
    from siglip_ref.zeroshot import image_files

    return [file for place in places for file in image_files(place)]


def _as_json(found: "ZeroShot", model: "Model") -> str:
    import json

    images = [
        {"image": name, "scores": [{"label": label, "score": score} for label, score in found.sorted(i)]}
        for i, name in enumerate(found.names)
    ]
    skipped = [{"image": name, "reason": reason} for name, reason in found.skipped]
    return json.dumps(
        {"model": model.config.name, "ops": model.ops.__name__, "images": images, "skipped": skipped}, indent=1
    )


def _show(found: "ZeroShot", model: "Model", top: int) -> None:
    for i, name in enumerate(found.names):
        typer.echo(name)
        for label, score in found.sorted(i)[:top]:
            typer.echo(f"  {score:8.4f}  {label}")
    typer.echo(
        f"\n{model.config.name}; images as {model.preprocess.name}; computed with {model.computes_with}.\n"
        "Each score is a sigmoid and stands for itself: they need not sum to 1, and may all be small."
    )


def _end(skipped: list[tuple[str, str]], done: int) -> None:
    """List what was skipped; nothing done at all is exit code 2."""
    if skipped:
        typer.echo(f"\nskipped {len(skipped)} of {len(skipped) + done} images:", err=True)
        for name, reason in skipped:
            typer.echo(f"  {name}: {reason}", err=True)
    if not done:
        raise typer.Exit(2)
