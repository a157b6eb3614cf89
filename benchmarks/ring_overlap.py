"""How much of the communication `overlapped` hides on a slow link, on 2 ranks.

python benchmarks/ring_overlap.py
"""

import json
import sys
import time
from dataclasses import replace

from ring_common import on_ranks, shard

RANKS, PAIRS, DIM, REPEATS = 2, 4096, 256, 15
LATENCY, BANDWIDTH = 1e-3, 100e6  # seconds, bytes per second: about gigabit Ethernet
TILE_TIME = 0.3e-3  # of a block that only sleeps: what hides is then the schedule, on a busy machine as on an idle one


def worker(kind: str) -> None:
    import numpy as np

    from mpi.cli import world
    from mpi.loss import ring_sigmoid_loss
    from mpi.wrappers import Counted, Throttled
    from siglip_ref.model.specification import SPECIFICATION

    comm = world(spin=False)
    x, y = shard(comm.rank, PAIRS // comm.size, DIM)
    counted = Counted(comm)
    ring_sigmoid_loss(counted, x, y, 1.0, -8.0)
    found: dict[str, float] = {"communication": counted.messages * LATENCY + counted.bytes / BANDWIDTH}

    def timed_block(x, y, log_scale, bias, match):
        time.sleep(TILE_TIME)
        return 0.0 * log_scale, np.zeros_like(x), np.zeros_like(y), 0.0 * log_scale, 0.0 * bias

    blocks = SPECIFICATION if kind == "computed" else replace(SPECIFICATION, pair_block=timed_block)
    slow = Throttled(comm, LATENCY, BANDWIDTH)
    runs = [(scheme, link) for scheme in ("blocking", "overlapped") for link in ("free", "slow")]
    for _ in range(REPEATS):
        for scheme, link in runs:  # in turn, so that a busy moment of the machine hits all
            comm.Allreduce(np.zeros(1), np.zeros(1))
            start = time.perf_counter()
            ring_sigmoid_loss(slow if link == "slow" else comm, x, y, 1.0, -8.0, scheme=scheme, ops=blocks)
            took, name = time.perf_counter() - start, f"{scheme}, {link}"
            found[name] = min(took, found.get(name, took))
    if comm.rank == 0:
        print(json.dumps(found))


def main() -> None:
    print(f"{RANKS} ranks, {PAIRS:,} pairs, D = {DIM}, float32; {LATENCY * 1e3:g} ms, {BANDWIDTH / 1e6:g} MB/s")
    for kind, words in (
        ("computed", "blocks computed"),
        ("timed", f"blocks that sleep {TILE_TIME * 1e3:g} ms a tile instead"),
    ):
        found, _ = on_ranks(RANKS, __file__, kind)
        print(f"\n{words}")
        for name, seconds in found.items():
            print(f"{name:<17} {seconds * 1e3:7.1f} ms")
        for scheme in ("blocking", "overlapped"):
            shown = found[f"{scheme}, slow"] - found[f"{scheme}, free"]
            print(f"{scheme} hides {100 * (1 - shown / found['communication']):.0f} % of the communication")


if __name__ == "__main__":
    worker(sys.argv[1]) if len(sys.argv) > 1 else main()
