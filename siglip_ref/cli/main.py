"""The command `siglip-ref`. Exit codes: 0 passed, 1 not passed, 2 wrong use or unreadable input.

Everything but Typer loads inside the commands, so that --help answers at once.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import siglip_ref
from siglip_ref.cli import bench as bench_cli
from siglip_ref.cli import classify as classify_cli
from siglip_ref.cli import coverage as coverage_cli
from siglip_ref.cli import noise as noise_cli
from siglip_ref.cli import probe as probe_cli
from siglip_ref.cli import search as search_cli
from siglip_ref.cli import zeroshot as zeroshot_cli
from siglip_ref.errors import UsageError
from siglip_ref.process.interrupt import guarded
from siglip_ref.process.options import no_overwriting, require_words
from siglip_ref.training import command as training
from siglip_ref.vectors import cli as vectors_cli

if TYPE_CHECKING:
    from siglip_ref.check.engine.expected.probes import Dims
    from siglip_ref.report.data import Report

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
check = typer.Typer(no_args_is_help=True, help="Judge another implementation: its values and every gradient.")
app.add_typer(check, name="check")
zeroshot_cli.register(app, check)
search_cli.register(app)
classify_cli.register(app)
vectors_cli.register(app, check)
noise_cli.register(app)
coverage_cli.register(app)
probe_cli.register(app)
bench_cli.register(app)
training.register(app)

Dtype = Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16")]
Json = Annotated[str | None, typer.Option(metavar="PATH", help="write the report as JSON; - prints it instead")]
SaveCase = Annotated[Path | None, typer.Option(metavar="FOLDER", help="keep the worst probe and a program showing it")]


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


@check.command("loss")
@no_overwriting(files="json", folders="save_case", inputs="target")
def check_loss_command(
    target: Annotated[str, typer.Argument(help='"module:name" or "file.py:name"')],
    dtype: Dtype = "float32",
    framework: Annotated[str | None, typer.Option(help="torch, jax or numpy; else seen from the function")] = None,
    scale: Annotated[str, typer.Option(help="log, linear or auto")] = "auto",
    embeddings: Annotated[str, typer.Option(help="unit, raw or auto")] = "auto",
    dims: Annotated[str | None, typer.Option(help='multiples "batch=16,dim=32", or shapes "64x128,96x128"')] = None,
    precision: Annotated[str, typer.Option(help="pure or autocast")] = "pure",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    frozen: Annotated[list[str] | None, typer.Option(help="an input without gradient; may be repeated")] = None,
    size: Annotated[str, typer.Option(help="real: also 4,100 pairs; small: at most 1,151")] = "real",
    products: Annotated[str | None, typer.Option(help="tf32 or bfloat16: to which products round on purpose")] = None,
    loss: Annotated[str, typer.Option(help="sigmoid; softmax: CLIP's")] = "sigmoid",
    reduction: Annotated[str, typer.Option(help="batch: divided by B; mean: by B * B")] = "batch",
    no_bias: Annotated[bool, typer.Option("--no-bias", help="fn takes none")] = False,
    positives: Annotated[str, typer.Option(help="own; ids: rows of equal ids, which fn is given")] = "own",
    weights: Annotated[str | None, typer.Option(help='pairs, rows or columns, which fn is given; or "3,1"')] = None,
    label_smoothing: Annotated[float, typer.Option(help="of labels 1 and 0")] = 0.0,
    parameter: Annotated[list[str] | None, typer.Option(help="temp=log_scale, of a module; may be repeated")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="say what a right loss computes, too")] = False,
    json: Json = None,
    save_case: SaveCase = None,
) -> None:
    """Is a loss right: fn(image_embed, text_embed, log_scale, bias)?"""
    from siglip_ref.check.loss.check import check_loss

    with _progress(f"checking {target}") as progress:
        report = check_loss(
            target,
            framework,
            dtype,
            device,
            scale,  # type: ignore[arg-type]  # check_loss says itself what it takes
            embeddings,  # type: ignore[arg-type]
            read_dims(dims),
            precision=precision,  # type: ignore[arg-type]
            progress=progress,
            frozen=frozen or (),
            size=size,  # type: ignore[arg-type]
            products=products,  # type: ignore[arg-type]
            explain=explain,
            loss=loss,  # type: ignore[arg-type]
            reduction=reduction,  # type: ignore[arg-type]
            bias=None if no_bias else "given",
            positives=positives,  # type: ignore[arg-type]
            weights=read_weights(weights),
            label_smoothing=label_smoothing,
            parameters=read_parameters(parameter),
        )
    finish(report, json, save_case)


@check.command("ranks")
@no_overwriting(files="json", folders="save_case", inputs="target")
def check_ranks_command(
    target: Annotated[str, typer.Argument(help='"module:name" or "file.py:name"')],
    world_size: Annotated[int, typer.Option(help="ranks; a second number of them is tried, too")] = 4,
    framework: Annotated[str | None, typer.Option(help="torch, jax or numpy; else seen from the function")] = None,
    reduce: Annotated[str, typer.Option(help="of gradients afterwards: mean, sum or none")] = "mean",
    value: Annotated[str, typer.Option(help="of each rank: local or global")] = "local",
    unequal: Annotated[bool, typer.Option("--unequal", help="ranks with different numbers of pairs, too")] = False,
    backend: Annotated[str, typer.Option(help="of torch.distributed")] = "gloo",
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    scale: Annotated[str, typer.Option(help="log, linear or auto")] = "auto",
    embeddings: Annotated[str, typer.Option(help="unit, raw or auto")] = "auto",
    limit: Annotated[float, typer.Option(help="seconds for all calls of one number of ranks")] = 120.0,
    axis_name: Annotated[str | None, typer.Option(help="jax: of the axis of ranks")] = None,
    loss: Annotated[str, typer.Option(help="sigmoid, or softmax: CLIP's")] = "sigmoid",
    json: Json = None,
    save_case: SaveCase = None,
) -> None:
    """Is a loss over ranks right: fn(image_shard, text_shard, log_scale, bias, rank, world_size)?"""
    from siglip_ref.check.call.frameworks import framework_of
    from siglip_ref.check.call.target import load_callable
    from siglip_ref.check.ranks.check import check_ranks

    fn = load_callable(target)
    framework = framework or framework_of(fn, "check_ranks")
    how: dict[str, Any] = dict(reduce=reduce, value=value, unequal=unequal, backend=backend)
    how |= dict(dtype=dtype, device=device, scale=scale, embeddings=embeddings, limit=limit, axis_name=axis_name)
    how["loss"] = loss
    if framework == "numpy":
        from mpi.comm import ThreadComm

        how["ranks"] = ThreadComm.run
    finish(check_ranks(fn, world_size, framework, **how), json, save_case)


@check.command("model")
@no_overwriting(files="json", folders="save_case", inputs="target")
def check_model_command(
    target: Annotated[
        str,
        typer.Argument(help='"module:name", "file.py:name", a saved directory, or hf:tiny, open_clip:ViT-B-16-SigLIP'),
    ],
    dtype: Dtype = "float32",
    weights: Annotated[str, typer.Option(help="probe: deterministic ones; own: the model's")] = "probe",
    up_to: Annotated[
        str | None, typer.Option(help="where a tower alone ends: pooled, last (hidden state), last-but-one (block)")
    ] = None,
    json: Json = None,
    save_case: SaveCase = None,
) -> None:
    """Is a model, or one tower of it, right: every activation, the loss, every parameter's gradient?"""
    from siglip_ref.check.model.adapters.find import load_target
    from siglip_ref.check.model.check import check_model

    with _progress(f"checking {target}") as progress:
        progress(f"loading {target}")
        report = check_model(load_target(target), dtype=dtype, weights=weights, up_to=up_to, progress=progress)  # type: ignore[arg-type]  # as above
    finish(report, json, save_case)


