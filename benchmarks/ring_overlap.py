"""How much of the communication `overlapped` hides on a slow link, on 2 ranks.

python benchmarks/ring_overlap.py
"""

import json
import sys
import time

from ring_common import on_ranks, shard

RANKS, PAIRS, DIM, TILE, REPEATS = 2, 4096, 256, 256, 15
LATENCY, BANDWIDTH = 1e-3, 100e6  # seconds, bytes per second: about gigabit Ethernet


def worker() -> None:
    import numpy as np

    from mpi.cli import world
    from mpi.loss import ring_sigmoid_loss
    from mpi.wrappers import Counted, Throttled

    comm = world(spin=False)
    x, y = shard(comm.rank, PAIRS // comm.size, DIM)
    counted = Counted(comm)
    ring_sigmoid_loss(counted, x, y, 1.0, -8.0, tile=TILE)
    found: dict[str, float] = {"communication": counted.messages * LATENCY + counted.bytes / BANDWIDTH}
    slow = Throttled(comm, LATENCY, BANDWIDTH)
    runs = [(scheme, link) for scheme in ("blocking", "overlapped") for link in ("free", "slow")]
    for _ in range(REPEATS):
        for scheme, link in runs:  # in turn, so that a busy moment of the machine hits all
            comm.Allreduce(np.zeros(1), np.zeros(1))
            start = time.perf_counter()
            ring_sigmoid_loss(slow if link == "slow" else comm, x, y, 1.0, -8.0, scheme=scheme, tile=TILE)
            took, name = time.perf_counter() - start, f"{scheme}, {link}"
            found[name] = min(took, found.get(name, took))
    if comm.rank == 0:
        print(json.dumps(found))


def main() -> None:
    found, _ = on_ranks(RANKS, __file__, "worker")
    print(f"{RANKS} ranks, {PAIRS:,} pairs, D = {DIM}, float32; {LATENCY * 1e3:g} ms, {BANDWIDTH / 1e6:g} MB/s")
    for name, seconds in found.items():
        print(f"{name:<17} {seconds * 1e3:7.1f} ms")
    for scheme in ("blocking", "overlapped"):
        shown = found[f"{scheme}, slow"] - found[f"{scheme}, free"]
        print(f"{scheme} hides {100 * (1 - shown / found['communication']):.0f} % of the communication")


if __name__ == "__main__":
    worker() if len(sys.argv) > 1 else main()
