"""The command `siglip-ring`: `mpiexec -n 4 siglip-ring loss`, or `siglip-ring loss --threads 4` without MPI."""

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar, get_args

import typer

import siglip_ref
from mpi.watchdog.launcher import SIZES, is_launched, require_one_world
from mpi.watchdog.progress import COMMAND, Progress
from mpi.watchdog.watch import supervise
from siglip_ref.errors import UsageError
from siglip_ref.process.options import Force, require_words
from siglip_ref.process.outputs import require_free
from siglip_ref.training.command import run as run_training
from siglip_ref.training.command import with_options

if TYPE_CHECKING:
    from mpi.comm import Communicator

T = TypeVar("T")

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The chunked SigLIP loss on a Sendrecv ring. Under mpiexec, or with --threads N without MPI.",
)

Threads = Annotated[int, typer.Option(min=0, max=256, help="Ranks as threads of this process; 0: MPI.")]
OrThreads = Annotated[
    int | None,
    typer.Option(
        min=0, max=256, help="Ranks as threads of this process; 0: MPI. Default: MPI under a launcher, else 4."
    ),
]
Pairs = Annotated[int, typer.Option(min=1, help="Image-text pairs of the global batch.")]
Dim = Annotated[int, typer.Option(min=1, help="Width of an embedding.")]
Schemes = Literal["blocking", "overlapped", "bidirectional", "autograd-like", "allgather", "masked-allreduce"]
NAMES = ", ".join(get_args(Schemes))
Scheme = Annotated[Schemes, typer.Option(metavar="NAME", help=f"How images and texts are brought together: {NAMES}.")]
Dtype = Annotated[Literal["float64", "float32"], typer.Option(help="Of the embeddings.")]
Tile = Annotated[int, typer.Option(min=1, help="Rows and columns of a block of pairs computed at once.")]
TEN = math.log(10.0)
Unequal = Annotated[bool, typer.Option("--unequal", help="Give the ranks 1 : 2 : ... : W parts of the batch.")]
Seed = Annotated[int, typer.Option(help="Of the batch.")]
LogScale = Annotated[float, typer.Option(help="logits = exp(log_scale) * similarity + bias.")]
Bias = Annotated[float | None, typer.Option(help="Default: -log(pairs - 1), where positives and negatives balance.")]
Limit = Annotated[float, typer.Option(min=0.1, help="Seconds without progress after which a rank counts as stalled.")]
Spin = Annotated[
    bool, typer.Option("--spin", help="Wait as the MPI library does, burning a core, instead of sleeping.")
]
KINDS = "raise, kill, stall, stop, nan, shape, dtype, scale"
Fault = Annotated[str, typer.Option(metavar="RANK:HOP:KIND", help=f"Let a rank fail; kinds: {KINDS}.")]


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """Options before any command."""
    if version:
        typer.echo(f"siglip-ring {siglip_ref.__version__}")
        raise typer.Exit()


@app.command()
def loss(
    threads: OrThreads = None,
    pairs: Pairs = 16,
    dim: Dim = 8,
    scheme: Scheme = "blocking",
    dtype: Dtype = "float64",
    tile: Tile = 128,
    unequal: Unequal = False,
    seed: Seed = 0,
    log_scale: LogScale = TEN,
    bias: Bias = None,
    check: Annotated[bool | None, typer.Option(help="Compare with one process; default: up to 4,096 pairs.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Folder for one picture a hop.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Instead: fit a cost model here, check it, predict the paper's sizes.")
    ] = False,
    stall_limit: Limit = 60.0,
    spin: Spin = False,
    fault: Fault = "",
    force: Force = False,
) -> None:
    """Compute the loss and all gradients of a batch; show what every rank received, sent and computed, hop by hop."""
    from mpi.batch import Job
    from mpi.job import run
    from mpi.show import show

    threads, check = _ranks(threads), pairs <= 4096 if check is None else check
    job = Job(pairs, dim, scheme, dtype, tile, unequal, seed, log_scale, bias, check, fault)

    if predict:
        from mpi.cost import report

        _run(lambda comm, progress, slot: report(comm, pairs, dim, dtype, tile), threads, stall_limit, spin, _print)
    work = _where_free(partial(run, job), svg, force)
    _run(work, threads, stall_limit, spin, lambda outcome: show(outcome, job, svg))