@check.command("step")
@no_overwriting(files="json", folders="save_case", inputs="target")
def check_step_command(
    target: Annotated[str, typer.Argument(help='"module:name" or "file.py:name", a function that makes the step')],
    json: Json = None,
    save_case: SaveCase = None,
) -> None:
    """Is a training step right: clip, weight decay, bias correction, schedule, accumulation, save and load?

    TARGET takes nothing and returns the arguments of siglip_ref.check_step as a dict: step_fn, rule, model, ...
    """
    from siglip_ref.check.call.target import load_callable
    from siglip_ref.check.step.check import check_step

    with _progress(f"checking {target}") as progress:
        arguments = load_callable(target)()
        if not isinstance(arguments, dict):
            raise UsageError(
                expected=f"{target}() that returns the arguments of check_step as a dict",
                got=f"a {type(arguments).__name__}",
                cause="the step itself, or its model, was returned",
                repair="return dict(step_fn=step, rule=sr.AdamW(...), model=model)",
            )
        report = check_step(**arguments, progress=progress)
    finish(report, json, save_case)


@app.command("selfcheck")
def selfcheck_command() -> None:
    """Prove the reference on this machine: complex step, balls, a certified number, mistakes that must show."""
    from siglip_ref.use.selfcheck import selfcheck

    with _progress("selfcheck") as progress:
        results = selfcheck(progress)
    words = {True: "proven", False: "FAILED", None: "-"}
    for result in results:
        typer.echo(f"{words[result.passed]:7} {result.what:24} {result.seconds:5.1f} s  {result.detail}")
    raise typer.Exit(1 if any(result.passed is False for result in results) else 0)


