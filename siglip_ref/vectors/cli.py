"""The commands `siglip-ref vectors ...`, `check dump`, `demo` and `explain`."""

from pathlib import Path
from typing import Annotated

import typer

from siglip_ref.process.options import Force
from siglip_ref.process.outputs import require_free

vectors = typer.Typer(no_args_is_help=True, help="Golden vectors: inputs and certified answers for any language.")

Only = Annotated[str | None, typer.Option("--only", help="ids that begin so: a group, or one vector")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(vectors, name="vectors")
    app.command("demo")(demo)
    app.command("explain")(explain)


@vectors.command("list")
def list_(only: Only = None) -> None:
    """Which vectors there are, and what each is for."""
    from siglip_ref.vectors.store import packaged

    golden = packaged()
    chosen = [vector for vector in golden.vectors.values() if vector.id.startswith(only or "")]
    for vector in chosen:
        typer.echo(f"{vector.id:<28}{vector.comment}" + (f"  [{', '.join(vector.flags)}]" if vector.flags else ""))
    typer.echo(f"\n{len(chosen)} vectors, edition {golden.edition}")
    for flag, note in golden.flags.items():
        if any(flag in vector.flags for vector in chosen):
            typer.echo(f"[{flag}] {note}")


@vectors.command()
def export(folder: Path, only: Only = None, force: Force = False) -> None:
    """Write each vector's inputs (safetensors and npz) and its question (JSON), for any language."""
    from siglip_ref.vectors.export import chosen
    from siglip_ref.vectors.export import export as write

    require_free(folders=[folder / vector.id for vector in chosen(only or "")], force=force)
    names = write(folder, only or "")
    typer.echo(f"wrote {len(names)} vectors to {folder}; answer one, then: siglip-ref check dump FILE --vector ID")


@vectors.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="default: the packaged files")] = None,
    everything: Annotated[bool, typer.Option("--all", help="prove every number again, not a sample")] = False,
) -> None:
    """Check schema and hashes, and prove expected numbers again."""
    from siglip_ref.vectors.generate import proves
    from siglip_ref.vectors.store import FOLDER, read

    golden = read(folder or FOLDER)
    chosen = [v for v in golden.vectors.values() if everything or v.group in ("loss", "block", "accumulation")]
    wrong = [vector.id for vector in chosen if not proves(vector)]
    numbers = sum(value.size for vector in chosen for value in vector.expected.values())
    typer.echo(f"schema and hashes of {len(golden.vectors)} vectors are right")
    typer.echo(
        f"{numbers} expected numbers of {len(chosen)} vectors proven again" + (f", but not {wrong}" * bool(wrong))
    )
    raise typer.Exit(1 if wrong else 0)


@vectors.command()
def regenerate(folder: Annotated[Path, typer.Argument(help="where to write")], force: Force = False) -> None:
    """Compute the certified files anew, and say whether they are the packaged ones, byte for byte."""
    from siglip_ref.vectors.generate import write
    from siglip_ref.vectors.store import FOLDER

    names = ("golden.json", "golden.safetensors")
    require_free([folder / name for name in names] if folder.is_dir() else [], force=force)
    write(folder, progress=lambda name: typer.echo(f"proving {name}", err=True))
    other = [name for name in names if (folder / name).read_bytes() != (FOLDER / name).read_bytes()]
    typer.echo(
        f"{', '.join(other)} differ from the packaged files" if other else "the same bytes as the packaged files"
    )
    raise typer.Exit(1 if other else 0)


@vectors.command()
def measure(folder: Annotated[Path, typer.Argument(help="where to write measured.json")], force: Force = False) -> None:
    """Measure noise and power anew: after a change of noise, vectors or mistakes. Ten minutes."""
    from siglip_ref.vectors.power import write_measured

    require_free([folder / "measured.json"], force=force)
    write_measured(folder, progress=lambda name: typer.echo(f"measuring {name}", err=True))


@vectors.command()
def power(
    page: Annotated[bool, typer.Option("--page", help="print the page of the documentation instead")] = False,
    noise: Annotated[bool, typer.Option("--noise", help="the noise of every group instead of the power")] = False,
) -> None:
    """What every mistake of the catalogue would look like: its error in units of the noise of a correct program."""
    from siglip_ref.vectors import pages

    text = pages.noise_page() if noise else pages.power_page()
    typer.echo(text if page else "\n".join(line for line in text.splitlines() if line.startswith("|")))


def demo(mistake: Annotated[str | None, typer.Argument(metavar="[MISTAKE-ID]")] = None) -> None:
    """Make a mistake on purpose and let the check find it. Without an id: negatives-missing. Ends with exit code 0."""
    from siglip_ref.mistakes import find
    from siglip_ref.vectors.demo import show

    if mistake is None:
        mistake = "negatives-missing"
        typer.echo(f"No id is given, so this is {mistake}; siglip-ref explain, without an id, lists all.\n")
    entry = find(mistake)
    typer.echo(f"{entry.id}: {entry.text}\n")
    see = f"No number of the reference changes: there is nothing to run. See `siglip-ref explain {entry.id}`."
    typer.echo(str(show(entry)) if entry.edits else see)


def explain(mistake: Annotated[str | None, typer.Argument(metavar="[MISTAKE-ID]")] = None) -> None:
    """What a mistake is, where it was reported, its repair, which vectors detect it. Without an id: a list of all.

    Every id that a report prints is known here, also those that are no mistakes.
    """
    from siglip_ref.mistakes import CATALOGUE, WORDS, census, find
    from siglip_ref.vectors.demo import describe

    if mistake is None:
        for entry in CATALOGUE.values():
            typer.echo(f"{entry.id:<36}{entry.home or 'other':<15}{entry.text}")
        for word, meaning in WORDS.items():
            typer.echo(f"{word:<36}{'in reports':<15}{meaning.partition(chr(10))[0]}")
        typer.echo(f"\n{census()}; and {len(WORDS)} words that reports use instead of an id")
    elif mistake in WORDS:
        typer.echo(f"{mistake}: {WORDS[mistake]}")
    else:
        typer.echo(describe(find(mistake)))
