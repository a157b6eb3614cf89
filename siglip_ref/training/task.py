"""What is learnt: pairs of images and texts, or classes; prepared from the settings into a gradient and a judgement."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from siglip_ref.architecture.params import Params
from siglip_ref.architecture.sizes import Config
from siglip_ref.checkpoint.load import Format
from siglip_ref.model import optim
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops
from siglip_ref.training.classify import classifier_gradient, head
from siglip_ref.training.data.batches import Batches, Tokenize, pixels_of
from siglip_ref.training.data.captioned import Data
from siglip_ref.training.data.inputs import Inputs
from siglip_ref.training.evaluate import evaluate, held_out_scale
from siglip_ref.training.gradient import gradient
from siglip_ref.training.locked import locked, locked_texts
from siglip_ref.training.parallel import Parallel, share
from siglip_ref.training.settings import Settings
from siglip_ref.training.study.masking import masked_loss
from siglip_ref.use.inference import best_ops

Stepper = Callable[[Params, Params, optim.State, int], tuple[Params, optim.State]]


class Beside:
    """What a recipe has beside the loss of pairs: nothing, unless it says so.

    losses : names of the losses that the record shows apart
    """

    losses: tuple[str, ...] = ()

    def enter(self, step: int, params: Params, state: optim.State, kept: Params) -> tuple[Params, optim.State, Params]:
        """All that changes where a stage begins, before this step."""
        return params, state, kept

    def record(self, step: int, loss: float, told: Params) -> list[float]:
        """The loss, and then each of `losses`."""
        return [loss]

    def follow(self, step: int, params: Params, kept: Params, told: Params) -> Params:
        """What is kept beside the parameters, after this step of theirs."""
        return kept

    def model(self, params: Params, cfg: Config) -> tuple[Params, Config]:
        """Parameters and sizes of the model that is trained, without what only its training needs."""
        return params, cfg


@dataclass(frozen=True)
class Task:
    """A prepared training.

    params : at the beginning; learnt : the names of those that change
    gradient : of these parameters, with what is kept beside them, and the batch of this number: the loss, and what
        this rank's pairs add to the gradients, and to other sums ("told/...")
    judge : see `siglip_ref.training.evaluate`; format : whose layout the model is written in
    scale : that calibrates the classifier of these parameters
    shared : names whose gradients are complete on every rank, all others are to be summed up
    """

    cfg: Config
    params: Params
    learnt: list[str]
    batches: Batches
    gradient: Callable[[Params, int], tuple[float, Params]]
    judge: Callable[[Params], dict[str, float]]
    step: Stepper
    ops: Ops
    total: int
    classes: tuple[str, ...]
    scale: Callable[[Params], float]
    format: Format = "huggingface"
    shared: tuple[str, ...] = ("log_scale", "bias")
    beside: Beside = field(default_factory=Beside)


def prepare(settings: Settings, inputs: Inputs, parallel: Parallel, out: Path, say: Callable[[str], None]) -> Task:
    """Data, model, loss and optimiser."""
    data, cfg, params, tokenizer, ops = inputs.data, inputs.cfg, inputs.params, inputs.tokenizer, best_ops()
    see, see_test = (pixels_of(part, cfg.image_size, inputs.how) for part in (data.train, data.test))
    side, text_side = "image", "text"
    tokenize: Tokenize = tokenizer
    if settings.learn == "head":
        text_side = "head"
        tokenize = locked_texts(data, tokenizer, params, cfg, ops, parallel, out / "locked-texts", say)
    if settings.freeze:
        side = "locked"
        see, see_test = (
            locked(part, see, params, cfg, ops, parallel, out / f"locked-{name}", data.digest, say)
            for name, part, see in (("train", data.train, see), ("test", data.test, see_test))
        )
    batches = Batches(data.train, see, tokenize, inputs.batch, settings.seed, settings.shuffled)
    if settings.loss == "labels":
        params |= head(len(data.classes), cfg, params["bias"].dtype)
    total = settings.steps or int(data.defaults["steps"])
    make = classes_gradient if settings.loss == "labels" else pairs_gradient
    return Task(
        cfg,
        params,
        learnt_names(settings, params),
        batches,
        make(settings, parallel, batches, cfg, ops, side, text_side),
        lambda params: evaluate(params, data, see_test, tokenize, cfg, ops, side, text_side),
        stepper(settings, data, cfg, ops, total),
        ops,
        total,
        tuple(data.classes),
        lambda params: held_out_scale(params, data, see_test, cfg, ops, side),
        inputs.format,
    )


def learnt_names(settings: Settings, params: Params) -> list[str]:
    """What changes: not a locked tower, not what the loss does not depend on."""
    fixed = ["image/"] if settings.freeze else []
    if settings.learn == "head":
        fixed += [name for name in params if name.startswith("text/") and not name.startswith("text/head/")]
    if settings.loss == "labels":
        fixed += ["text/", "log_scale", "bias"]
    elif settings.loss == "softmax" or settings.without_bias:
        fixed += ["bias"]
    return [name for name in params if not name.startswith(tuple(fixed))]


Gradient = Callable[[Params, int], tuple[float, Params]]


def pairs_gradient(
    settings: Settings, parallel: Parallel, batches: Batches, cfg: Config, ops: Ops, side: str, text_side: str
) -> Gradient:
    """Of the loss of image-text pairs."""
    shares = [share(batches.size, rank, parallel.size) for rank in range(parallel.size)]
    sizes = [part.stop - part.start for part in shares]

    def loss(params: Params, number: int, x: Array, y: Array) -> LossAndGrads:
        parallel.at(-1, "the loss")
        if settings.negatives:
            found = masked_loss(x, y, params, settings, number, ops)
        elif settings.loss == "softmax":
            found = parallel.softmax(x, y, params["log_scale"], sizes, ops)
        else:
            found = parallel.sigmoid(x, y, params["log_scale"], params["bias"], ops)
        parallel.at(-1, "the way back through the towers")
        return found

    def of_batch(params: Params, number: int) -> tuple[float, Params]:
        parallel.at(-1, "reading its batch")
        images, tokens, _ = batches.read(number, shares[parallel.rank])
        parallel.at(-1, "the towers")
        images = images.astype(params["bias"].dtype, copy=False)
        found, grads = gradient(
            params, images, tokens, partial(loss, params, number), cfg, ops, settings.micro, side, text_side
        )
        return float(found.loss), grads | {"log_scale": found.d_log_scale, "bias": found.d_bias}

    return of_batch


def classes_gradient(
    settings: Settings, parallel: Parallel, batches: Batches, cfg: Config, ops: Ops, side: str, _: str
) -> Gradient:
    """Of the classifier's cross entropy."""
    mine = share(batches.size, parallel.rank, parallel.size)

    def of_batch(params: Params, number: int) -> tuple[float, Params]:
        parallel.at(-1, "reading its batch")
        images, _, labels = batches.read(number, mine)
        parallel.at(-1, "the towers")
        images = images.astype(params["bias"].dtype, copy=False)
        loss, grads = classifier_gradient(params, images, labels, batches.size, cfg, ops, settings.micro, side)
        parallel.at(-1, "the loss")
        return float(parallel.sum(np.array([loss]))[0]), grads

    return of_batch


