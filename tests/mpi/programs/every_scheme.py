"""On 8 MPI ranks: every world size up to 8, every scheme, against one process; counts against formulas; memory."""

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from ring_cases import BIAS, LOG_SCALE, batch, errors, one_process

from mpi.agree import FIELDS
from mpi.cost import Traffic, traffic
from mpi.loss import ring_sigmoid_loss
from mpi.schemes import SCHEMES
from mpi.softmax import ring_softmax_loss
from mpi.wrappers import Counted, Patient
from siglip_ref.model.loss import LossAndGrads

DIM, TILE = 6, 2
SHAPES = {
    "equal": lambda world: [3] * world,
    "unequal": lambda world: [(5 * rank + 2) % 7 for rank in range(world)],
    "some empty": lambda world: [4 if rank % 2 == world % 2 else 0 for rank in range(world)] if world > 1 else [4],
}


def result_of(comm, scheme, sizes):
    """Errors of all ranks against one process, and whether counts equal the formula."""
    images, texts = batch(sizes, DIM, seed=comm.size)
    counted = Counted(comm)
    x, y = images[comm.rank], texts[comm.rank]
    if scheme == "softmax ring":
        ring_softmax_loss(counted, x, y, LOG_SCALE, sizes)
        own_sums, part = 2 * 8, None
    else:
        part = ring_sigmoid_loss(counted, x, y, LOG_SCALE, BIAS, scheme=scheme, tile=TILE)
        own_sums = 3 * 8 + comm.size * len(FIELDS) * 8
    sums = 1 if scheme == "softmax ring" else 2  # the agreement and the total
    numbers, rest = divmod(counted.bytes, 8)
    seen = Traffic(counted.messages, numbers, counted.sums - sums, (counted.sum_bytes - own_sums) // 8)
    exact = rest == 0 and seen == traffic(scheme, sizes, comm.rank, DIM)
    return part, exact


def largest_errors(parts, sizes, world):
    images, texts = batch(sizes, DIM, seed=world)
    return max(errors(parts, one_process(images, texts)).values())


def peak_memory(comm, scheme, pairs, dim, tile):
    """Bytes at the peak, beside the inputs; the largest of all ranks."""
    rng = np.random.default_rng(comm.rank)
    x, y = (rng.normal(size=(pairs, dim)) for _ in range(2))
    tracemalloc.start()
    if scheme == "softmax ring":
        ring_softmax_loss(comm, x, y, LOG_SCALE, [pairs] * comm.size)
    else:
        ring_sigmoid_loss(comm, x, y, LOG_SCALE, BIAS, scheme=scheme, tile=tile)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    everyone = np.zeros(comm.size)
    comm.Allreduce(np.where(np.arange(comm.size) == comm.rank, float(peak), 0.0), everyone)
    return int(everyone.max())


def main():
    table = []
    for world in range(1, 9):
        part_of = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank < world)
        if MPI.COMM_WORLD.rank < world:
            comm = Patient(part_of)
            for shape, sizes_of in SHAPES.items():
                sizes = sizes_of(world)
                for scheme in [*SCHEMES, "softmax ring"]:
                    part, exact = result_of(comm, scheme, sizes)
                    parts = part_of.gather(None if part is None else tuple(part))
                    exacts = part_of.gather(exact)
                    if comm.rank == 0:
                        worst = 0.0 if part is None else largest_errors([LossAndGrads(*p) for p in parts], sizes, world)
                        table.append(
                            {"world": world, "shape": shape, "scheme": scheme, "error": worst, "exact": exacts}
                        )
        Patient(MPI.COMM_WORLD).Allreduce(np.zeros(1), np.zeros(1))
    memory = {}
    for world in (2, 4, 8):
        part_of = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank < world)
        if MPI.COMM_WORLD.rank < world:
            for scheme in [*SCHEMES, "softmax ring"]:
                peak = peak_memory(Patient(part_of), scheme, 96, 32, 32)
                memory.setdefault(scheme, []).append(peak)
        Patient(MPI.COMM_WORLD).Allreduce(np.zeros(1), np.zeros(1))
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps({"library": MPI.Get_library_version().split()[0], "runs": table, "memory": memory}))


main()
