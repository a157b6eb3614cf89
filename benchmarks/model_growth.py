"""Time of a tower against batch, tokens, width and depth: `python benchmarks/model_growth.py` writes JSON.

One text tower, forward and backward, float32, of width 512 with 128 tokens unless said otherwise. Time should grow with
B^1 and depth^1; with N^1 to N^2 (attention's share grows), with C^2 (all matrix products).
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from siglip_ref import fast
from siglip_ref.architecture.params import init
from siglip_ref.architecture.sizes import Tower, config
from siglip_ref.cli.speed import machine
from siglip_ref.model.text import text_tower_backward, text_tower_forward
from siglip_ref.ops.elementary import subtree
from siglip_ref.process.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "model_growth.json"
BASE = {"B": 4, "N": 128, "C": 512, "depth": 2}
AXES = {"B": (1, 2, 4, 8, 16), "N": (64, 128, 256, 512, 1024), "C": (256, 512, 768, 1024), "depth": (1, 2, 4, 8)}


def step(size: dict[str, int]) -> Callable[[], object]:
    """Forward and backward of a text tower of this size."""
    tower = Tower(size["C"], size["depth"], 4 * size["C"], size["C"] // 64)
    cfg = replace(config("tiny"), text=tower, image=Tower(64, 1, 64, 1), text_length=size["N"], vocabulary=64)
    weights = subtree(init(cfg, dtype=np.float32), "text")
    tokens = np.random.default_rng(0).integers(0, 64, (size["B"], size["N"]))
    d_out = np.ones((size["B"], cfg.embed), np.float32)

    def run() -> object:
        _, cache, _ = text_tower_forward(tokens, weights, cfg, cfg.conventions, fast)
        return text_tower_backward(d_out, cache, fast)

    return run


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median of some calls, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    keep_freed_memory()
    axes = {}
    for axis, values in AXES.items():
        found = [seconds(step(BASE | {axis: value})) for value in values]
        exponents = np.diff(np.log(found)) / np.diff(np.log(values))  # between neighbours
        whole = float(np.polyfit(np.log(values), np.log(found), 1)[0])
        axes[axis] = {"values": values, "seconds": found, "exponent": whole, "last": float(exponents[-1])}
        print(f"time grows as {axis}^{whole:.2f} (between the last two {exponents[-1]:.2f})", flush=True)
    RESULTS.write_text(json.dumps({"machine": machine(2), "base": BASE, "axes": axes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
