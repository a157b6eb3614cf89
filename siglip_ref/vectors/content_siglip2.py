"""The vectors of SigLIP 2's recipe: data, as in `content`; every random decision is an input."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config, Tower, config
from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.siglip2 import Choices, Target, Weights, captioning, distillation, masks, teacher_of
from siglip_ref.siglip2.params import shapes
from siglip_ref.vectors.draw import integers, numbers, partners, unit_rows

CFG = config("tiny")
START_IS_PAD, END, SHORT = 0, 1, 2
LENGTHS = (9, 2, 5, 7, 3, 9)
PARALLEL = np.array([False, True, False, True, False, False])
HEAD: dict[str, Any] = {"hidden": 14, "bottleneck": 6}
CHOICES = Choices(
    captioning("big_vision", Tower(12, 2, 17, 2), tasks=(1.0, 0.5, 0.25)),
    distillation("dino", 11, **HEAD, teacher_temperature=0.0625, student_temperature=0.125),
    distillation("dino", 11, **HEAD, teacher_temperature=0.046875, student_temperature=0.125),
    shared_head=False,
    patch_centre="all",
)
ALL, CAPTIONS, LOCAL, MASK = Weights(1, 1, 0.25, 0.0625), Weights(0, 1, 0, 0), Weights(0, 0, 1, 0), Weights(0, 0, 0, 1)

# id, task, comment, arrays, flags, settings: the fields of a `content.Draft`
Fields = tuple[str, str, str, Mapping[str, Array], tuple[str, ...], Mapping[str, Any]]


def fields() -> Iterator[Fields]:
    """All of them, in their order."""
    yield from _operations()
    yield from _captions()
    yield from _objectives()
    yield from _steps()
    yield from _curations()


def record_of(cfg: Config) -> dict[str, Any]:
    """A model's fields; one that came later only where it says something: older vectors stay as they were."""
    return {name: value for name, value in asdict(cfg).items() if value or name != "bottleneck"}


def recipe_parameters(key: str) -> dict[str, Array]:
    """Every parameter of model and recipe, none of them zero: kernels near 0.3, gammas and gains near 1."""
    drawn = {}
    for name, shape in shapes(CFG, CHOICES).items():
        wide = name.endswith(("token", "position", "probe", "direction"))
        drawn[name] = numbers(f"{key} {name}", shape, 1.0 if wide else 0.5)
        if name.endswith(("gamma", "gain")):
            drawn[name] = 1 + integers(f"{key} {name}", shape, 24) / 64
    return drawn | {"log_scale": np.array(147 / 64), "bias": np.array(-1.25)}


def _operations() -> Iterator[Fields]:
    weights = subtree(recipe_parameters("recipe ops"), "local")
    labels = integers("ol", (4, 6), 5) + 5
    target = np.array([4, 3, 0, 1, 0]) / 8
    given: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
        "bottleneck": ({"tokens": labels, "table": numbers("ot", (11, 3)), "widen": numbers("ow", (3, 7))}, {}),
        "head": ({"x": numbers("oh", (4, 10), 2.0)} | prefixed("w", weights), {"gelu": "erf", "eps": 1e-12}),
        "cross_entropy": ({"scores": numbers("os", (4, 3, 5)), "target": target}, {"temperature": 0.125}),
        "token_loss": (
            {"states": numbers("ox", (4, 6, 5), 2.0), "kernel": numbers("ok", (5, 11), 2.0)}
            | {"bias": numbers("ob", (11,)), "labels": labels},
            {"smoothing": 0.0, "rows": 7, "columns": 4},
        ),
    }
    outs = {"bottleneck": (4, 6, 7), "head": (4, 11), "cross_entropy": (4, 3), "token_loss": (4, 6)}
    comments = {
        "bottleneck": "A table of rank 3.",
        "head": "Three layers, unit length, weight norm.",
        "cross_entropy": "One teacher for three views.",
        "token_loss": "24 tokens and 11 words, in chunks of 7 and 4.",
    }
    for name, (arrays, settings) in given.items():
        whole = arrays | {"d_out": numbers(f"od {name}", outs[name])}
        yield f"recipe/{name}", "operation", comments[name], whole, (), settings | {"op": name}
    arrays, _ = given["head"]
    small = {name: arrays[name] / 2**24 for name in ("w/layer2/kernel", "w/layer2/bias")}
    settings = {"gelu": "erf", "eps": 1e-12, "op": "head"}
    whole = arrays | small | {"d_out": numbers("od head", (4, 11)) / 2**24}
    yield (
        "recipe/head-short",
        "operation",
        "Length below 1e-6 before normalising.",
        whole,
        ("tiny activations",),
        settings,
    )


