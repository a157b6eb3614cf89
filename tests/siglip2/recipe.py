"""A toy in which every term shows: sizes pairwise different, no weight zero, captions of all lengths, unequal masks."""

from typing import Any

import numpy as np

from siglip_ref.architecture.sizes import Config, Tower, config
from siglip_ref.ops.elementary import subtree
from siglip_ref.siglip2 import Batch, Choices, Target, Teacher, Weights, captioning, distillation
from siglip_ref.siglip2 import params as recipe_params

Arrays = dict[str, Any]

CFG: Config = config("tiny")  # 3 x 7 patches, width 10, two heads; vocabulary 29, nine places
TOWER = Tower(12, 2, 17, 2)
HEAD: Arrays = {"hidden": 14, "bottleneck": 6}
CHOICES = Choices(
    captioning("big_vision", TOWER, tasks=(1.0, 0.5, 0.25), rows=7, columns=5),
    distillation("dino", 11, **HEAD, teacher_temperature=0.07),
    distillation("dino", 11, **HEAD, teacher_temperature=0.05),
    shared_head=False,
    patch_centre="all",
)
WEIGHTS = Weights(1.0, 1.0, 0.25, 0.0625)
END, PAD, MASK_ID = 1, 0, CFG.vocabulary
LENGTHS = (9, 2, 5, 7, 3, 9)
PARALLEL = np.array([False, True, False, True, False, False])


def drawn(shape: tuple[int, ...], key: int, size: float = 1.0) -> Any:
    """Numbers of order `size`, the same in every run."""
    return np.asarray(size * np.random.default_rng(key).standard_normal(shape))


def full_params(choices: Choices = CHOICES, seed: int = 3) -> Arrays:
    """All parameters, none of them zero, so that every term shows."""
    params = {}
    for i, (name, shape) in enumerate(recipe_params.shapes(CFG, choices).items()):
        params[name] = drawn(shape, seed * 1000 + i, 0.4) + name.endswith(("gamma", "gain"))
    return params | {"log_scale": np.array(1.3), "bias": np.array(-0.9)}


def target(key: int, prefix: int = 0, lengths: tuple[int, ...] = LENGTHS, parallel: Any = PARALLEL) -> Target:
    """Captions that end and are padded, with repeated words; the first `prefix` places are given, not judged."""
    count = len(lengths)
    words = np.random.default_rng(key).integers(2, 12, (count, CFG.text_length))
    place, length = np.arange(CFG.text_length), np.array(lengths)[:, None]
    labels = np.where(place < length - 1, words, np.where(place == length - 1, END, PAD))
    return Target(labels, (labels != PAD) & (place >= prefix), np.asarray(parallel))


def batch(count: int = 6, views: int = 3, key: int = 40) -> Batch:
    """Images, their captions and their views; one image has no masked patch, one has one, the others more."""
    masked = np.random.default_rng(key).random((count, CFG.patches)) < 0.5
    masked[0], masked[1] = False, np.arange(CFG.patches) == 4
    lengths, none = LENGTHS[:count], np.zeros(count, bool)
    return Batch(
        images=drawn((count, *CFG.image_size, 3), key + 1),
        tokens=np.random.default_rng(key + 2).integers(0, CFG.vocabulary, (count, CFG.text_length)),
        tasks=(
            target(key + 3, 0, lengths, PARALLEL[:count]),
            target(key + 4, 2, lengths, none),
            target(key + 5, 1, lengths, none),
        ),
        crops=drawn((count, views, 8, 16, 3), key + 6),
        whole=drawn((count, *CFG.image_size, 3), key + 7),
        masked=masked,
        student_whole=drawn((count, *CFG.image_size, 3), key + 8),
    )


def perturbed(params: Arrays, choices: Choices = CHOICES) -> Teacher:
    """A teacher that is not the student, and centres that are not zero."""
    born = recipe_params.born(params, choices)
    moved = {name: value + drawn(value.shape, 90 + i, 0.05) for i, (name, value) in enumerate(born.params.items())}
    centres = {name: drawn(value.shape, 70 + i, 0.1) for i, (name, value) in enumerate(born.centres.items())}
    return Teacher(moved, centres)


def decoder_weights(biases: bool = False) -> Arrays:
    """The decoder's weights; with all the biases and betas that big_vision's decoder does not have."""
    weights = subtree(full_params(), "decoder")
    if not biases:
        return weights
    shifts = {
        name.replace("kernel", "bias").replace("gamma", "beta"): value.shape[-1:]
        for name, value in weights.items()
        if name.endswith(("kernel", "gamma"))
    }
    return {name: drawn(shape, 500 + i, 0.3) for i, (name, shape) in enumerate(shifts.items())} | weights
