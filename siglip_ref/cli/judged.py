"""A check as a command: the arguments of its Python function, a report, and the exit code of its verdict."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import siglip_ref
from siglip_ref.process.options import as_command, no_overwriting
from siglip_ref.process.outputs import refusals

if TYPE_CHECKING:
    from siglip_ref.report.data import Report

Json = Annotated[str | None, typer.Option(metavar="PATH", help="write the report as JSON; - prints it instead")]
SaveCase = Annotated[Path | None, typer.Option(metavar="FOLDER", help="keep the worst probe and a program showing it")]
Converted = dict[str, Any] | None


def door(
    check: typer.Typer, name: str, case: bool = True
) -> Callable[[Callable[..., Converted]], Callable[..., Converted]]:
    """Make the command NAME of the function check_NAME: its first argument by position, all others as options. case :
    its reports hold a worst case.

    What is decorated has the signature of the command, and returns those arguments that the function is given otherwise
    than they were typed.
    """

    def decorate(options: Callable[..., Converted]) -> Callable[..., Converted]:
        signature = inspect.signature(options)
        target = next(iter(signature.parameters))

        def run(*, json: str | None, save_case: Path | None = None, **given: Any) -> None:
            function = getattr(siglip_ref, f"check_{name}")
            with progress(f"checking {given[target]}") as say:
                arguments = given | (options(**given) or {})
                if "progress" in inspect.signature(function).parameters:
                    arguments["progress"] = say
                report = function(arguments.pop(target), **arguments)
            finish(report, json, save_case)

        more = {"json": Json} | ({"save_case": SaveCase} if case else {})
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in more.items()]
        command = as_command(run, [*signature.parameters.values(), *added], options)
        check.command(name)(no_overwriting("json", "save_case" * case, inputs=target)(command))
        return options

    return decorate


def finish(report: "Report", json: str | None, save_case: Path | None) -> None:
    """Print, write, and end with the exit code of the verdict."""
    if json == "-":
        typer.echo(report.to_json(), nl=False)
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(report)
    else:
        typer.echo(str(report))
    cause = "no such folder, or no right to write there"
    with refusals("a place that can be written to", cause, "make the folder, or choose another"):
        if json and json != "-":
            Path(json).write_text(report.to_json(), encoding="utf-8")
        if save_case:
            report.save_case(save_case)
    raise typer.Exit(0 if report.passed else 1)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """A moving bar with the name of the current step, on terminals only."""
    with moving_bar(title, counted=False) as update:
        yield lambda step: update(description=step[:60]) if update else None


@contextmanager
def moving_bar(title: str, counted: bool) -> Iterator[Callable[..., None] | None]:
    """What updates a bar on a terminal; None elsewhere. counted : with what is done and how long the rest will take."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich import progress as of
    from rich.console import Console

    end = (of.MofNCompleteColumn(), of.TimeRemainingColumn()) if counted else (of.TimeElapsedColumn(),)
    columns = (of.TextColumn("{task.description}"), of.BarColumn(40 if counted else 20), *end)
    with of.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield partial(bar.update, bar.add_task(title, total=None))