@app.command()
def trace(
    out: Annotated[Path, typer.Argument(help="Folder for trace.json, trace.schema.json and perfetto.json.")],
    threads: OrThreads = None,
    pairs: Pairs = 16,
    dim: Dim = 8,
    scheme: Scheme = "blocking",
    tile: Tile = 128,
    unequal: Unequal = False,
    seed: Seed = 0,
    stall_limit: Limit = 60.0,
    force: Force = False,
) -> None:
    """Write what every rank did: a compact JSON with its schema, and a file for ui.perfetto.dev."""
    from mpi.batch import Job
    from mpi.job import run
    from mpi.trace import write

    threads = _ranks(threads)
    job = Job(pairs, dim, scheme, tile=tile, unequal=unequal, seed=seed, check=False)
    work = _where_free(partial(run, job), out, force)
    _run(work, threads, stall_limit, False, lambda outcome: write(out, job, outcome))


@app.command("train")
@with_options
def train(
    chosen: dict[str, Any],
    threads: Threads = 0,
    sums: Annotated[
        Literal["allreduce", "ring"], typer.Option(help="How gradients add up; ring: Sendrecv.")
    ] = "allreduce",
    stall_limit: Limit = 600.0,
    spin: Spin = False,
) -> None:
    from mpi.training.train import Ranks

    if not threads:  # as for OMP_NUM_THREADS: a rank is one thread, unless told otherwise
        os.environ.setdefault("NUMBA_NUM_THREADS", "1")

    def work(comm: "Communicator", progress: Progress, slot: int) -> None:
        run_training(chosen, Ranks(comm, progress, slot, sums))

    _run(work, threads, stall_limit, spin, lambda _: 0)


def _ranks(threads: int | None) -> int:
    """How many threads, 0 for MPI: as asked, or what the start suggests."""
    if threads is not None:
        return threads
    if is_launched(SIZES):
        return 0
    typer.echo("siglip-ring: 4 ranks as threads of this process; over MPI: mpiexec -n 4 siglip-ring ...", err=True)
    return 4


def _run(
    work: Callable[["Communicator", Progress, int], T],
    threads: int,
    stall_limit: float,
    spin: bool,
    show: Callable[[T], int],
) -> NoReturn:
    """Run work(comm, progress, slot) on threads or on MPI; rank 0 shows, and knows the exit code."""
    COMMAND.tell(ranks=threads or 1, limit=stall_limit, alone=threads > 0)
    if threads:
        from mpi.comm import ThreadComm

        raise typer.Exit(show(ThreadComm.run(threads, lambda comm: work(comm, COMMAND, comm.rank))[0]))
    COMMAND.joins()
    comm = world(spin)
    COMMAND.tell(alone=comm.size == 1)
    if comm.size == 1:
        typer.echo("siglip-ring: one rank; for a ring add --threads 4, or start it under mpiexec -n 4", err=True)
    outcome = work(comm, COMMAND, 0)
    code = show(outcome) if comm.rank == 0 else 0
    if not spin:  # sleep until all are here, for MPI's own end would spin
        import numpy as np

        comm.Allreduce(np.zeros(1), np.zeros(1))
    raise typer.Exit(code)


def _where_free(
    work: Callable[["Communicator", Progress, int], T], folder: Path | None, force: bool
) -> Callable[["Communicator", Progress, int], T]:
    """The same work, before which rank 0, who will write, looks whether the folder is free."""

    def checked(comm: "Communicator", progress: Progress, slot: int) -> T:
        if comm.rank == 0 and folder is not None:
            require_free(folders=[folder], force=force)
        return work(comm, progress, slot)

    return checked


def _print(text: str) -> int:
    print(text, flush=True)
    return 0


def world(spin: bool) -> Any:
    """MPI's world: here, and nowhere else, mpi4py is loaded."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            "mpi4py and an MPI library",
            f"{type(error).__name__}: {error}",
            "they are not installed in this environment",
            'the extra "mpi" brings both: pip install ".[mpi]" in a clone; or add --threads 4 to run without MPI',
        ) from None
    from mpi.wrappers import Patient

    require_one_world(MPI.COMM_WORLD.size)
    return MPI.COMM_WORLD if spin else Patient(MPI.COMM_WORLD)


def main() -> None:
    """As `siglip_ring.main`, which forks the watcher before this file is even loaded."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(supervise(run_app, COMMAND))


def run_app() -> int:
    """The command, in the process of the rank."""
    require_words(sys.argv)
    app()
    return 0


if __name__ == "__main__":
    main()
