"""The commands `siglip-ref index`, `search` and `duplicates`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siglip_ref.cli.zeroshot import Batch, How, ModelPath, Prefix, Threads, Tokens, notes, progress
from siglip_ref.errors import UsageError
from siglip_ref.process.options import Force, no_overwriting
from siglip_ref.process.outputs import refusals
from siglip_ref.process.typed import visible

if TYPE_CHECKING:
    from siglip_ref.use.search.build import Built
    from siglip_ref.use.search.folder import Index
    from siglip_ref.use.search.sheet import Section
    from siglip_ref.use.zeroshot import Progress

LINES = 10  # of progress, where there is no terminal


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("index")(index)
    app.command("search")(no_overwriting(files="html")(search))
    app.command("duplicates")(no_overwriting(files="html")(duplicates))


def index(
    photos: Annotated[Path, typer.Argument(help="a folder, with all below it")],
    model: ModelPath,
    out: Annotated[Path | None, typer.Option(help="folder of the index; default: PHOTOS.index")] = None,
    preprocess: How = None,
    prefix: Prefix = None,
    batch: Batch = 8,
    threads: Threads = 2,
    force: Force = False,
) -> None:
    """Make an index of photos, or bring one up to date. Interrupted, it goes on: give the same command again."""
    built = _build(photos, model, out or _beside(photos), preprocess, prefix, batch, threads, force)
    if not built.index.photos:
        raise typer.Exit(2)


def search(
    place: Annotated[Path, typer.Argument(metavar="INDEX|PHOTOS", help="an index, or a folder that has one beside it")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help='"a red star"; several add up')] = None,
    like: Annotated[list[Path] | None, typer.Option(help="a photo that it is to be like; may be repeated")] = None,
    without: Annotated[list[str] | None, typer.Option("--not", help="a text to subtract; may be repeated")] = None,
    top: Annotated[int, typer.Option("-t", "--top", min=1, help="photos shown")] = 20,
    paths: Annotated[bool, typer.Option("-f", "--paths", help="paths alone, one a line")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="least score; of other queries than one text, similarity")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a sheet with thumbnails, too")] = None,
    model: Annotated[str | None, typer.Option(help="to make an index with, where there is none")] = None,
    tokenizer: Tokens = None,
) -> None:
    """Which photos fit a text, or are like a photo? Exact; the model is the one of the index."""
    from siglip_ref.use.search import results
    from siglip_ref.use.search.identity import loaded, require_same
    from siglip_ref.use.search.query import Query, search

    require_one({"-f": paths, "--json": json, "--csv": csv})
    query = Query(tuple(texts or ()), tuple(like or ()), tuple(without or ()))
    found = _open(place, model)
    how = found.model
    opened, now = loaded(
        how["name"], prefix=how["prefix"], preprocess=how["preprocess"], tokenizer=tokenizer, known=how
    )
    require_same(now, how, found.place)
    notes(opened.notes)
    hits = search(found, opened, query, top, threshold)
    if html:
        write_sheet(html, query.in_words(), *results.hits_as_sheet(found, hits))
    if paths:
        results.write_bytes(results.as_paths(path for path, _, _ in results.hits_of(found, hits)))
    elif csv:
        results.write_bytes(results.hits_as_csv(found, hits))
    else:
        typer.echo(results.hits_as_json(found, hits, query) if json else results.hits_as_text(found, hits, query))


def duplicates(
    place: Annotated[Path, typer.Argument(metavar="INDEX|PHOTOS", help="an index, or a folder that has one beside it")],
    similarity: Annotated[float, typer.Option(help="least cosine of two that are taken for the same")] = 0.98,
    paths: Annotated[bool, typer.Option("-f", "--paths", help="paths alone, but for the first of each group")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a sheet with thumbnails, too")] = None,
) -> None:
    """Which photos are nearly the same? Every pair of an index is looked at; nothing is deleted."""
    from siglip_ref.use.search import duplicates as found_by
    from siglip_ref.use.search import results

    require_one({"-f": paths, "--json": json, "--csv": csv})
    found = _open(place, None)
    with progress("tiles") as report:
        groups = found_by.duplicates(found.vectors, similarity, report)
    if html:
        title = f"{found_by.in_words(len(groups), 'group')} of photos that are nearly the same"
        write_sheet(html, title, *found_by.groups_as_sheet(found, groups, similarity))
    if paths:
        others = [found.file(row) for group in groups for row in group.rows[1:]]
        results.write_bytes(results.as_paths(map(results.shown, others)))
    elif csv:
        results.write_bytes(found_by.groups_as_csv(found, groups))
    else:
        typer.echo((found_by.groups_as_json if json else found_by.groups_as_text)(found, groups, similarity))


def write_sheet(html: Path, title: str, lines: "Sequence[str]", sections: "Sequence[Section]") -> None:
    """The file, whole or not there."""
    from siglip_ref.process.atomic import written_whole
    from siglip_ref.use.search.sheet import sheet

    full = refusals("a disk with room for the sheet", "it is full, or broken", "make room")
    with full, written_whole(html) as file:
        for part in sheet(title, lines, sections):
            file.write(part.encode("utf-8"))


def require_one(forms: dict[str, bool]) -> None:
    """Refuse two forms of output at once."""
    given = [name for name, chosen in forms.items() if chosen]
    if len(given) > 1:
        raise UsageError(
            expected=f"one of {', '.join(forms)}, or none",
            got=" and ".join(given),
            cause="there is one standard output",
            repair=f"leave out {given[-1]}",
        )


def _beside(photos: Path) -> Path:
    whole = photos.absolute()
    return photos.with_name(f"{photos.name}.index") if photos.name else whole.with_name(f"{whole.name}.index")


def _open(place: Path, model: str | None) -> "Index":
    """The index named, or the one beside the photos named; where there is none it is offered to make one."""
    from siglip_ref.use.search.folder import is_index, read_index

    if is_index(place) or not place.is_dir():
        return read_index(place)
    beside = _beside(place)
    if is_index(beside):
        return read_index(beside)
    command = f"siglip-ref index {place} --model {model or 'DIR'} --out {beside}"
    question = f"{place} has no index. Make one now, in {beside}?"
    if model is not None and is_asked() and typer.confirm(question, err=True):
        return _build(place, model, beside).index
    raise UsageError(
        expected="an index, or a folder of photos with an index beside it",
        got=f"{place}, and no {beside}",
        cause="no index of it was made yet",
        repair=command,
    )


def is_asked() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _build(
    photos: Path,
    model: str,
    out: Path,
    preprocess: str | None = None,
    prefix: str | None = None,
    batch: int = 8,
    threads: int = 2,
    force: bool = False,
) -> "Built":
    from siglip_ref.process.memory import keep_freed_memory
    from siglip_ref.use.search.build import build

    keep_freed_memory()
    with pace() as progress:
        built = build(
            photos,
            out,
            model,
            prefix=prefix,
            preprocess=preprocess,
            batch=batch,
            threads=threads,
            force=force,
            say=lambda text: typer.echo(visible(text), err=True),
            progress=progress,
        )
    bad = built.unreadable
    for photo in bad[:20]:
        typer.echo(f"  {visible(photo.path)}: {visible(photo.reason)}", err=True)
    if len(bad) > 20:
        typer.echo(f"  and {len(bad) - 20:,} more, in {out / 'unreadable-*.csv'}", err=True)
    rows, width = built.index.vectors.shape
    typer.echo(
        f"{out}: {rows:,} photos, vectors of {width} numbers; {built.embedded:,} new, {built.kept:,} known, "
        f"{built.gone:,} gone, {len(bad):,} cannot be read" + "; nothing has changed" * (not built.changed)
    )
    return built


@contextmanager
def pace() -> "Iterator[Progress]":
    """Images a second and the expected end: a moving line on terminals, a line for each tenth elsewhere."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from siglip_ref.process.clock import at, duration

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"), console=console, transient=True
    )
    task = bar.add_task("", total=None)
    begun: list[tuple[float, int]] = []

    def report(done: int, total: int) -> None:
        now = time.monotonic()
        before = begun[-1][1] if begun else 0
        begun.append((now, done))
        if len(begun) > 200:
            del begun[1:100]  # the rate is that of the last while
        rate = (done - begun[0][1]) / (now - begun[0][0]) if now > begun[0][0] else 0.0
        left = (total - done) / rate if rate else 0.0
        words = f"{rate:,.1f} images/s  ends in {duration(left)}, at {at(left)}" * bool(rate)
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done, total=total, description=words)
        elif total > LINES and done * LINES // total > before * LINES // total:
            typer.echo(f"{done:,} of {total:,}  {words}", err=True)

    try:
        yield report
    finally:
        if console.is_terminal:
            bar.stop()
