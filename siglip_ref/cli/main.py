"""The command `siglip-ref`. Exit codes: 0 passed, 1 not passed, 2 wrong use or unreadable input.

Everything but Typer loads inside the commands, so that --help answers at once.
"""

import errno
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import siglip_ref
from siglip_ref.cli import bench, check, classify, coverage, noise, probe, search, zeroshot
from siglip_ref.cli.judged import progress
from siglip_ref.errors import UsageError
from siglip_ref.process.interrupt import guarded
from siglip_ref.process.options import require_words
from siglip_ref.training import command as training
from siglip_ref.vectors import cli as vectors

# as --help lists the commands: what most people came for stands first; others follow
ORDER = (
    "check",
    "explain",
    "demo",
    "zeroshot",
    "embed",
    "train",
    "vectors",
    "probe",
    "selfcheck",
    "bench",
    "study",
    "noise",
    "coverage",
)


class InOrder(TyperGroup):
    """Commands in the order of `ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, those of `ORDER` first."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The golden reference for SigLIP: is an implementation right, and are its gradients?",
    epilog="Exit codes: 0 passed, 1 not passed, 2 wrong use or unreadable input.",
)
for room in (check, zeroshot, search, classify, vectors, noise, coverage, probe, bench, training):
    room.register(app)


def main() -> None:
    """Run the command; wrong use ends in a panel, not in a traceback, Ctrl-C in a sentence."""
    with guarded("siglip-ref"), warnings.catch_warnings():
        # Pillow warns at half the size of image that is taken here.
        warnings.filterwarnings("ignore", "Image size .* exceeds limit")
        try:
            require_words(sys.argv)
            app()
        except UsageError as error:
            _explain(error)
            sys.exit(2)
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT):
                raise
            _explain(_not_said(error))
            sys.stderr.flush()
            os._exit(2)  # what is left in the buffer cannot be written either, and Python would say so at its end


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Options before any command."""
    if version:
        typer.echo(f"siglip-ref {siglip_ref.__version__}")
        raise typer.Exit()


@app.command("selfcheck")
def selfcheck_command() -> None:
    """Test the reference on this machine: gradients, proven bounds, a golden vector, mistakes that must be detected."""
    from siglip_ref.use.selfcheck import selfcheck

    with progress("selfcheck") as say:
        results = selfcheck(say)
    words = {True: "proven", False: "FAILED", None: "-"}
    for result in results:
        typer.echo(f"{words[result.passed]:7} {result.what:24} {result.seconds:5.1f} s  {result.detail}")
    raise typer.Exit(1 if any(result.passed is False for result in results) else 0)


def _not_said(error: OSError) -> UsageError:
    """For a write that no file is named with: of standard output."""
    return UsageError(
        expected="a standard output that takes what is printed",
        got=str(error),
        cause="the disk that it leads to is full" if error.errno != errno.EBADF else "it is closed",
        repair="make room, or let it lead elsewhere",
    )


def _explain(error: UsageError) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, text in error.parts.items():
        grid.add_row(Text(name, "dim"), Text(text, "bold" if name == "repair" else "", overflow="fold"))
    Console(stderr=True).print(Panel(grid, title="siglip-ref cannot do this", border_style="red", title_align="left"))
