"""What deterministic=True costs: `python benchmarks/deterministic.py` writes JSON, and a table into its page in docs.

The ordinary loss and the deterministic one take turns in one process; the ratio is the median over rounds. Bytes are
what a rank of four sends on the ring, counted by a wrapper of the communicator.
"""

import argparse
import json
import math
import statistics
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss
from mpi.wrappers import Counted
from siglip_ref import fast, ops
from siglip_ref.cli.speed import machine
from siglip_ref.cli.speed_worker import unit_rows
from siglip_ref.model.loss import sigmoid_loss

WIDTH, RANKS = 768, 4
NAMESPACES = {"fast": fast, "ops": ops}
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "deterministic.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def measure(pairs: int, kind: type, namespace: str, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    x, y = (unit_rows(pairs, WIDTH, seed).astype(kind) for seed in (1, 2))

    def run(deterministic: bool) -> float:
        begin = time.perf_counter()
        sigmoid_loss(x, y, math.log(10), -10.0, tile=512, deterministic=deterministic, ops=NAMESPACES[namespace])
        return time.perf_counter() - begin

    def memory(deterministic: bool) -> int:
        tracemalloc.start()
        run(deterministic)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - 2 * x.nbytes

    for deterministic in (False, True):
        run(deterministic)
    seconds = [(run(False), run(True)) for _ in range(repeats)]
    return {
        "ops": namespace, "dtype": np.dtype(kind).name, "pairs": pairs,
        "seconds": statistics.median(one for one, _ in seconds),
        "deterministic_seconds": statistics.median(other for _, other in seconds),
        "slowdown": statistics.median(other / one for one, other in seconds),
        "memory": memory(False), "deterministic_memory": memory(True),
    }  # fmt: skip


def sent(kind: type, deterministic: bool) -> int:
    """Bytes that each of four ranks with 128 pairs sends, without its sums."""
    x, y = (unit_rows(128 * RANKS, WIDTH, seed).astype(kind) for seed in (1, 2))

    def work(comm: ThreadComm) -> int:
        counted, mine = Counted(comm), slice(128 * comm.rank, 128 * (comm.rank + 1))
        ring_sigmoid_loss(counted, x[mine], y[mine], math.log(10), -10.0, deterministic=deterministic)
        return counted.bytes

    return max(ThreadComm.run(RANKS, work))


def main() -> None:
    """Measure, print, save."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=7)
    chosen = options.parse_args()
    rows = [
        measure(pairs, kind, namespace, chosen.repeats)
        for namespace, pairs in (("fast", 4096), ("ops", 2048))
        for kind in (np.float32, np.float64)
    ]
    traffic = [
        {"dtype": np.dtype(kind).name, "bytes": sent(kind, False), "deterministic_bytes": sent(kind, True)}
        for kind in (np.float32, np.float64)
    ]
    RESULTS.mkdir(exist_ok=True)
    document = {"machine": machine(2), "width": WIDTH, "rows": rows, "ring": traffic}
    (RESULTS / "deterministic.json").write_text(json.dumps(document, indent=1) + "\n")
    text = table(document)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    print(text)


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = ["| ops | dtype | B | ordinary | deterministic | slower by | memory beside the results |", 7 * "|---" + "|"]
    for r in found["rows"]:
        memory = f"{r['memory'] / 2**20:.0f} MB, {r['deterministic_memory'] / 2**20:.0f} MB"
        times = f"{r['seconds']:.3f} s | {r['deterministic_seconds']:.3f} s | {r['slowdown']:.2f}x"
        lines.append(f"| {r['ops']} | {r['dtype']} | {r['pairs']:,} | {times} | {memory} |")
    ring = [f"{t['deterministic_bytes'] / t['bytes']:.2f} times in {t['dtype']}" for t in found["ring"]]
    return "\n".join([*lines, "", f"Bytes that a rank of four sends on the ring: {' and '.join(ring)}."])


if __name__ == "__main__":
    main()
