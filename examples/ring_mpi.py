"""The ring in a script of yours. Start it with four processes, or with as many as you like:

mpiexec -n 4 python -m mpi4py ring_mpi.py

`-m mpi4py` ends all ranks when one fails. Without mpiexec it runs on one rank.
"""

import math

import numpy as np

try:
    from mpi4py import MPI
except ImportError as problem:
    raise SystemExit(
        f'{problem}: pip install ".[mpi]" in a clone brings mpi4py and an MPI; or see ring_threads.py'
    ) from None

from mpi.loss import ring_sigmoid_loss
from mpi.wrappers import Patient

comm = Patient(MPI.COMM_WORLD)  # sleeps while it waits; MPI.COMM_WORLD itself works as well
rng = np.random.default_rng(comm.rank)  # every rank has its own pairs
images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 5, 8)))

result = ring_sigmoid_loss(comm, images, texts, log_scale=math.log(10.0), bias=-3.0)
if comm.rank == 0:
    print(f"{comm.size} ranks: loss {result.loss:.12f}, d_bias {result.d_bias:.12f}")