def read_dims(words: str | None) -> "Dims":
    """Multiples or shapes, as the command line writes them.

    >>> read_dims("batch=16,dim=32"), read_dims("64x128,96x128")
    ({'batch': 16, 'dim': 32}, [(64, 128), (96, 128)])
    """
    if words is None:
        return None
    try:
        if "=" in words:
            return {name.strip(): int(number) for name, number in (part.split("=") for part in words.split(","))}
        return [(int(pairs), int(width)) for pairs, width in (part.split("x") for part in words.split(","))]
    except ValueError:
        raise UsageError(
            expected='--dims "batch=16,dim=32" or --dims "64x128,96x128"',
            got=repr(words),
            cause="neither multiples nor shapes",
            repair='--dims "batch=16,dim=32"',
        ) from None


def read_weights(words: str | None) -> Any:
    """A word, or two numbers.

    >>> read_weights("rows"), read_weights("3,1")
    ('rows', (3.0, 1.0))
    """
    try:
        return tuple(float(number) for number in words.split(",")) if words and "," in words else words
    except ValueError:
        return words  # check_loss says itself what it takes


def read_parameters(words: list[str] | None) -> dict[str, str] | None:
    """Of a module, what each is.

    >>> read_parameters(["temp=log_scale", "b=bias"])
    {'temp': 'log_scale', 'b': 'bias'}
    """
    return {name: what for name, _, what in (word.partition("=") for word in words)} if words else None


def finish(report: "Report", json: str | None, save_case: Path | None) -> None:
    """Print, write, and end with the exit code of the verdict."""
    if json == "-":
        typer.echo(report.to_json(), nl=False)
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(report)
    else:
        typer.echo(str(report))
    try:
        if json and json != "-":
            Path(json).write_text(report.to_json(), encoding="utf-8")
        if save_case:
            report.save_case(save_case)
    except OSError as cause:
        raise UsageError(
            expected="a place that can be written to",
            got=str(cause),
            cause="no such folder, or no right to write there",
            repair="make the folder, or choose another",
        ) from cause
    raise typer.Exit(0 if report.passed else 1)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str], None]]:
    """A moving bar with the name of the current step, on terminals only."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda step: bar.update(task, description=step[:60])


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
