"""Scikit-learn's handwritten digits: 1,797 real ones of 8 x 8 pixels, by 43 writers; every fifth is held out."""

import math

import numpy as np
from PIL import Image

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.errors import need
from siglip_ref.ops.elementary import Array
from siglip_ref.training.data.captioned import Captioned, Data

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPT = "a handwritten {}"
PROMPTS = (PROMPT, "the digit {}", "a photo of the number {}", "somebody wrote {}")
SIDE = 16  # pixels, drawn twice as large
MODEL = Config(
    "digits", Tower(64, 2, 256, 4), Tower(64, 1, 256, 4), (SIDE, SIDE), 4, 259, 32, conventions=PRESETS["huggingface"]
)


def digits() -> Data:
    """The real digits with captions; needs scikit-learn, which brings them.

    Source: Alpaydin and Kaynak 1998, UCI machine learning repository; `sklearn.datasets.load_digits`.
    """
    found = need("sklearn.datasets", "which brings the digits", "scikit-learn").load_digits()
    pictures = np.rint(found.images * (255 / 16)).astype(np.uint8)  # values are 0 to 16
    labels = np.asarray(found.target)
    held_out = np.arange(len(labels)) % 5 == 0
    return Data(
        "digits",
        _part(pictures[~held_out], labels[~held_out]),
        _part(pictures[held_out], labels[held_out]),
        MODEL,
        WORDS,
        PROMPT,
        {"steps": 600, "batch": 128, "lr": 2e-3},
    )


def _part(pictures: Array, labels: Array) -> Captioned:
    images = [Image.fromarray(picture) for picture in pictures]

    def caption(number: int, noise: Array) -> str:
        return PROMPTS[int(noise[0] * len(PROMPTS))].format(WORDS[labels[number]])

    def picture(number: int, noise: Array) -> Array:
        return varied(images[number], *(2 * np.asarray(noise[1:6]) - 1))

    def captions(number: int) -> list[str]:
        return [prompt.format(WORDS[labels[number]]) for prompt in PROMPTS]

    return Captioned(len(labels), picture, caption, "digit {}".format, [int(label) for label in labels], captions)


def varied(picture: Image.Image, turn: float, shear: float, size: float, right: float, down: float) -> Array:
    """The picture larger, turned, sheared and moved a little; each from -1 to 1, all 0: as it is."""
    half, centre = SIDE / 2, picture.width / 2
    step = centre / half * (1 + 0.12 * size)  # pixels of the original for one of the result
    cosine, sine = step * math.cos(0.2 * turn), step * math.sin(0.2 * turn)
    row_x, row_y = (cosine, sine + 0.15 * step * shear), (-sine, cosine)
    x = centre + 0.7 * right - half * sum(row_x)
    y = centre + 0.7 * down - half * sum(row_y)
    affine = (*row_x, x, *row_y, y)
    large = picture.transform((SIDE, SIDE), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(large)[:, :, None], 3, axis=2)