def _target(key: str, prefix: int, lengths: Sequence[int], parallel: Array) -> dict[str, Array]:
    """Captions that end and are padded, with repeated words; the first places are given, not judged."""
    count = len(lengths)
    words = integers(key, (count, CFG.text_length), 5) + 5 + SHORT
    place, length = np.arange(CFG.text_length), np.array(lengths)[:, None]
    labels = np.where(place < length - 1, words, np.where(place == length - 1, END, START_IS_PAD))
    return Target(labels, (labels != START_IS_PAD) & (place >= prefix), parallel)._asdict()


def _captions() -> Iterator[Fields]:
    weights = prefixed("w", subtree(recipe_parameters("captions"), "decoder"))
    base = weights | {"context": numbers("cc", (6, 5, 10), 2.0)}
    none, own, other = np.zeros(6, bool), CHOICES.captioning, ("padding", "other convention")
    cases: tuple[tuple[str, str, int, Array, dict[str, Any], tuple[str, ...]], ...] = (
        ("mixed", "Causal and parallel, lengths from 2 to 9.", 0, PARALLEL, {}, ("padding",)),
        ("causal", "Causal, with a prefix of two that does not count.", 2, none, {}, ("padding",)),
        ("parallel", "All words at once.", 0, ~none, {}, ("padding",)),
        ("smoothed", "Labels smoothed by 1/8.", 0, PARALLEL, {"smoothing": 0.125}, other),
        (
            "pad-hidden",
            "Padding is not attended to.",
            0,
            PARALLEL,
            {"pad_keys": "hidden"},
            other,
        ),
        ("mean-token", "The mean over all tokens.", 0, PARALLEL, {"mean": "token"}, other),
    )
    for name, comment, prefix, parallel, changes, flags in cases:
        arrays = base | _target("captions", prefix, LENGTHS, parallel)
        yield f"decoder/{name}", "captions", comment, arrays, flags, {"conventions": asdict(own) | changes}


def _batch(key: str, count: int, views: int, first: int = 0) -> dict[str, Array]:
    """Images, captions and views. Of the masks one is empty and one has a single patch."""
    rows = slice(first, first + count)
    masked = np.concatenate([masks(integers(f"{key} m{n}", (1, CFG.patches), 2**20), n) for n in (0, 1, 9, 14, 7, 12)])
    lengths, none = LENGTHS[first : first + count], np.zeros(count, bool)
    arrays = {"images": numbers(f"{key} i", (count, *CFG.image_size, 3)), "masked": masked[rows]}
    arrays["tokens"] = integers(f"{key} t", (count, CFG.text_length), 10**6) % CFG.vocabulary
    for i, (prefix, parallel) in enumerate(zip((0, 2, 1), (PARALLEL[rows], none, none), strict=True)):
        arrays |= prefixed(f"task{i}", _target(f"{key} {i}", prefix, lengths, parallel))
    arrays["crops"] = numbers(f"{key} c", (count, views, 8, 16, 3))
    arrays["whole"] = numbers(f"{key} w", (count, *CFG.image_size, 3))
    return arrays


def _teacher(params: Mapping[str, Array], key: str) -> dict[str, Array]:
    """Near the student; centres are not zero."""
    near = {name: value + integers(f"{key} {name}", value.shape, 8) / 128 for name, value in teacher_of(params).items()}
    centres = {name: numbers(f"{key} centre {name}", (11,), 0.25) for name in ("local", "mask")}
    return prefixed("teacher", near) | prefixed("centre", centres)


def _settings(weights: Weights, **changes: Any) -> dict[str, Any]:
    record = record_of(CFG)
    conventions = {"model": record.pop("conventions"), "recipe": asdict(CHOICES) | changes}
    return {"config": record, "conventions": conventions, "weights": weights._asdict()}


