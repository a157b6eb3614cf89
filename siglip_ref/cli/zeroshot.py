"""The commands `siglip-ref zeroshot` and `siglip-ref embed`."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siglip_ref.cli.judged import moving_bar
from siglip_ref.errors import UsageError
from siglip_ref.process.options import Force
from siglip_ref.process.outputs import refusals, require_free
from siglip_ref.process.typed import read_lines, read_rows, require_some, tidy, visible

if TYPE_CHECKING:
    from siglip_ref.ops.elementary import Array
    from siglip_ref.use.zeroshot import Model, Progress, ZeroShot

ModelPath = Annotated[str, typer.Option("--model", help="a directory, a file of weights, or a hub name")]
Tokens = Annotated[str | None, typer.Option(help='a SentencePiece file, a tokenizer.json, or "bytes"')]
How = Annotated[
    str | None, typer.Option(help="huggingface, huggingface-2, open_clip, big_vision; else the model's own")
]
Prefix = Annotated[
    str | None, typer.Option(help='how the names begin of the model that is meant, where a file holds several: "ema."')
]
Batch = Annotated[int, typer.Option(min=1, help="images computed together")]
Threads = Annotated[int, typer.Option("-t", "--threads", min=1, help="threads that decode images")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("zeroshot")(zeroshot)
    app.command("embed")(embed)


def zeroshot(
    model: ModelPath,
    image: Annotated[list[Path], typer.Option(help="an image, or a folder with all below it; may be repeated")],
    labels: Annotated[str, typer.Option(help='"cat,dog", or @FILE with one label a line')],
    template: Annotated[str, typer.Option(help="what the labels are put into")] = "This is a photo of {}.",
    tokenizer: Tokens = None,
    preprocess: How = None,
    prefix: Prefix = None,
    batch: Batch = 8,
    threads: Threads = 2,
    json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
    top: Annotated[int, typer.Option(min=1, help="labels shown per image; JSON has all")] = 5,
) -> None:
    """How well does each label fit each image?"""
    words = once(labels_of(labels))
    files = files_of(image)
    with (
        _quick(_load(model, tokenizer, preprocess, prefix), len(files), len(words)) as loaded,
        progress("images") as report,
    ):
        found = loaded.zero_shot(files, words, template, batch=batch, threads=threads, progress=report)
    notes(found.notes)
    if json:
        typer.echo(_as_json(found, loaded))
    else:
        _show(found, loaded, min(top, len(words)))
    end(found.skipped, len(found.names))


def embed(
    model: ModelPath,
    out: Annotated[Path, typer.Option(help="NAME.npy, the file to write; beside it NAME.names.csv")],
    images: Annotated[
        list[Path] | None, typer.Option(help="an image, or a folder with all below it; may be repeated")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="a file with one text a line")] = None,
    tokenizer: Tokens = None,
    preprocess: How = None,
    prefix: Prefix = None,
    batch: Batch = 8,
    threads: Threads = 2,
    force: Force = False,
) -> None:
    """Unit vectors of images or texts, one row each; which row is whose stands in NAME.names.csv."""
    from siglip_ref.use.tokenizer import cut_note

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
    names_file = out.with_suffix(".names.csv")
    sources = [] if images is None else files_of(images)
    require_free(files=(out, names_file), force=force, inputs=sources if text is None else [text])
    loaded = _load(model, tokenizer, preprocess, prefix)
    skipped: list[tuple[str, str]] = []
    if images:
        with _quick(loaded, len(sources)) as loaded, progress("images") as report:
            found = loaded.embed_images(sources, batch=batch, threads=threads, progress=report)
        vectors, names, skipped = found.embeddings, found.names, found.skipped
        notes(found.notes)
    else:
        assert text is not None
        names, blank = read_rows(text)
        require_some(names, text, "text")
        if blank:
            of = f"1 blank line of {text} has" if blank == 1 else f"{blank} blank lines of {text} have"
            notes([f"{of} no row: rows are counted without"])
        notes(cut_note(loaded.tokenizer(), names, "texts"))
        quiet = warnings.catch_warnings(action="ignore", category=UserWarning)
        with _quick(loaded, 0, len(names)) as loaded, progress("texts") as report, quiet:
            vectors = loaded.embed_texts(names, progress=report)
    if names:
        _write(out, vectors, names_file, names)
        rows, width = vectors.shape
        typer.echo(f"{out}: {rows} vectors of {width} numbers, {vectors.dtype}; computed with {loaded.computes_with}")
    end(skipped, len(names))


@contextmanager
def progress(what: str) -> "Iterator[Progress | None]":
    """A bar on terminals, nothing elsewhere."""
    with moving_bar(what, counted=True) as update:
        yield (lambda done, total: update(completed=done, total=total)) if update else None


def _load(model: str, tokenizer: str | None, preprocess: str | None, prefix: str | None) -> "Model":
    from siglip_ref.process.memory import keep_freed_memory
    from siglip_ref.use.load import load

    keep_freed_memory()
    loaded = load(model, tokenizer=tokenizer, preprocess=preprocess, prefix=prefix)
    notes(loaded.notes)
    return loaded


@contextmanager
def _quick(model: "Model", images: int, texts: int = 0) -> "Iterator[Model]":
    """The model with what answers sooner; if that is not the usual, it is said."""
    from siglip_ref.cli.first_answer import quick

    with quick(model, images, texts) as (ready, said):
        notes(said)
        yield ready


def notes(lines: Iterable[str]) -> None:
    """What the user should know, on stderr."""
    for note in lines:
        typer.echo(f"note: {note}", err=True)


def labels_of(given: str) -> list[str]:
    """The labels as given: after commas, or in the lines of a file."""
    if not given.startswith("@"):
        return list(map(tidy, given.split(",")))
    file = Path(given[1:])
    return require_some(read_lines(file), file, "label")


def once(labels: list[str]) -> list[str]:
    """The labels without those that stand there twice, which are said."""
    kept = list(dict.fromkeys(labels))
    twice = [label for label in kept if labels.count(label) > 1] if len(kept) < len(labels) else []
    if twice and "" not in kept:
        notes([f"given more than once, and kept once: {', '.join(map(visible, twice[:10]))}"])
    return kept


def _write(out: Path, vectors: "Array", names_file: Path, names: list[str]) -> None:
    """Both files, each whole or not there."""
    import io

    import numpy as np

    from siglip_ref.process.atomic import write_atomically
    from siglip_ref.process.tables import as_csv

    array = io.BytesIO()
    np.save(array, vectors)
    cause, repair = "the disk is full, or broken", "make room, then start again"
    with refusals("a disk with room for the vectors", cause, repair):
        write_atomically(names_file, as_csv(("row", "name"), enumerate(names)))
        write_atomically(out, array.getvalue())


def files_of(places: list[Path]) -> list[Path]:
    """The images named, and all below the folders named."""
    from siglip_ref.use.reading import image_files

    return [file for place in places for file in image_files(place)]


def _as_json(found: "ZeroShot", model: "Model") -> str:
    import json

    images = [
        {"image": name, "scores": [{"label": label, "score": score} for label, score in found.sorted(i)]}
        for i, name in enumerate(found.names)
    ]
    skipped = [{"image": name, "reason": reason} for name, reason in found.skipped]
    about = {"model": model.config.name, "ops": model.ops.name, "computed with": model.computes_with}
    content = about | {"notes": [*model.notes, *found.notes], "images": images, "skipped": skipped}
    return json.dumps(content, indent=1, allow_nan=False)


def _show(found: "ZeroShot", model: "Model", top: int) -> None:
    for i, name in enumerate(found.names):
        typer.echo(visible(name))
        for label, score in found.sorted(i)[:top]:
            typer.echo(f"  {score:9.4g}  {visible(label)}")
    typer.echo(
        f"\n{model.config.name}; images as {model.preprocess.name}; computed with {model.computes_with}.\n"
        "Each score is a sigmoid and stands for itself: they need not sum to 1, and may all be small."
    )


def end(skipped: list[tuple[str, str]], done: int) -> None:
    """List what was skipped; nothing done at all is exit code 2."""
    if skipped:
        typer.echo(f"\nskipped {len(skipped)} of {len(skipped) + done} images:", err=True)
        for name, reason in skipped:
            typer.echo(f"  {visible(name)}: {visible(reason)}", err=True)
    if not done:
        raise typer.Exit(2)
