"""SigLIP 2's objective over ranks: the sigmoid loss by the ring, everything else by one sum at the end.

The other losses are means over examples, so a rank's share of them is its share of the examples; nothing travels but
the sums of gradients and of what the teacher says. Every rank ends with the same numbers, bit for bit, as far as the
communicator's sum gives all ranks the same; and so teachers and centres stay the same without being sent.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mpi.comm import Array, Communicator
from mpi.loss import ring_sigmoid_loss
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.siglip2 import RECIPE, Batch, Choices, Objective, Recipe, Teacher, Weights

ALREADY_WHOLE = ("log_scale", "bias")  # the ring leaves these complete on every rank


def objective_over_ranks(
    comm: Communicator,
    params: Mapping[str, Array],
    shard: Batch,
    teacher: Teacher | None,
    cfg: Config,
    choices: Choices,
    weights: Weights,
    ops: Recipe = RECIPE,
) -> Objective:
    """The objective of all ranks' examples, on every rank: losses, gradients, and the sums for the centres.

    Parameters
    ----------
    comm : communicator of W ranks (mpi4py's, or `mpi.comm.ThreadComm`)
    params, teacher : the same on every rank
    shard : this rank's examples; ranks may have different numbers of them
    cfg, choices, weights, ops : as in `RECIPE.objective`; choices.captioning.mean is "example"

    Returns
    -------
    Objective, as `RECIPE.over_ranks` of all shards gives it

    Examples
    --------
    See tests/mpi/test_ring_siglip2.py: four lines around `mpi.comm.ThreadComm.run`.
    """

    def ring(x: Array, y: Array, log_scale: Array, bias: Array, **tile: Any) -> LossAndGrads:
        return ring_sigmoid_loss(comm, x, y, log_scale, bias, ops=ops)

    like = params["bias"].dtype
    total = _sum(comm, np.array([float(len(shard.images))]))[0]
    share = len(shard.images) / float(total)
    own = Weights(weights.sigmoid, *(share * weight for weight in weights[1:]))
    found = replace(ops, sigmoid_loss=ring).objective(params, shard, teacher, cfg, choices, own)
    grads = {name: value if name in ALREADY_WHOLE else _sum(comm, value) for name, value in sorted(found.grads.items())}
    terms = {
        name: value if name == "sigmoid" else _sum(comm, np.asarray(share * value, like).reshape(1))[0]
        for name, value in found.terms.items()
    }
    said = {}
    for name, (rows, count) in sorted(found.said.items()):
        said[name] = _sum(comm, rows), round(float(_sum(comm, np.array([float(count)]))[0]))
    loss = sum(getattr(weights, name) * value for name, value in terms.items())
    return Objective(loss, terms, {name: grads[name] for name in params}, said)


def _sum(comm: Communicator, array: Array) -> Array:
    """The sum over all ranks."""
    total = np.empty(np.shape(array), np.asarray(array).dtype)
    comm.Allreduce(np.ascontiguousarray(array), total)
    return total
