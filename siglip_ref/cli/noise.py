"""The commands `siglip-ref noise ...`: the measured noise that ships, verified and measured anew."""

from typing import Annotated

import typer

noise = typer.Typer(no_args_is_help=True, help="The measured rounding noise that ships: verify it, measure it anew.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(noise, name="noise")


def _say(line: str) -> None:
    typer.echo(line, err=True)


@noise.command()
def verify(
    sample: Annotated[int, typer.Option(help="entries of each table to measure anew")] = 20,
    seed: Annotated[int, typer.Option(help="which ones")] = 0,
) -> None:
    """Is every standard entry there, of this arithmetic, and within a factor 1.5 of what this processor measures?"""
    from siglip_ref.check.loss.measured import noise as of_losses
    from siglip_ref.check.model.measured import noise as of_models

    wrong = [*of_losses.verify(sample, seed, progress=_say), *of_models.verify(sample, seed, progress=_say)]
    for line in wrong:
        typer.echo(line)
    typer.echo("repair: siglip-ref noise regenerate" if wrong else "complete, and as measured here")
    raise typer.Exit(1 if wrong else 0)


@noise.command()
def regenerate(
    everything: Annotated[bool, typer.Option("--all", help="measure every entry anew: an hour of one core")] = False,
    processes: Annotated[int, typer.Option(help="that measure at the same time")] = 1,
) -> None:
    """Measure what is missing, or what a change of the arithmetic changed; writes into the package."""
    from siglip_ref.check.loss.measured import noise as of_losses
    from siglip_ref.check.model.measured import noise as of_models

    losses = of_losses.regenerate(processes=processes, everything=everything, progress=_say)
    models = of_models.regenerate(everything=everything, progress=_say)
    typer.echo(f"measured {losses} entries of losses and {models} of models")
