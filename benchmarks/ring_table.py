"""What each scheme sends, and its peak memory, counted and measured at the communicator: writes docs/generated/ring.md.

python benchmarks/ring_table.py
"""

import json
import math
import sys
from pathlib import Path

from ring_common import on_ranks, shard

B, DIM, TILE = 256, 64, 64
WORLDS = (1, 2, 4, 8)
FORMULAS = {
    "blocking": ("2 (W-1)", "2 (W-1) b D"),
    "overlapped": ("2 (W-1)", "2 (W-1) b D"),
    "bidirectional": ("4 (W-1)", "2 (W-1) b D"),
    "autograd-like": ("2 (W-1)", "2 (W-1) b D"),
    "allgather": ("2 (W-1)", "2 (W-1) b D"),
    "masked-allreduce": ("2 W sums", "2 W b D in sums"),
    "softmax ring": ("4 (W-1)", "(W-1) b (3 D + 2)"),
}


def worker() -> None:
    import tracemalloc

    import numpy as np
    from mpi4py import MPI

    from mpi.agree import FIELDS
    from mpi.cost import memory, traffic
    from mpi.loss import ring_sigmoid_loss
    from mpi.softmax import ring_softmax_loss
    from mpi.wrappers import Counted, Patient

    rows = []
    for world in WORLDS:
        part = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank < world)
        if MPI.COMM_WORLD.rank < world:
            x, y = shard(part.rank, B, DIM, "float64")
            for scheme in FORMULAS:
                comm = Counted(Patient(part))
                tracemalloc.start()
                if scheme == "softmax ring":
                    ring_softmax_loss(comm, x, y, 1.0, [B] * world)
                    own = 2 * 8
                else:
                    ring_sigmoid_loss(comm, x, y, 1.0, -6.0, scheme=scheme, tile=TILE)
                    own = 3 * 8 + world * len(FIELDS) * 8
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                seen = [
                    comm.messages,
                    comm.bytes,
                    comm.sums - 2 + (scheme == "softmax ring"),
                    comm.sum_bytes - own,
                    peak,
                ]
                sent = traffic(scheme, [B] * world, part.rank, DIM)
                assert seen[:4] == [sent.messages, 8 * sent.numbers, sent.sums, 8 * sent.sum_numbers]
                everyone = part.gather(seen)
                if part.rank == 0:
                    largest = np.max(everyone, axis=0).tolist()
                    rows.append([world, scheme, *largest, 8 * memory(scheme, B * world, world, DIM, TILE, 8)])
        Patient(MPI.COMM_WORLD).Allreduce(np.zeros(1), np.zeros(1))
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(rows))


def main() -> None:
    from mpi.agree import FIELDS

    rows, _ = on_ranks(max(WORLDS), __file__, "worker")
    off = [math.ceil(max(abs(100 * row[7] / row[6] - 100) for row in rows if (row[0] < 4) == few)) for few in (0, 1)]
    lines = [
        "<!-- Written by benchmarks/ring_table.py; do not edit. -->",
        "",
        "# What each scheme sends, and its peak memory",
        "",
        f"Counted at the communicator and measured with tracemalloc on real MPI ranks: b = {B} pairs a rank,",
        f"D = {DIM}, float64, tile {TILE}. All ranks send the same, and what the formula says; of memory the largest",
        "is shown. It is the peak beside the rank's own shards. Every scheme also makes two small sums: the agreement",
        f"before the first hop ({len(FIELDS)} W whole numbers) and the total (3 numbers); the softmax ring only the",
        "total.",
        "",
        f"Of `blocking` the peak is eight arrays of b D numbers, {8 * 8 * B * DIM / 1e6:.2f} MB, and the temporaries",
        f"of one tile, {40 * (TILE * TILE + TILE * DIM) / 1e6:.2f} MB: [what they are](../ring.md).",
        "`allgather` has W chunks, W gradients and two arrays more; `autograd-like` keeps chunks and W blocks of b b",
        "logits, which are much here, as b is larger than D.",
        "",
        f"The model is made for many ranks: for W = 4 and 8 it is off by at most {off[0]} %, for one and two ranks by",
        f"up to {off[1]} %.",
        "",
        "| scheme | W | messages sent | formula | bytes sent | formula, times 8 | MB at the peak | model |",
        "|---|---:|---:|---|---:|---|---:|---:|",
    ]
    for scheme, (count, numbers) in FORMULAS.items():
        for world, name, messages, size, sums, sum_size, peak, model in rows:
            if name == scheme:
                sent = f"{messages:,}" if not sums else f"{sums:,} sums"
                total = f"{size or sum_size:,}"
                held = f"{peak / 1e6:.2f} | {model / 1e6:.2f}"
                lines.append(f"| {scheme} | {world} | {sent} | {count} | {total} | {numbers} | {held} |")
    path = Path(__file__).resolve().parents[1] / "docs" / "generated" / "ring.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    worker() if len(sys.argv) > 1 else main()
