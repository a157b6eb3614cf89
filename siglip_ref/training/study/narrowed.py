"""A training whose token embedding is a narrow table and a matrix that widens it, as mSigLIP's."""

from dataclasses import replace

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.siglip2 import RECIPE
from siglip_ref.training.settings import Settings
from siglip_ref.training.task import Beside, Task

TABLE, WIDEN, FULL = "text/bottleneck/table", "text/bottleneck/kernel", "text/token"


class Narrow(Beside):
    """The model has one table, the product of the two."""

    def model(self, params: Params, cfg: Config) -> tuple[Params, Config]:
        return widened(params)[0], cfg


def narrowed(task: Task, settings: Settings) -> Task:
    """The same training with a token embedding of rank `settings.bottleneck`.

    The towers are given the product, and its gradient goes on into both factors. Their first values are not published;
    here the product has the deviation of the table that it stands for.

    Source: arXiv 2303.15343, section 4.3.
    """
    rank, full = settings.bottleneck, task.params[FULL]
    rng = np.random.default_rng([settings.seed, 6])
    params = {name: value for name, value in task.params.items() if name != FULL}
    params[TABLE] = (full.std() * rng.standard_normal((len(full), rank))).astype(full.dtype)
    params[WIDEN] = (rng.standard_normal((rank, full.shape[1])) / np.sqrt(rank)).astype(full.dtype)

    def gradient(given: Params, number: int) -> tuple[float, Params]:
        whole, cache = widened(given)
        loss, grads = task.gradient(whole, number)
        d_table, d_widen = RECIPE.bottleneck.backward(grads.pop(FULL)[None], cache)
        return loss, grads | {TABLE: d_table, WIDEN: d_widen}

    return replace(
        task,
        params=params,
        learnt=[name for name in task.learnt if name != FULL] + [TABLE, WIDEN],
        gradient=gradient,
        judge=lambda params: task.judge(widened(params)[0]),
        beside=Narrow(),
    )


def widened(params: Params) -> tuple[Params, Array]:
    """The parameters with one table in place of its two factors, and what the way back needs."""
    every = np.arange(len(params[TABLE]))[None]
    (table,), cache = RECIPE.bottleneck.forward(every, params[TABLE], params[WIDEN])
    return {**{name: value for name, value in params.items() if name not in (TABLE, WIDEN)}, FULL: table}, cache
