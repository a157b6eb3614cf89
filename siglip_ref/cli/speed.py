"""Speed and memory of this package beside Torch and JAX, on the machine at hand.

Every contestant lives in a process of its own with the same number of threads, and they take turns, so that whatever
else the machine does hits all alike. Figures are medians with their spread; what counts are ratios within one run.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from siglip_ref.cli.speed_saved import sized
from siglip_ref.errors import UsageError
from siglip_ref.process.data import read_toml
from siglip_ref.process.machine import processor, version

_ABOUT = read_toml(__file__, "speed")
CASES: dict[str, list[str]] = _ABOUT["cases"]  # what the worker is told
CONTESTANTS: dict[str, str] = _ABOUT["contestants"]  # and what each needs
ENGINES = ("onnxruntime", "openvino")  # of these, what only infers
YARDSTICKS = {"numpy": "numpy", "torch": "torch", "jax.jit": "jax"}  # whose matrix product is measured, too
PRODUCT_FLOPS = 2 * 3072**3


@dataclass
class Entry:
    """One contestant in one case."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0  # bytes, the process's largest
    added: int = 0  # of these, what the measured call added to a process that had its inputs ready
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


@dataclass
class Result:
    """One case: its contestants by name, and the matrix products measured between them."""

    case: str
    flops: float
    entries: dict[str, Entry]
    products: dict[str, Entry]

    def ratio(self, rival: str) -> float:
        """How many times faster fast is: the median over rounds of the ratio within a round."""
        pairs = zip(self.entries[rival].seconds, self.entries["fast"].seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def of_product(self, name: str, yardstick: str = "numpy") -> float:
        """The share of the matrix product's rate that the counted work reaches."""
        return self.flops / self.entries[name].median / (PRODUCT_FLOPS / self.products[yardstick].median)


def flops(case: Sequence[str]) -> float:
    """Floating-point operations of the matrix products alone (the step's optimiser is not counted)."""
    kind, first, second = case
    if kind == "loss":
        return 6.0 * int(first) ** 2 * int(second)
    cfg, batch = sized(first), int(second)

    def tower(width: int, depth: int, mlp: int, tokens: int) -> float:
        return depth * (tokens * (8.0 * width**2 + 4 * width * mlp) + 4.0 * tokens**2 * width)

    c, m, n = cfg.image.width, cfg.image.mlp, cfg.patches
    image = tower(c, cfg.image.depth, m, n) + 2.0 * n * 3 * cfg.patch**2 * c + n * 4.0 * c * c + 4.0 * c * (c + m)
    text = tower(cfg.text.width, cfg.text.depth, cfg.text.mlp, cfg.text_length)
    return batch * {"image": image, "text": text, "gradients": 3 * (image + text), "step": 3 * (image + text)}[kind]


class Worker:
    """A contestant's process."""

    def __init__(self, case: Sequence[str], contestant: str, folder: str, threads: int) -> None:
        numbers = ("OMP", "MKL", "OPENBLAS", "NUMBA")
        environment = dict(os.environ) | {f"{name}_NUM_THREADS": str(threads) for name in numbers}
        many = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {many}".strip()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "siglip_ref.cli.speed_worker", *case, contestant, folder, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def answer(self, calls: int | None = None) -> Any:
        """What the process says next, after asking for so many calls."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        if calls is not None:
            self.process.stdin.write(f"{calls}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().strip().splitlines()
            errors = [line for line in said if "Error" in line.split(":")[0]]
            raise ChildProcessError((errors or said or ["ended without a word"])[-1])
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def prepare(case: Sequence[str], contestants: Sequence[str], folder: str) -> None:
    """The checkpoint that all load, and its export where an engine takes part, in a process of its own."""
    exported = "onnx" if set(ENGINES) & set(contestants) else "no"
    command = [sys.executable, "-m", "siglip_ref.cli.speed_saved", *case, folder, exported]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError((done.stderr.strip().splitlines() or ["ended without a word"])[-1])


def run_case(
    name: str, contestants: Sequence[str], threads: int, repeats: int, folder: str, tell: Callable[[str], None] = print
) -> Result:
    """Measure one case: contestants and matrix products in turns."""
    case = CASES[name]
    if case[0] not in ("image", "text"):
        contestants = [contestant for contestant in contestants if contestant not in ENGINES]
    if case[0] in ("image", "text", "gradients"):  # these load a checkpoint
        prepare(case, contestants, folder)
    result = Result(name, flops(case), {}, {})
    workers: list[tuple[Worker, Entry]] = []
    for kind, names in (("case", contestants), ("product", [y for y, need in YARDSTICKS.items() if find_spec(need)])):
        for contestant in names:
            tell(f"{name}: starting {contestant}" + (" (matrix product)" if kind == "product" else ""))
            entry = (result.entries if kind == "case" else result.products).setdefault(contestant, Entry())
            worker = Worker(case if kind == "case" else ("product",), contestant, folder, threads)
            try:
                ready = worker.answer()
                entry.peak, entry.added = ready["peak"], ready["added"]
                workers.append((worker, entry))
            except ChildProcessError as problem:
                entry.failed = str(problem)
                worker.end()
    try:
        for worker, entry in workers:  # short calls are repeated until they make a third of a second
            entry.seconds.append(worker.answer(1))
        calls = [max(1, round(0.3 / entry.seconds.pop())) for _, entry in workers]
        for number in range(repeats):
            tell(f"{name}: round {number + 1} of {repeats}")
            for (worker, entry), count in zip(workers, calls, strict=True):
                time.sleep(0.1)  # the last one's threads stop spinning
                entry.seconds.append(worker.answer(count))
    finally:
        for worker, _ in workers:
            worker.end()
    return result


def bench(
    cases: Sequence[str] = ("loss-4096", "step-tiny", "step-mu"),
    contestants: Sequence[str] | None = None,
    threads: int = 2,
    repeats: int = 7,
    save: Path | None = None,
    tell: Callable[[str], None] = print,
) -> list[Result]:
    """Measure, and save as JSON if asked to.

    Parameters
    ----------
    cases : names from `CASES`
    contestants : names from `CONTESTANTS` (default: all that are installed)
    threads : of every contestant
    repeats : rounds; at least 2
    save : file for the figures
    tell : is given a line on each stage
    """
    unknown = [name for name in cases if name not in CASES]
    unknown += [name for name in contestants or () if name not in CONTESTANTS]
    if unknown or repeats < 2 or threads < 1:
        raise UsageError(
            expected=f"cases from {', '.join(CASES)}; contestants from {', '.join(CONTESTANTS)}; 2 or more repeats",
            got=f"unknown: {', '.join(unknown) or 'nothing'}; repeats {repeats}, threads {threads}",
            cause="a typing mistake",
            repair="siglip-ref bench --case loss-4096",
        )
    chosen = contestants or [name for name, need in CONTESTANTS.items() if find_spec(need)]
    with tempfile.TemporaryDirectory() as folder:
        results = [run_case(name, chosen, threads, repeats, folder, tell) for name in cases]
    if save is not None:
        write(save, results, threads)
    return results


def write(path: Path, results: Sequence[Result], threads: int) -> None:
    """Figures and machine as JSON."""
    path.write_text(json.dumps({"machine": machine(threads), "results": [asdict(r) for r in results]}, indent=1) + "\n")


def read(path: Path) -> list[Result]:
    """What `write` wrote."""

    def entries(found: dict[str, Any]) -> dict[str, Entry]:
        return {name: Entry(**entry) for name, entry in found.items()}

    found = json.loads(path.read_text())["results"]
    return [Result(r["case"], r["flops"], entries(r["entries"]), entries(r["products"])) for r in found]


def machine(threads: int) -> dict[str, str]:
    """What the figures depend on."""
    names = ("numpy", "scipy", "numba", "torch", "jax", "transformers", "onnxruntime", "openvino")
    found = {name: version(name) or "missing" for name in names}
    about = {"cpu": processor(), "cores": str(os.cpu_count()), "threads": str(threads)}
    return about | found | {"openblas_coretype": os.environ.get("OPENBLAS_CORETYPE", "chosen by OpenBLAS")}


def table(results: Sequence[Result]) -> str:
    """The figures as a Markdown table; misses included."""
    lines = [
        "| case | contestant | time | spread | share of NumPy's matrix product | of its own | fast is | peak, added |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, entry in result.entries.items():
            if entry.failed:
                lines.append(f"| {result.case} | {name} | failed: {entry.failed} | | | | | |")
                continue
            own = {"fast": "numpy", "torch.compile": "torch"}.get(name, name)
            share = f"{result.of_product(name):.2f}"
            beside = f"{result.of_product(name, own):.2f}" if own in result.products else ""
            faster = "" if name == "fast" or "fast" not in result.entries else f"{result.ratio(name):.2f}x"
            memory = f"{entry.peak / 2**20:,.0f} MB, {entry.added / 2**20:,.0f} MB"
            lines.append(
                f"| {result.case} | {name} | {entry.median * 1e3:,.2f} ms | {entry.spread:.0%} | {share} | {beside} "
                f"| {faster} | {memory} |"
            )
    return "\n".join(lines)
