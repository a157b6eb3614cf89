"""What vectors of SigLIP 2's recipe ask for; as in `tasks`, on any reference and in any arithmetic."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config, Tower, config_of
from siglip_ref.mistakes.change import Reference
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.siglip2 import (
    Batch,
    Captioning,
    Choices,
    Distillation,
    Momentum,
    Objective,
    Recipe,
    Target,
    Teacher,
    Weights,
    on,
)  # fmt: skip

Arrays = dict[str, Array]
Settings = Mapping[str, Any]

# operation: its arrays, its settings, the gradients its backward returns; as in `tasks.OPERATIONS`
OPERATIONS = {
    "bottleneck": ("tokens table widen", "", "d_table d_widen"),
    "head": ("x w", "gelu eps", "d_x d_w"),
    "cross_entropy": ("scores target", "temperature", "d_scores"),
    "token_loss": ("states kernel bias labels", "smoothing rows columns", "d_states d_kernel d_bias"),
}
# what each loss trains; everything else has gradient zero, and is not published
TRAINED = {
    "sigmoid": ("image/", "text/", "log_scale", "bias"),
    "captions": ("image/", "decoder/"),
    "local": ("image/", "local/"),
    "mask": ("image/", "mask/"),
}
PIXELS = {"sigmoid": "images", "captions": "images", "local": "crops", "mask": "student_whole"}


def recipe_of(ref: Reference) -> Recipe:
    """The recipe on the operations of a reference."""
    return ref.ops if isinstance(ref.ops, Recipe) else on(ref.ops)


def captions(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """The caption loss of one task, and all its gradients."""
    ops, choices = recipe_of(ref), captioning_of(s["conventions"])
    loss, cache = ops.caption_loss.forward(_target(a), a["context"], subtree(a, "w"), choices)
    one = np.full_like(a["context"], 1, shape=())
    d_context, d = ops.caption_loss.backward(one, cache)
    return {"loss": loss, "d_context": d_context} | prefixed("d", d)


def objective(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """The losses that have a weight, and the gradients of parameters and pixels; the sums of what the teacher says."""
    ops, (cfg, choices, weights) = recipe_of(ref), _of(s)
    trains = tuple(name for part, names in TRAINED.items() if getattr(weights, part) for name in names)
    pixels = [name for part, name in PIXELS.items() if getattr(weights, part)]
    params = subtree(a, "params")
    wrt = tuple(dict.fromkeys(pixels))
    found: Objective = ops.objective(params, _batch(a), _teacher(a), cfg, choices, weights, wrt)
    grads = {name: value for name, value in found.grads.items() if name.startswith(trains) and name in params}
    grads = {name: value for name, value in grads.items() if weights.sigmoid or weights.local or "/pool/" not in name}
    out = {"loss": found.loss} | prefixed("term", found.terms) | prefixed("d", grads)
    out |= {f"d_{name}": found.grads[name] for name in wrt}
    return out | {f"said/{name}": total for name, (total, _) in found.said.items()}


def recipe_steps(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Two steps in a row, each of one batch a rank: losses, and the teacher and the heads' parameters in the end."""
    ops, (cfg, choices, weights) = recipe_of(ref), _of(s)
    steps = [[_batch(subtree(a, f"step{k}/rank{rank}")) for rank in range(s["ranks"])] for k in range(s["steps"])]
    momentum = Momentum(*s["momentum"])
    done = ops.several_steps(subtree(a, "params"), steps, _teacher(a), cfg, choices, weights, s["rate"], momentum)
    out = {f"loss{k}": loss for k, loss in enumerate(done.losses)} | prefixed("centre", done.teacher.centres)
    ends = {name: value for name, value in done.params.items() if name.startswith(("local/", "mask/"))}
    return out | prefixed("teacher", done.teacher.params) | prefixed("params", ends)


def curation(ref: Reference, a: Arrays, s: Settings) -> Arrays:
    """Scores of all pairs, the chosen ones in their order, and the step's loss on them with its gradients."""
    ops = recipe_of(ref)
    learner, teacher = ([a[f"{who}/{name}"] for name in PAIRS] for who in ("learner", "teacher"))
    scores = ops.learnability(learner, teacher)
    plain, noise = (np.asarray(x).astype(np.float64) for x in (scores, a["noise"]))
    chosen = ops.choose(plain, s["count"], noise, **s["rule"])
    got = ops.sigmoid_loss(learner[0][chosen], learner[1][chosen], *learner[2:])
    return {"scores": scores, "chosen": chosen.astype(a["noise"].dtype)} | dict(got._asdict())


PAIRS = ("image_embed", "text_embed", "log_scale", "bias")


def captioning_of(fields: Mapping[str, Any]) -> Captioning:
    """The choices that a record spells out."""
    return Captioning(**{**fields, "decoder": Tower(**fields["decoder"]), "tasks": tuple(fields["tasks"])})


def choices_of(fields: Mapping[str, Any]) -> Choices:
    heads = {name: Distillation(**fields[name]) for name in ("local", "mask")}
    return Choices(**{**fields, **heads, "captioning": captioning_of(fields["captioning"])})


def _of(s: Settings) -> tuple[Config, Choices, Weights]:
    cfg = config_of(s["config"], s["conventions"]["model"])
    return cfg, choices_of(s["conventions"]["recipe"]), Weights(**s["weights"])


def _target(a: Arrays) -> Target:
    return Target(a["labels"], a["counted"], a["parallel"])


def _batch(a: Arrays) -> Batch:
    tasks = [_target(subtree(a, f"task{i}")) for i in range(3) if f"task{i}/labels" in a]
    views = {name: a.get(name) for name in ("crops", "whole", "masked", "student_whole")}
    return Batch(a.get("images"), a.get("tokens"), tasks, **views)


def _teacher(a: Arrays) -> Teacher:
    return Teacher(subtree(a, "teacher"), subtree(a, "centre"))
