"""The command `siglip-ref coverage`: which single edits of the specification the checks would have seen."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from siglip_ref.check.engine.single_edits.measure import Ground


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(coverage)


def grounds() -> "list[Ground]":
    """All of which figures ship: losses as they may be declared, and towers."""
    from siglip_ref.architecture.conventions import PRESETS
    from siglip_ref.check.engine.expected.expected import CONVENTIONS
    from siglip_ref.check.loss.measured.single_edits import VARIANTS, OfLoss
    from siglip_ref.check.model.measured.single_edits import OfModel

    declared = (replace(CONVENTIONS[0], objective=objective) for objective in VARIANTS)
    return [*map(OfLoss, (CONVENTIONS[0], *declared)), OfModel(PRESETS["huggingface"])]


def coverage(
    everything: Annotated[bool, typer.Option("--all", help="try every edit anew: half an hour")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="write nothing; try a sample anew")] = False,
    processes: Annotated[int, typer.Option(help="that try edits at the same time")] = 1,
) -> None:
    """Which single edits of the specification do the checks see? Tried anew where probes or operations changed."""
    from siglip_ref.check.engine.single_edits import remake, shipped
    from siglip_ref.report.data import Edits

    if verify:
        wrong = remake.verify(grounds(), lambda line: typer.echo(line, err=True))
        for line in wrong:
            typer.echo(line)
        typer.echo("repair: siglip-ref coverage" if wrong else "complete, and as tried here")
        raise typer.Exit(1 if wrong else 0)
    remake.remake(grounds(), processes, everything, lambda line: typer.echo(line, err=True))
    for key, found in shipped.read()[1].items():
        typer.echo(f"{key}: {Edits(found['changing'], found['survivors'])}")
        for edit, most in found["survivors"].items():
            typer.echo(f"  {edit}; elsewhere at most {most} times what is allowed")
