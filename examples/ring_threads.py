"""The ring in a notebook, without MPI: four ranks as threads of this process.

python ring_threads.py
"""

import math

import numpy as np

import siglip_ref as sr
from mpi.comm import ThreadComm
from mpi.loss import ring_sigmoid_loss

rng = np.random.default_rng(0)
images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 20, 8)))
shards = np.array_split(np.arange(20), 4)


def one_rank(comm):
    """What every rank runs: its own pairs in, the global loss and its own gradients out. Under MPI it is the same."""
    mine = shards[comm.rank]
    return ring_sigmoid_loss(comm, images[mine], texts[mine], log_scale=math.log(10.0), bias=-3.0)


ranks = ThreadComm.run(4, one_rank)
whole = sr.sigmoid_loss(images, texts, math.log(10.0), -3.0)
gap = np.abs(np.concatenate([part.d_text_embed for part in ranks]) - whole.d_text_embed).max()
print(
    f"loss on four ranks {ranks[0].loss:.12f}, in one process {whole.loss:.12f}; largest gap of d_text_embed {gap:.1e}"
)
