"""The command `siglip-ref coverage`: which single edits of the specification the checks would have seen."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(coverage)


def coverage(
    everything: Annotated[bool, typer.Option("--all", help="try every edit anew: half an hour")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="write nothing; try a sample anew")] = False,
    processes: Annotated[int, typer.Option(help="that try edits at the same time")] = 1,
) -> None:
    """Which single edits of the specification do the checks see? Tried anew where probes or operations changed."""
    from siglip_ref.check.coverage import remake
    from siglip_ref.check.engine import shipped
    from siglip_ref.report.data import Edits

    if verify:
        wrong = remake.verify(lambda line: typer.echo(line, err=True))
        for line in wrong:
            typer.echo(line)
        typer.echo("repair: siglip-ref coverage" if wrong else "complete, and as tried here")
        raise typer.Exit(1 if wrong else 0)
    remake.remake(processes, everything, lambda line: typer.echo(line, err=True))
    for key, found in shipped.read()[1].items():
        typer.echo(f"{key}: {Edits(found['changing'], found['survivors'])}")
        for edit, most in found["survivors"].items():
            typer.echo(f"  {edit}; elsewhere at most {most} times what is allowed")
