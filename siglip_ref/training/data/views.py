"""What one step of SigLIP 2's recipe sees: images and texts, three tasks for the decoder, cuts for student and teacher.

All of it is a function of the seed and the batch's number, as in `siglip_ref.training.data.batches`.
"""

from typing import Any

import numpy as np
from PIL import Image

from siglip_ref.architecture.sizes import Config
from siglip_ref.ops.elementary import Array
from siglip_ref.siglip2 import Batch, Target, box_numbers, masks, target_of
from siglip_ref.training.data.batches import Batches
from siglip_ref.use.preprocess import FILTERS, Preprocess, levels
from siglip_ref.use.tokenizer import Tokenizer

LOCAL, WHOLE = (0.05, 0.4), (0.4, 1.0)  # shares of the image that local crops, and the whole view, show (DINO's)
VIEWS = 8
BINS = 100  # of a box's numbers, written y1 x1 y2 x2 (PaliGemma's order)


def read(
    batches: Batches, number: int, mine: slice, cfg: Config, views: bool, tokenizer: Tokenizer, how: Preprocess,
    dtype: np.dtype[np.generic],
) -> Batch:  # fmt: skip
    """This rank's rows of a batch: images, texts, three tasks, and the cuts of the views."""
    part, table = batches.part, levels(how)
    assert part.region is not None  # `read_inputs` has seen to it
    numbers, noise = batches.rows(number)
    rng = np.random.default_rng([batches.seed, 4, number])
    parallel, cuts = rng.random(batches.size) < 0.5, rng.random((batches.size, 1 + VIEWS, 4))[mine]
    masked = masks(rng.random((batches.size, cfg.patches)), cfg.patches // 2)
    small = tuple(max(side // 2, 1) * cfg.patch for side in cfg.grid)
    pictures, captions, tasks, whole, crops = [], [], [], [], []
    for one, vary, places in zip(numbers[mine], noise[mine], cuts, strict=True):
        picture = Image.fromarray(part.picture(int(one), vary))
        caption = part.caption(int(batches.captioned_as[one]), vary)
        words, box = part.region(int(one), vary)
        where = " ".join(map(str, box_numbers(box, BINS, "y1 x1 y2 x2")))
        pictures.append(picture.resize(cfg.image_size[::-1], FILTERS[how.filter]))
        captions.append(caption)
        tasks.append([("c:", caption), ("r:", f"{words}: {where}"), ("g:", f"{where}: {words}")])
        if views:
            whole.append(cut(picture, cfg.image_size, WHOLE, places[0], how))
            crops.append([cut(picture, small, LOCAL, place, how) for place in places[1:]])

    def numbers_of(images: Any) -> Array:
        return table[np.stack([np.asarray(image) for image in images]), np.arange(3)].astype(dtype, copy=False)

    alone = np.zeros_like(parallel)
    targets = [targets_of(task, flags[mine], tokenizer) for task, flags in zip(zip(*tasks, strict=True),
               (parallel, alone, alone), strict=True)]  # fmt: skip
    if not views:
        return Batch(numbers_of(pictures), tokenizer(captions), targets)
    local = numbers_of([crop for own in crops for crop in own]).reshape(len(crops), VIEWS, *small, 3)
    return Batch(numbers_of(pictures), tokenizer(captions), targets, local, numbers_of(whole), masked[mine])


def cut(
    picture: Image.Image, size: tuple[int, ...], shares: tuple[float, float], place: Array, how: Preprocess
) -> Image.Image:
    """A random cut: share of the area, then sides from 3:4 to 4:3, then where; place: four numbers in [0, 1)."""
    area = shares[0] + (shares[1] - shares[0]) * place[0]
    ratio = (4 / 3) ** (2 * place[1] - 1)
    wide, high = min(1.0, np.sqrt(area * ratio)), min(1.0, np.sqrt(area / ratio))
    left, top = (1 - wide) * place[2], (1 - high) * place[3]
    box = left * picture.width, top * picture.height, (left + wide) * picture.width, (top + high) * picture.height
    return picture.resize((size[1], size[0]), FILTERS[how.filter], box)


def targets_of(task: Any, parallel: Array, tokenizer: Tokenizer) -> Target:
    """Of (prefix, words) of each example: the prefix is read and not judged."""
    end, pad = tokenizer.convention.eos, tokenizer.convention.pad
    rows = [target_of(tokenizer.pieces(prefix), tokenizer.pieces(words), end, pad, tokenizer.length)
            for prefix, words in task]  # fmt: skip
    labels, counted = zip(*rows, strict=True)
    return Target(np.array(labels), np.array(counted), parallel)
