"""What surrounds the objective, in one process: ranks or micro-batches, and steps in a row with their teacher.

No message is sent here: every rank's share is computed in turn, as in `siglip_ref.model.procedures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from siglip_ref.architecture.sizes import Config
from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.siglip2.choices import Choices
from siglip_ref.siglip2.objective import Batch, Objective, Weights
from siglip_ref.siglip2.record import Recipe
from siglip_ref.siglip2.teacher import Momentum, Teacher


class Trained(NamedTuple):
    """After several steps: the loss of each, before it; parameters and teacher in the end."""

    losses: Sequence[Array]
    params: Mapping[str, Array]
    teacher: Teacher | None


def over_ranks(
    params: Mapping[str, Array], shards: Sequence[Batch], teacher: Teacher | None, cfg: Config, choices: Choices,
    weights: Weights, *, ops: Recipe,
) -> Objective:  # fmt: skip
    """The objective of all ranks' examples together: what every rank holds after the sum over ranks.

    Parameters
    ----------
    params, teacher, cfg, choices, weights : as in `objective`
    shards : one batch a rank; ranks may have different numbers of examples

    The sigmoid loss needs all pairs, see `siglip_ref.model.procedures.distributed_loss`. The other losses are means
    over examples: a rank's counts as much as it has of them. The teacher's rows are summed, and so is their number.
    """
    if choices.captioning.mean == "token":
        raise UsageError(
            expected='the mean "example"',
            got='mean="token"',
            cause="a rank does not know how many tokens count on the others",
            repair="one batch of all examples, with `objective`",
        )
    images = sum(len(shard.images) for shard in shards)
    whole = Batch(np.concatenate([s.images for s in shards]), np.concatenate([s.tokens for s in shards]), ())
    found: list[tuple[Objective, Array]] = [
        (ops.objective(params, whole, None, cfg, choices, weights._replace(captions=0.0, local=0.0, mask=0.0)), 1.0)
    ]
    rest = weights._replace(sigmoid=0.0)
    if any(rest):
        for shard in shards:
            share = np.asarray(len(shard.images)).astype(params["bias"].dtype) / images
            found.append((ops.objective(params, shard, teacher, cfg, choices, rest), share))
    loss: Array = sum(share * part.loss for part, share in found)
    grads = {name: sum(share * part.grads[name] for part, share in found) for name in params}
    terms: dict[str, Any] = {}
    for part, share in found:
        terms |= {name: terms.get(name, 0) + share * value for name, value in part.terms.items()}
    heads = {name for part, _ in found for name in part.said}
    said = {name: ops.gathered([part.said[name] for part, _ in found if name in part.said]) for name in sorted(heads)}
    return Objective(loss, terms, grads, said)


def gathered(said: Sequence[tuple[Array, int]]) -> tuple[Array, int]:
    """Sum and number of the teacher's rows of all ranks; sums, not means, are what is added.

    >>> gathered([(np.array([3.0]), 3), (np.array([1.0]), 1)])
    (array([4.]), 4)
    """
    return np.stack([total for total, _ in said]).sum(0), sum(count for _, count in said)


def several_steps(
    params: Mapping[str, Array], steps: Sequence[Sequence[Batch]], teacher: Teacher, cfg: Config, choices: Choices,
    weights: Weights, rate: float, momentum: Momentum, *, ops: Recipe,
) -> Trained:  # fmt: skip
    """params = params - rate * grads, then teacher = after_step(teacher, params): steps in a row of all ranks.

    Parameters
    ----------
    params, teacher : before the first step
    steps : of each step the batches of all ranks
    rate : of gradient descent
    momentum : the teacher's, over as many steps as it says
    """
    losses = []
    centres = {"local": choices.local.centre_momentum, "mask": choices.mask.centre_momentum}
    for k, shards in enumerate(steps):
        found = ops.over_ranks(params, shards, teacher, cfg, choices, weights)
        losses.append(found.loss)
        params = {name: value - rate * found.grads[name] for name, value in params.items()}
        # the teacher follows the student as it is now, once for each step of the optimiser
        now = ops.momentum_at(k, momentum, params["bias"])
        teacher = ops.after_step(teacher, params, found.said, now, centres)
    return Trained(losses, params, teacher)
