"""On ranks of several hosts. `bits`: the deterministic loss, as a fingerprint, and what was sent. `cost RATE
LATENCY`: the cost model, fitted here on messages of other sizes, beside what a loss took. Rank 0 prints JSON."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from deterministic_cases import KINDS, SHARDS, bits, shards
from ring_cases import BIAS, LOG_SCALE

from mpi.cost import fit, seconds, traffic
from mpi.loss import ring_sigmoid_loss
from mpi.schemes import REPRODUCIBLE
from mpi.wrappers import Counted, Patient, Throttled
from siglip_ref.model.loss import LossAndGrads

WORLD = MPI.COMM_WORLD
PAIRS, DIM, TILE = 768, 1000, 128  # a rank's chunk: 768,000 numbers, a size that the fit does not measure


def fingerprints():
    """For every scheme that can be reproducible, and every way to cut the batch."""
    found = []
    for kind in KINDS:
        for sizes in SHARDS[WORLD.size]:
            images, texts = shards(sizes, kind)
            for scheme in REPRODUCIBLE:
                mine = images[WORLD.rank], texts[WORLD.rank], LOG_SCALE, BIAS
                part = ring_sigmoid_loss(Patient(WORLD), *mine, scheme=scheme, deterministic=True)
                parts = WORLD.gather(tuple(part))
                if WORLD.rank == 0:
                    found.append([kind.__name__, scheme, bits([LossAndGrads(*p) for p in parts])])
    return found


def one_big_trip():
    """Messages large enough to stand out on the card: bytes that this rank sent in them."""
    counted = Counted(Patient(WORLD))
    x = np.full((PAIRS, DIM), DIM**-0.5)
    ring_sigmoid_loss(counted, x, x, LOG_SCALE, BIAS, tile=TILE)
    return counted.bytes


def cost(rate, latency):
    comm = Patient(WORLD)
    if latency:  # added to the time that the bytes take, as on a long cable
        comm = Throttled(comm, latency, 1e6 * rate)
    machine = fit(comm, "float32", TILE)
    x = np.full((PAIRS, DIM), DIM**-0.5, np.float32)
    rows = {}
    for scheme in ("blocking", "overlapped", "bidirectional", "allgather"):
        times = []
        for _ in range(9):
            WORLD.Barrier()
            start = time.perf_counter()
            ring_sigmoid_loss(comm, x, x, LOG_SCALE, BIAS, scheme=scheme, tile=TILE)
            WORLD.Barrier()
            times.append(time.perf_counter() - start)
        pairs = PAIRS * WORLD.size
        rows[scheme] = [sorted(times)[4], seconds(machine, scheme, pairs, WORLD.size, DIM, 4)]
    sent = traffic("blocking", [PAIRS] * WORLD.size, 0, DIM)
    return {"rows": rows, "alpha": machine.alpha, "rate": 1e-6 / machine.beta, "sent": 4 * sent.numbers}


if sys.argv[1] == "bits":
    report = {"fingerprints": fingerprints()}
elif sys.argv[1] == "bytes":
    report = {"sent": WORLD.gather(one_big_trip())}
else:
    report = cost(*map(float, sys.argv[2:]))
report["hosts"] = sorted(set(WORLD.gather(MPI.Get_processor_name()) or []))
if WORLD.rank == 0:
    print(json.dumps(report))
