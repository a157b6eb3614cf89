"""The commands `siglip-ref probe export`, and `check dump --probe`."""

from pathlib import Path
from typing import Annotated, cast

import typer

from siglip_ref.process.options import Force

probe = typer.Typer(no_args_is_help=True, help="A checkpoint of probe weights for your converter and engine.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(probe, name="probe")


@probe.callback()
def about() -> None:
    """A checkpoint of probe weights for your converter and engine."""


@probe.command()
def export(
    folder: Annotated[Path, typer.Argument(help="where to: weights, inputs, and what an answer is called")],
    model: Annotated[str, typer.Option(help="a size such as B/16-256, or a checkpoint whose sizes are taken")],
    layout: Annotated[str, typer.Option(help="huggingface, big_vision or open_clip: what your converter reads")] = (
        "huggingface"
    ),
    arithmetic: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: what your engine computes in")
    ] = "float32",
    batch: Annotated[int, typer.Option(help="pairs")] = 4,
    force: Force = False,
) -> None:
    """Write probe weights in a library's layout, and inputs: convert, run, then siglip-ref check dump --probe."""
    from siglip_ref.check.files.probe_export import export_probe
    from siglip_ref.checkpoint.tables.wrapped import Format

    names = export_probe(folder, model, cast(Format, layout), arithmetic, batch, force=force)
    typer.echo(
        f"wrote a probe of {model} to {folder}; an answer has up to {len(names)} tensors, see {folder / 'README.txt'}; "
        f"then: siglip-ref check dump ANSWER --probe {folder} --forward-only"
    )
