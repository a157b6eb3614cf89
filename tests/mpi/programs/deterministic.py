"""On MPI ranks: the fingerprint of the deterministic loss for every way to cut the batch."""

import json
import sys
from pathlib import Path

from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from deterministic_cases import KINDS, SHARDS, bits, shards
from ring_cases import BIAS, LOG_SCALE

from mpi.loss import ring_sigmoid_loss
from mpi.schemes import REPRODUCIBLE
from mpi.wrappers import Patient
from siglip_ref.model.loss import LossAndGrads

world = MPI.COMM_WORLD
found = {}
for kind in KINDS:
    for sizes in SHARDS[world.size]:
        for scheme in REPRODUCIBLE:
            images, texts = shards(sizes, kind)
            mine = (images[world.rank], texts[world.rank], LOG_SCALE, BIAS)
            part = ring_sigmoid_loss(Patient(world), *mine, scheme=scheme, deterministic=True)
            parts = world.gather(tuple(part))
            if world.rank == 0:
                found.setdefault(kind.__name__, []).append(bits([LossAndGrads(*p) for p in parts]))
if world.rank == 0:
    print(json.dumps(found))