def _objectives() -> Iterator[Fields]:
    params = recipe_parameters("objective")
    arrays = prefixed("params", params) | _teacher(params, "objective") | _batch("objective", 4, 3)
    arrays["student_whole"] = numbers("objective s", (4, *CFG.image_size, 3))
    heads = {"local": asdict(CHOICES.local), "mask": asdict(CHOICES.mask)}
    sinkhorn = {name: head | {"normaliser": "sinkhorn", "rounds": 3} for name, head in heads.items()}
    other: tuple[str, ...] = ("other convention",)
    local, mask, captions = _only(arrays, "local"), _only(arrays, "mask"), _only(arrays, "decoder")
    yield "distill/local", "objective", "Three local views of four images.", local, (), _settings(LOCAL)
    yield "distill/sinkhorn", "objective", "Sinkhorn for the centre.", local, other, _settings(LOCAL, **sinkhorn)
    yield "mask/patches", "objective", "0, 1, 9 and 14 of 21 patches.", mask, (), _settings(MASK)
    padding: tuple[str, ...] = ("padding",)
    yield "objective/captions", "objective", "Three tasks through the image.", captions, padding, _settings(CAPTIONS)
    yield "objective/all", "objective", "All four losses of four images.", arrays, padding, _settings(ALL)


def _only(arrays: Mapping[str, Array], part: str) -> dict[str, Array]:
    """What one loss needs of the inputs; pooled vectors are the local loss's alone."""
    views = {"local": ("crops", "whole"), "mask": ("whole", "student_whole", "masked"), "decoder": ("images", "task")}
    owners = ("params", "teacher") if part != "decoder" else ("params",)
    needed = (*views[part], f"centre/{part}", *(f"{who}/{name}/" for who in owners for name in ("image", part)))
    chosen = {name: value for name, value in arrays.items() if name.startswith(needed)}
    return {name: value for name, value in chosen.items() if part == "local" or "/pool/" not in name}


def _steps() -> Iterator[Fields]:
    params = recipe_parameters("recipe steps")
    base = prefixed("params", params) | _teacher(params, "recipe steps")
    for name, sizes, weights, momentum, flags in (
        ("two-steps", (3,), ALL, (0.75, "cosine", 4), ()),
        ("two-ranks", (2, 1), LOCAL, (0.875, "fixed", 1), ("unequal shards",)),
    ):
        arrays, first = dict(base), {0: 0, 1: 3}
        if weights == LOCAL:  # of the parameters what it trains, and one that says in which arithmetic
            own = ("params/image", "params/local", "params/bias", "teacher/image", "teacher/local", "centre/")
            arrays = {key: value for key, value in base.items() if key.startswith(own)}
        for k in range(2):
            for rank, count in enumerate(sizes):
                drawn = _batch(f"{name} {k} {rank}", count, 2, first[rank])
                kept = ("images", "tokens", "crops", "whole")
                drawn = {key: value for key, value in drawn.items() if weights == ALL or key in kept}
                arrays |= prefixed(f"step{k}/rank{rank}", drawn)
        settings = _settings(weights) | {"ranks": len(sizes), "steps": 2, "rate": 0.0625, "momentum": list(momentum)}
        comment = f"Two steps of gradient descent, ranks of {sizes}; teacher, centres and heads after them."
        yield f"objective/{name}", "recipe_steps", comment, arrays, flags, settings


def _curations() -> Iterator[Fields]:
    arrays: dict[str, Array] = {}
    for who, scale, bias in (("learner", 147 / 64, -6.0), ("teacher", 3.0, -7.0)):
        images = unit_rows(f"curation {who}", 12, 9)
        arrays |= prefixed(who, {"image_embed": images, "text_embed": partners(images, f"curation {who}", 5)})
        arrays |= prefixed(who, {"log_scale": np.array(scale), "bias": np.array(bias)})
    uniform = (integers("gumbel", (3, 12), 127) + 128) / 256
    arrays["noise"] = np.array([[_coarse(-math.log(-math.log(u))) for u in row] for row in uniform])
    for first, divided in (("uniform", False), ("diagonal", True)):
        rule = {"first": first, "divided": divided}
        flags: tuple[str, ...] = ("other convention",) if divided else ()
        comment = f"Six of twelve pairs in three chunks; the first chunk is {first}{', scores are divided' * divided}."
        yield f"curation/{first}", "curation", comment, arrays, flags, {"count": 6, "rule": rule}


def _coarse(x: float) -> float:
    """The nearest multiple of 1/16: the same on every machine."""
    return round(16 * x) / 16