def stepper(settings: Settings, data: Data, cfg: Config, ops: Ops, total: int) -> Stepper:
    """The optimiser with its schedule: of parameters, gradients, state and step."""
    warmup = total // 10 if settings.warmup < 0 else settings.warmup
    towers = not settings.freeze or settings.learn == "text"
    tuned = bool(settings.init) and towers  # a trained tower learns slowly, or it forgets
    lr = settings.lr or data.defaults["lr"] * (0.1 if tuned else 1.0)
    if settings.optimiser == "big_vision":
        rule = optim.BigVision(lr=lr, decay=1e-4 if settings.decay is None else settings.decay, max_norm=settings.clip)
        layout = optim.big_vision_shapes(cfg)
        return lambda p, g, state, k: optim.big_vision_step(p, g, state, rule, optim.cosine(k, total, warmup), layout)
    adamw = optim.AdamW(
        lr=lr, beta2=settings.beta2, decay=0.1 if settings.decay is None else settings.decay, max_norm=settings.clip
    )
    step = ops.adamw_step
    if ops.compiled and settings.recipe == "siglip":  # in others a teacher may be what the parameters were
        from siglip_ref.fast.optim import adamw_in_place as step
    return lambda p, g, state, k: step(p, g, state, adamw, optim.cosine(k, total, warmup))
