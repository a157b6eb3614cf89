"""On MPI ranks with as many examples as the arguments say: two steps of SigLIP 2's recipe, against one process."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from siglip2_cases import PARAMS, TEACHER, farthest, held, trained, trained_alone

from mpi.wrappers import Patient

world = MPI.COMM_WORLD
sizes = tuple(int(word) for word in sys.argv[1:])
done = trained(Patient(world), sizes)
numbers = hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in held(done).values())).hexdigest()
everyone = world.gather(numbers)
if world.rank == 0:
    print(
        json.dumps(
            {
                "sizes": sizes,
                "same": len(set(everyone)) == 1,
                "farthest": farthest(done, trained_alone(sizes)),
                "moved": float(np.abs(done.teacher.centres["mask"] - TEACHER.centres["mask"]).max())
                * float(np.abs(done.params["decoder/out/kernel"] - PARAMS["decoder/out/kernel"]).max()),
            }
        )
    )
