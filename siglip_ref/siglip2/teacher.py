"""The teacher: a running mean of the student, and the running mean of what it says, which is taken off again."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from siglip_ref.model.optim import cosine
from siglip_ref.ops.elementary import Array, number
from siglip_ref.siglip2.record import Recipe

Arrays = dict[str, Array]


class Momentum(NamedTuple):
    """How fast the teacher follows; not published.

    first : at the first step
    kind : "fixed" (SILC's), "cosine", which never reaches one (DINO's), or "cosine to one" at the last step (lightly's)
    total : steps that have a teacher
    """

    first: float
    kind: Literal["fixed", "cosine", "cosine to one"]
    total: int = 1


class Teacher(NamedTuple):
    """What a training keeps beside parameters and optimiser: the teacher's own, and a centre for each of its heads."""

    params: Mapping[str, Array]
    centres: Mapping[str, Array]


def teacher_of(params: Mapping[str, Array]) -> Arrays:
    """The teacher when it is born: what the student has of the image tower and of the heads.

    It sees no mask and reads no text: the mask token, text tower, decoder, scale and bias have no mean.

    >>> list(teacher_of({"image/position": 1, "text/token": 2, "local/layer0/bias": 3, "mask/token": 4, "bias": 5}))
    ['image/position', 'local/layer0/bias']
    """
    own = ("image/", "local/", "mask/")
    return {name: value for name, value in params.items() if name.startswith(own) and name != "mask/token"}


def ema_step(teacher: Mapping[str, Array], student: Mapping[str, Array], momentum: Array) -> Arrays:
    """teacher = momentum * teacher + (1 - momentum) * student, after the optimiser's step, once for each of them.

    Parameters
    ----------
    teacher, student : dict, name -> array; every name of the teacher is one of the student's
    momentum : 0 copies, 1 freezes

    Source: Caron et al. 2021 (DINO), section 3.1.

    Examples
    --------
    >>> ema_step({"image/position": np.ones(1)}, {"image/position": np.full(1, 3.0)}, 0.75)
    {'image/position': array([1.5])}
    """
    return {name: momentum * value + _rest(momentum, value) * student[name] for name, value in teacher.items()}


def momentum_at(step: int, momentum: Momentum, like: Array | None = None) -> Array:
    """The momentum at step 0, 1, ..., total - 1: 1 - (1 - first) (1 + cos(pi step / total)) / 2, or `first` throughout.

    Parameters
    ----------
    step : of those that have a teacher
    momentum : see there
    like : an array of balls, to have the momentum as one

    Source: DINO utils.py, cosine_scheduler.

    Examples
    --------
    >>> [round(momentum_at(5, Momentum(0.996, kind, 10)), 6) for kind in ("fixed", "cosine", "cosine to one")]
    [0.996, 0.998, 0.998347]
    """
    if momentum.kind == "fixed":
        return momentum.first
    one = number(1, np.zeros(()) if like is None or like.dtype != object else like)
    last = momentum.total - (momentum.kind == "cosine to one")
    now = one - (one - momentum.first) * cosine(step, last, 0, one)
    return now if one.dtype == object else float(now)


def centre_step(centre: Array, total: Array, count: int, momentum: float) -> Array:
    """centre = momentum * centre + (1 - momentum) * total / count, after the loss that used it.

    Parameters
    ----------
    centre : array, shape (K,), zeros at first
    total, count : sum and number of the teacher's rows, before centring, of all ranks: sums are added over the ranks,
        not means, for ranks may have different numbers of rows
    momentum : DINO's 0.9

    Source: DINO main_dino.py, update_center.

    Examples
    --------
    >>> centre_step(np.zeros(2), np.array([4.0, 8.0]), 4, 0.75)
    array([0.25, 0.5 ])
    """
    return momentum * centre + _rest(momentum, centre) * (total / count)


def after_step(
    teacher: Teacher, student: Mapping[str, Array], said: Mapping[str, tuple[Array, int]], momentum: Array,
    centre_momentum: Mapping[str, float], *, ops: Recipe,
) -> Teacher:  # fmt: skip
    """params = ema_step(params, student, momentum); centres = centre_step(centres, said): after the optimiser's step.

    Parameters
    ----------
    teacher : as the step's loss used it
    student : the parameters after the optimiser's step
    said : by head, sum and number of the teacher's rows in the step, of all ranks; see `Objective.said`
    momentum, centre_momentum : of this step
    """
    moved = {name: ops.centre_step(teacher.centres[name], *rows, centre_momentum[name]) for name, rows in said.items()}
    return Teacher(ops.ema_step(teacher.params, student, momentum), {**teacher.centres, **moved})


def _rest(share: Array, like: Array) -> Array:
    """1 - share, in float64 or balls: in float32 it would be off by 5e-5 of itself."""
    return number(1, like) - share if np.asarray(like).dtype == object else 1 - share
