"""The command `siglip-ref bench`."""

from pathlib import Path
from typing import Annotated

import typer

from siglip_ref.process.options import no_overwriting


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(no_overwriting(files="json")(bench))


def bench(
    case: Annotated[list[str] | None, typer.Option(help="loss-4096, image-1, step-mu, ...; may be repeated")] = None,
    contestant: Annotated[
        list[str] | None,
        typer.Option(help="fast, torch, jax.jit, onnxruntime, ...; else all that are installed"),
    ] = None,
    threads: Annotated[int, typer.Option("-t", "--threads", help="of every contestant")] = 2,
    repeats: Annotated[int, typer.Option(help="rounds in which the contestants take turns")] = 7,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write the figures as JSON, too")] = None,
) -> None:
    """How fast is it here, beside Torch, JAX, ONNX Runtime, OpenVINO? Ratios, memory, share of a product's rate."""
    from siglip_ref.cli import speed as measuring

    chosen = case or ["loss-4096", "step-tiny", "step-mu"]
    results = measuring.bench(chosen, contestant, threads, repeats, json, lambda line: typer.echo(line, err=True))
    typer.echo(measuring.table(results))
    typer.echo("\n" + ", ".join(f"{name} {value}" for name, value in measuring.machine(threads).items()))
