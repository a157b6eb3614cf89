"""Time and memory of the loss against B: `python benchmarks/loss_growth.py` writes JSON; `--pairs 131072` for one B.

Memory is what a call adds at its peak to a process that has its inputs and its compiled kernels, without the two
gradients that it returns.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np

from siglip_ref import fast
from siglip_ref.cli.speed import machine
from siglip_ref.model.loss import sigmoid_loss

WIDTH = 768
RESULTS = Path(__file__).parent / "results" / "loss_growth.json"


def resident(what: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def rows(pairs: int, seed: int) -> np.ndarray:
    """Random unit rows, made without temporaries: what they leave behind would serve the results."""
    x = np.random.default_rng(seed).standard_normal((pairs, WIDTH), np.float32)
    x /= np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return x


def measure(pairs: int, repeats: int) -> dict[str, float]:
    """Median seconds, rate, memory in bytes."""
    x, y = rows(pairs, 1), rows(pairs, 2)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    before, seconds = resident("VmRSS"), []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = sigmoid_loss(x, y, math.log(10), -10.0, ops=fast)
        seconds.append(time.perf_counter() - begin)
        added = resident("VmHWM") - before
        del result
    median = float(np.median(seconds))
    return {
        "pairs": pairs,
        "seconds": median,
        "gflops": 6e-9 * pairs**2 * WIDTH / median,
        "memory": added - 2 * x.nbytes,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, action="append")
    options.add_argument("--repeats", type=int, default=5)
    chosen = options.parse_args()
    x, y = rows(2048, 1), rows(2048, 2)
    sigmoid_loss(x, y, math.log(10), -10.0, ops=fast)  # kernels are compiled, threads awake
    known = {row["pairs"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    for pairs in chosen.pairs or [1024, 2048, 4096, 8192, 16384]:
        known[pairs] = measure(pairs, chosen.repeats)
        print(known[pairs], flush=True)
    ordered = [known[pairs] for pairs in sorted(known)]
    exponent = np.polyfit(np.log([r["pairs"] for r in ordered]), np.log([r["seconds"] for r in ordered]), 1)[0]
    document = {"machine": machine(2), "width": WIDTH, "exponent": float(exponent), "rows": ordered}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"time grows as B^{exponent:.2f}")


if __name__ == "__main__":
    main()
