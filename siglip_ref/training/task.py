"""What is learnt: pairs of images and texts, or classes; prepared from the settings into a gradient and a judgement."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from siglip_ref import optim
from siglip_ref.data.captioned import Data, open_data
from siglip_ref.embed import best_ops
from siglip_ref.errors import UsageError
from siglip_ref.loading import load
from siglip_ref.loss import LossAndGrads
from siglip_ref.ops.elementary import Array
from siglip_ref.params import Params, init
from siglip_ref.preprocess import PREPROCESS, Preprocess
from siglip_ref.sizes import Config, config
from siglip_ref.tokenizer import Tokenizer, byte_tokenizer
from siglip_ref.training.batches import Batches, pixels_of
from siglip_ref.training.evaluate import evaluate
from siglip_ref.training.gradient import gradient
from siglip_ref.training.parallel import Parallel, share
from siglip_ref.training.settings import Settings

Stepper = Callable[[Params, Params, optim.State, int], tuple[Params, optim.State]]


@dataclass(frozen=True)
class Task:
    """A prepared training.

    params : at the beginning; learnt : the names of those that change
    gradient : of these parameters and the batch of this number: the loss, and what this rank's pairs add
    shared : names whose gradients are complete on every rank, all others are to be summed up
    """

    cfg: Config
    params: Params
    learnt: list[str]
    batches: Batches
    gradient: Callable[[Params, int], tuple[float, Params]]
    judge: Callable[[Params], dict[str, float]]
    step: Stepper
    ops: ModuleType
    tokenizer: Tokenizer
    how: Preprocess
    total: int
    shared: tuple[str, ...] = ("log_scale", "bias")


def prepare(settings: Settings, parallel: Parallel, out: Path) -> Task:
    """Data, model, loss and optimiser."""
    data, ops = open_data(settings.data), best_ops()
    cfg, params, tokenizer, how = model_of(settings, data)
    batch = settings.batch or int(data.defaults["batch"])
    if batch < parallel.size:
        raise UsageError(
            f"--batch of at least {parallel.size}, a pair for each rank", str(batch), "too small a batch", "enlarge it"
        )
    see = pixels_of(data.train, cfg.image_size, how)
    batches = Batches(data.train, see, tokenizer, batch, settings.seed, settings.shuffled)
    mine = share(batch, parallel.rank, parallel.size)
    sizes = [part.stop - part.start for part in (share(batch, rank, parallel.size) for rank in range(parallel.size))]

    def loss(params: Params, x: Array, y: Array) -> LossAndGrads:
        parallel.at(-1, "the loss")
        if settings.loss == "softmax":
            found = parallel.softmax(x, y, params["log_scale"], sizes, ops)
        else:
            found = parallel.sigmoid(x, y, params["log_scale"], params["bias"], ops)
        parallel.at(-1, "the way back through the towers")
        return found

    def pairs(params: Params, number: int) -> tuple[float, Params]:
        parallel.at(-1, "reading its batch")
        images, tokens, _ = batches.read(number, mine)
        parallel.at(-1, "the towers")
        images = images.astype(params["bias"].dtype, copy=False)
        side = "image"
        found, grads = gradient(params, images, tokens, lambda x, y: loss(params, x, y), cfg, ops, settings.micro, side)
        return float(found.loss), grads | {"log_scale": found.d_log_scale, "bias": found.d_bias}

    fixed = ("bias",) * (settings.without_bias or settings.loss == "softmax")
    learnt = [name for name in params if name not in fixed]
    see_test = pixels_of(data.test, cfg.image_size, how)

    def judge(params: Params) -> dict[str, float]:
        return evaluate(params, data, see_test, tokenizer, cfg, ops)

    total = settings.steps or int(data.defaults["steps"])
    step = stepper(settings, data, cfg, ops, total)
    return Task(cfg, params, learnt, batches, pairs, judge, step, ops, tokenizer, how, total)


def model_of(settings: Settings, data: Data) -> tuple[Config, Params, Tokenizer, Preprocess]:
    """From a checkpoint, or fresh."""
    dtype = np.dtype(settings.dtype)
    if settings.init:
        model = load(settings.init, dtype=dtype)
        params = {name: np.array(value) for name, value in model.params.items()}
        return model.config, params, model.tokenizer(), model.preprocess
    cfg = config(settings.model) if settings.model else data.config
    params = init(cfg, settings.seed, dtype)
    changed: dict[str, Any] = {"log_scale": settings.log_scale, "bias": 0.0 if settings.without_bias else settings.bias}
    params |= {name: np.asarray(value, dtype) for name, value in changed.items() if value is not None}
    return cfg, params, byte_tokenizer(cfg.text_length), PREPROCESS["huggingface"]


def stepper(settings: Settings, data: Data, cfg: Config, ops: ModuleType, total: int) -> Stepper:
    """The optimiser with its schedule: of parameters, gradients, state and step."""
    warmup = total // 10 if settings.warmup < 0 else settings.warmup
    lr = settings.lr or data.defaults["lr"]
    if settings.optimiser == "big_vision":
        rule = optim.BigVision(lr=lr, decay=1e-4 if settings.decay is None else settings.decay, max_norm=settings.clip)
        layout = optim.big_vision_shapes(cfg)
        return lambda p, g, state, k: optim.big_vision_step(p, g, state, rule, optim.cosine(k, total, warmup), layout)
    adamw = optim.AdamW(
        lr=lr, beta2=0.95, decay=0.1 if settings.decay is None else settings.decay, max_norm=settings.clip
    )
    step = getattr(ops, "adamw_step", optim.adamw_step)
    return lambda p, g, state, k: step(p, g, state, adamw, optim.cosine(k, total, warmup))
