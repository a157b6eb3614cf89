"""Two ranks with one thread each against one rank with two threads, for the same batch.

python benchmarks/ring_ranks.py
"""

import json
import sys
import time

from ring_common import on_ranks, shard

PAIRS, DIM, REPEATS = 8192, 256, 5


def worker() -> None:
    import numpy as np

    from mpi.cli import world
    from mpi.loss import ring_sigmoid_loss

    comm = world(spin=False)
    x, y = shard(comm.rank, PAIRS // comm.size, DIM)
    times = []
    for _ in range(REPEATS):
        comm.Allreduce(np.zeros(1), np.zeros(1))
        start = time.perf_counter()
        ring_sigmoid_loss(comm, x, y, 1.0, -8.0)
        times.append(time.perf_counter() - start)
    if comm.rank == 0:
        print(json.dumps(min(times)))


def main() -> None:
    times = {}
    for ranks, threads in ((1, 2), (2, 1), (1, 2), (2, 1)):
        took, _ = on_ranks(ranks, __file__, "worker", threads=threads)
        times[ranks] = min(took, times.get(ranks, took))
    print(
        f"{PAIRS:,} pairs, D = {DIM}, float32: 1 rank x 2 threads {times[1]:.3f} s, 2 ranks x 1 thread {times[2]:.3f} s"
    )
    print(f"2 ranks reach {times[1] / times[2]:.2f} of the speed of 1")


if __name__ == "__main__":
    worker() if len(sys.argv) > 1 else main()
