"""How often is a right program flagged? More than 90,000 runs under frozen tolerances: docs/generated/false-alarms.md.

python benchmarks/false_alarms.py [--only torch/,jax] [--least 320] [--processes 2]
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import false_alarms_losses as losses
import false_alarms_models as models
import false_alarms_rounded as of_reference
from false_alarms_count import Stratum, Trial, as_json, count, from_json, frozen
from false_alarms_page import page
from false_alarms_seeds import HELD_OUT
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "false_alarms.json"
PAGE = Path(__file__).parents[1] / "docs" / "generated" / "false-alarms.md"
PACKAGES = ("numpy", "torch", "jax", "transformers", "open_clip_torch", "timm", "optax")

Piece = Callable[[int], Iterator[Trial]]


def pieces() -> dict[str, Piece]:
    """What is run apart: one family in one dtype. The longest first, so that two processes end together."""
    found: dict[str, Piece] = {}
    for dtype in losses.DTYPES:
        found[f"torch.compile/{dtype}"] = partial(losses.runs, "torch.compile", dtype)
    for name in models.MODELS:
        for dtype in models.dtypes_of(name):
            found[f"model/{name}/{dtype}"] = partial(models.runs, name, dtype)
    for family, dtypes in (("torch", tuple(losses.SETTINGS)), ("jax", losses.DTYPES), ("numpy", losses.DTYPES[:2])):
        for dtype in dtypes:
            found[f"{family}/{dtype}"] = partial(losses.runs, family, dtype)
    for dtype in losses.SETTINGS:
        found[f"whole/{dtype}"] = partial(losses.whole_checks, dtype)
    for dtype in ("float64", "float32"):
        found[f"real/{dtype}"] = partial(losses.real_size, dtype)
    for regime in of_reference.REGIMES:
        found[f"rounded/{regime}"] = partial(of_reference.runs, regime)
    return found


def run_piece(name: str, least: int) -> tuple[list[Stratum], float]:
    start = time.perf_counter()
    strata = count(pieces()[name](least))
    return strata, time.perf_counter() - start


def run_all(names: Sequence[str], least: int, processes: int) -> None:
    """Each piece in one of `processes` processes of one thread each."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    start, before = time.perf_counter(), {name: frozen(name) for name in names}
    with (
        ProcessPoolExecutor(processes, get_context("spawn")) as pool,
        Progress(console=Console(stderr=True)) as bar,
    ):
        jobs = {pool.submit(run_piece, name, least): name for name in names}
        task = bar.add_task("pieces", total=len(jobs))
        for job in as_completed(jobs):
            name, (strata, seconds) = jobs[job], job.result()
            if frozen(name) == before[name]:
                keep(name, strata, seconds, processes, time.perf_counter() - start)
            else:
                bar.console.print(f"{name}: the tolerances were changed during these runs, which count for nothing")
            bar.advance(task)
            told = f"{sum(s.runs for s in strata)} runs, {sum(s.flagged for s in strata)} flagged"
            bar.console.print(f"{name}: {told}, worst {max(s.worst for s in strata):.2f}, {seconds:.0f} s")


def keep(name: str, strata: list[Stratum], seconds: float, processes: int, wall: float) -> None:
    """A piece that is done, with those done before under the same tolerances: in results/, and as a page."""
    found = from_json(RESULTS) | {name: (strata, seconds)}
    ordered = {piece: found[piece] for piece in pieces() if piece in found}
    told = facts(wall, processes)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(as_json(ordered, told), encoding="utf-8")
    PAGE.write_text(page(ordered, told["versions"], HELD_OUT), encoding="utf-8")


def show(strata: Sequence[Stratum]) -> None:
    table = Table("implementation", "dtype", "runs", "flagged", "rate below", "worst error / allowed")
    for s in strata:
        colour = "[red]" if s.flagged else ""
        cells = (s.implementation, s.dtype, str(s.runs), f"{colour}{s.flagged}", f"{s.bound:.2%}", f"{s.worst:.2f}")
        table.add_row(*cells)
    Console().print(table)


def facts(seconds: float, processes: int) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"wall_seconds": round(seconds, 1), "processes": processes, "versions": versions}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--only", default="", help="pieces whose names begin so, with commas between")
    options.add_argument("--least", type=int, default=320, help="runs of each implementation in each dtype")
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--page", action="store_true", help="run nothing, write the page anew")
    chosen = options.parse_args()
    beginnings = tuple(chosen.only.split(","))
    names = [name for name in pieces() if name.startswith(beginnings)]
    if chosen.page:
        found = from_json(RESULTS)
        PAGE.write_text(page(found, facts(0, 0)["versions"], HELD_OUT), encoding="utf-8")
        return 0
    if not chosen.only:
        RESULTS.unlink(missing_ok=True)
    start = time.perf_counter()
    run_all(names, chosen.least, chosen.processes)
    found = from_json(RESULTS)
    strata = [stratum for name in pieces() if name in found for stratum in found[name][0]]
    show(strata)
    flagged = sum(s.flagged for s in strata)
    print(f"{sum(s.runs for s in strata)} runs, {flagged} flagged, {time.perf_counter() - start:.0f} s")
    for s in strata:
        for alarm in s.alarms:
            print(f"flagged: {s.implementation}, {s.dtype}, {alarm}")
    return 1 if flagged else 0


if __name__ == "__main__":
    sys.exit(main())
