"""What waiting costs: CPU seconds of 2 and of 8 ranks for the same batch, sleeping and spinning.

Equal shards, where ranks wait little, and shards of 1 : 2 : ... : W, where they wait much.

python benchmarks/ring_busy.py
"""

import json
import os
import sys
import time

from ring_common import on_ranks, shard

PAIRS, DIM, REPEATS = 8192, 128, 3


def worker(way: str, shape: str) -> None:
    import numpy as np

    from mpi.batch import shard_sizes
    from mpi.cli import world
    from mpi.loss import ring_sigmoid_loss

    comm = world(way == "spin")
    sizes = shard_sizes(PAIRS, comm.size, shape == "unequal")
    x, y = shard(comm.rank, sizes[comm.rank], DIM)
    comm.Allreduce(np.zeros(1), np.zeros(1))
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(REPEATS):
        ring_sigmoid_loss(comm, x, y, 1.0, -8.0)
    used = np.zeros(2)
    comm.Allreduce(np.array([time.process_time() - cpu, (time.perf_counter() - wall) / comm.size]), used)
    if comm.rank == 0:
        print(json.dumps(used.tolist()))


def main() -> None:
    print(f"{PAIRS:,} pairs, D = {DIM}, float32, {REPEATS} losses; {os.cpu_count()} cores; best of 3")
    print(f"{'shards':<8} {'waiting':<8} {'ranks':>5} {'CPU s in the loss':>18} {'wall s':>7} {'CPU s of the job':>17}")
    for shape in ("equal", "unequal"):
        for way in ("sleep", "spin"):
            best = {}
            for ranks in (2, 8):
                runs = [on_ranks(ranks, __file__, way, shape) for _ in range(3)]
                best[ranks] = cpu, wall, job = min((*used, job) for used, job in runs)
                print(f"{shape:<8} {way:<8} {ranks:>5} {cpu:>18.2f} {wall:>7.2f} {job:>17.2f}")
            loss, job = best[8][0] / best[2][0], best[8][2] / best[2][2]
            print(f"8 ranks need {loss:.2f} times the CPU time of 2 in the loss, {job:.2f} times in the whole job")


if __name__ == "__main__":
    worker(*sys.argv[1:]) if len(sys.argv) > 1 else main()
