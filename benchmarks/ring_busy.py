"""What waiting costs: CPU seconds of 2 and of 8 ranks for the same batch, sleeping and spinning.

python benchmarks/ring_busy.py
"""

import json
import os
import sys
import time

from ring_common import on_ranks, shard

PAIRS, DIM, REPEATS, TILE = 8192, 128, 3, 512


def worker(spin: bool) -> None:
    import numpy as np

    from mpi.cli import world
    from mpi.loss import ring_sigmoid_loss

    comm = world(spin)
    x, y = shard(comm.rank, PAIRS // comm.size, DIM)
    comm.Allreduce(np.zeros(1), np.zeros(1))
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(REPEATS):
        ring_sigmoid_loss(comm, x, y, 1.0, -8.0, tile=TILE)
    used = np.zeros(2)
    comm.Allreduce(np.array([time.process_time() - cpu, (time.perf_counter() - wall) / comm.size]), used)
    if comm.rank == 0:
        print(json.dumps(used.tolist()))


def main() -> None:
    print(f"{PAIRS:,} pairs, D = {DIM}, float32, {REPEATS} losses; {os.cpu_count()} cores; best of 3")
    print(f"{'waiting':<8} {'ranks':>5} {'CPU s in the loss':>18} {'wall s':>7} {'CPU s of the job':>17}")
    for way in ("sleep", "spin"):
        best = {}
        for ranks in (2, 8):
            best[ranks] = min((*used, job) for used, job in (on_ranks(ranks, __file__, way) for _ in range(3)))
            cpu, wall, job = best[ranks]
            print(f"{way:<8} {ranks:>5} {cpu:>18.2f} {wall:>7.2f} {job:>17.2f}")
        print(
            f"8 ranks need {best[8][0] / best[2][0]:.2f} times the CPU time of 2 in the loss, "
            f"{best[8][2] / best[2][2]:.2f} times in the whole job"
        )


if __name__ == "__main__":
    worker(sys.argv[1] == "spin") if len(sys.argv) > 1 else main()
