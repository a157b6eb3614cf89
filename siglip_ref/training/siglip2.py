"""SigLIP 2's recipe as a training: captions from the start, a teacher from 80 %, another size from 95 % of the steps.

What the paper does not publish is chosen in one place, `choices_for`; see `siglip_ref.siglip2.TABLE`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from siglip_ref.architecture import params as architecture
from siglip_ref.architecture.params import Params
from siglip_ref.architecture.sizes import Config
from siglip_ref.model.optim import State
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.siglip2 import (
    Choices,
    Momentum,
    Recipe,
    Teacher,
    Weights,
    captioning,
    distillation,
    halved,
    on,
    weights_of,
)
from siglip_ref.siglip2 import params as recipe
from siglip_ref.siglip2.objective import Stage
from siglip_ref.training.data.batches import Batches, pixels_of
from siglip_ref.training.data.inputs import Inputs
from siglip_ref.training.data.views import BINS, read
from siglip_ref.training.evaluate import evaluate
from siglip_ref.training.parallel import Parallel, share
from siglip_ref.training.settings import Settings
from siglip_ref.training.task import Beside, Task, stepper
from siglip_ref.use.inference import best_ops
from siglip_ref.use.preprocess import Preprocess
from siglip_ref.use.tokenizer import Tokenizer

SIZE = "B"  # whose weights the losses have
TEACHER = 0.99  # its momentum, fixed as SILC's: it has a fifth of a short training
NOTE = (
    f"not published, chosen here: decoder of CapPa's code, DINO's heads and temperatures, momentum {TEACHER:g} fixed, "
    f"boxes as y1 x1 y2 x2 of {BINS}, local crops of half the size, centre of all patches"
)


def choices_for(cfg: Config) -> Choices:
    """What is not published, for a model of this size."""
    width = cfg.image.width
    head = distillation("dino", prototypes=2 * width, hidden=2 * width, bottleneck=max(width // 2, 2))
    return Choices(captioning("big_vision", halved(cfg.text, "up")), head, head, shared_head=False, patch_centre="all")


def stage_at(step: int, total: int) -> Stage:
    """Of a step, from 0; in whole numbers, for 0.8 times the steps is no exact product.

    >>> [stage_at(step, 20) for step in (15, 16, 18, 19)]
    ['start', 'distilled', 'distilled', 'resolutions']
    """
    return "resolutions" if 20 * step >= 19 * total else "distilled" if 10 * step >= 8 * total else "start"


class Stages(Beside):
    """What changes where stages begin, and what follows each step: teacher and centres."""

    losses = Weights._fields

    def __init__(self, cfg: Config, resolution: int, total: int, ops: Recipe) -> None:
        self.cfg, self.total, self.ops, self.choices = cfg, total, ops, choices_for(cfg)
        self.last = replace(cfg, image_size=(resolution, resolution)) if resolution else cfg
        self.momentum = Momentum(TEACHER, "fixed")

    def size_of(self, params: Params) -> Config:
        """The sizes of a model with these positions."""
        return self.cfg if len(params["image/position"]) == self.cfg.patches else self.last

    def enter(self, step: int, params: Params, state: State, kept: Params) -> tuple[Params, State, Params]:
        """At 80 % the teacher is the student as it is; at 95 % both resize their positions, whose means start anew."""
        stage = stage_at(step, self.total)
        if stage != "start" and not kept:
            born = recipe.born(params, self.choices)
            kept = prefixed("teacher", born.params) | prefixed("centre", born.centres)
        if stage == "resolutions" and self.size_of(params) != self.last:
            params, kept = ({name: self._resized(name, value) for name, value in own.items()} for own in (params, kept))
            slots = {name: value for name, value in state.slots.items() if not name.endswith("/image/position")}
            state = state._replace(slots=slots)
        return params, state, kept

    def _resized(self, name: str, value: Array) -> Array:
        if not name.endswith("image/position"):
            return value
        table = value.reshape(*self.cfg.grid, -1)
        return np.asarray(self.ops.position_resize.forward(table, *self.last.grid)[0])

    def record(self, step: int, loss: float, told: Params) -> list[float]:
        weights = weights_of(SIZE, stage_at(step, self.total))
        found = [float(told[name]) if name in told else np.nan for name in self.losses]
        return [float(sum(w * x for w, x in zip(weights, found, strict=True) if w)), *found]

    def follow(self, step: int, params: Params, kept: Params, told: Params) -> Params:
        if not kept:
            return kept
        said = {name: (told[f"said/{name}"], float(told[f"rows/{name}"])) for name in subtree(kept, "centre")}
        rates = {"local": self.choices.local.centre_momentum, "mask": self.choices.mask.centre_momentum}
        now = self.ops.momentum_at(step, self.momentum)
        found = self.ops.after_step(teacher_in(kept), params, said, now, rates)
        return prefixed("teacher", found.params) | prefixed("centre", found.centres)

    def model(self, params: Params, cfg: Config) -> tuple[Params, Config]:
        cfg = self.size_of(params)
        return {name: params[name] for name in architecture.shapes(cfg)}, cfg


def teacher_in(kept: Params) -> Teacher:
    """Of what is kept beside the parameters."""
    return Teacher(subtree(kept, "teacher"), subtree(kept, "centre"))


def prepare_siglip2(
    settings: Settings, inputs: Inputs, parallel: Parallel, out: Path, say: Callable[[str], None]
) -> Task:
    """Data, model, losses and optimiser; see `siglip_ref.training.task.prepare`."""
    data, cfg, ops = inputs.data, inputs.cfg, best_ops()
    total = settings.steps or int(data.defaults["steps"])
    stages = Stages(cfg, settings.resolution, total, on(ops))
    fresh = recipe.init(cfg, stages.choices, settings.seed, np.dtype(settings.dtype))
    batches = Batches(data.train, pixels_of(data.train, cfg.image_size, inputs.how), inputs.tokenizer, inputs.batch,
                      settings.seed, settings.shuffled)  # fmt: skip

    def judge(params: Params) -> dict[str, float]:
        now = stages.size_of(params)
        see = pixels_of(data.test, now.image_size, inputs.how)
        return evaluate(params, data, see, inputs.tokenizer, now, ops, "image")

    say(f"note: {NOTE}")
    gradient = gradient_of(settings, parallel, batches, stages, inputs.tokenizer, inputs.how)
    return Task(
        cfg, fresh | inputs.params, list(fresh), batches, gradient, judge, stepper(settings, data, cfg, ops, total),
        ops, total, (), lambda params: 1.0, shared=("log_scale", "bias", "told/sigmoid"), beside=stages,
    )  # fmt: skip


def gradient_of(
    settings: Settings, parallel: Parallel, batches: Batches, stages: Stages, tokenizer: Tokenizer, how: Preprocess
) -> Callable[[Params, int], tuple[float, Params]]:
    """Of the whole objective; the sigmoid loss is that of all ranks' pairs, of the others this rank has its share."""
    mine = share(batches.size, parallel.rank, parallel.size)
    part = (mine.stop - mine.start) / batches.size

    def ring(x: Array, y: Array, log_scale: Array, bias: Array, **tile: Any) -> LossAndGrads:
        parallel.at(-1, "the loss")
        found = parallel.sigmoid(x, y, log_scale, bias, stages.ops)
        parallel.at(-1, "the way back through the towers")
        return found

    ops = replace(stages.ops, sigmoid_loss=ring)

    def of_batch(given: Params, number: int) -> tuple[float, Params]:
        parallel.at(-1, "reading its batch")
        stage, cfg = stage_at(number // settings.accumulate, stages.total), stages.size_of(given)
        batch = read(batches, number, mine, cfg, stage != "start", tokenizer, how, given["bias"].dtype)
        parallel.at(-1, "the towers")
        sigmoid, *rest = weights_of(SIZE, stage)
        weights = Weights(sigmoid, *(part * weight for weight in rest))
        teacher, params = teacher_in(given), {name: given[name] for name in recipe.shapes(cfg, stages.choices)}
        found = ops.objective(params, batch, teacher, cfg, stages.choices, weights)
        idle = () if found.said else ("local/", "mask/")
        told = {name: value if name == "sigmoid" else part * value for name, value in found.terms.items()}
        for name, (rows, count) in found.said.items():
            told |= {f"said/{name}": rows, f"rows/{name}": np.asarray(count, rows.dtype)}
        grads = {name: value for name, value in found.grads.items() if not name.startswith(idle)}
        return float(found.loss), grads | prefixed("told", told)

    return of_batch
