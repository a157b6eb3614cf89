"""Shapes drawn on demand: every training picture is new. A fifth of the combinations is never shown in training."""

import math
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from siglip_ref.architecture.conventions import PRESETS
from siglip_ref.architecture.sizes import Config, Tower
from siglip_ref.ops.elementary import Array
from siglip_ref.training.data.captioned import Captioned, Data

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 180),
    "white": (245, 245, 245),
}
SHAPES = {"circle": 0, "triangle": 3, "square": 4, "star": 10, "cross": 12}  # number of corners
SIZES = {"small": 0.12, "big": 0.2}  # radius, in widths of the picture
COLUMNS = {"left": 0.25, "centre": 0.5, "right": 0.75}
ROWS = {"top": 0.25, "middle": 0.5, "bottom": 0.75}
ALL = tuple(product(COLOURS, SHAPES, SIZES, ROWS, COLUMNS))  # 540 combinations

SIDE, FINER = 32, 4  # pixels of a picture; drawn so many times finer, then averaged
TEMPLATES = ("a {1} {0[0]} {0[1]} at the {0[3]} {0[4]}", "a {1} {0[1]} in {0[0]}, {0[3]} {0[4]}")
MODEL = Config(
    "shapes", Tower(64, 2, 256, 4), Tower(64, 2, 256, 4), (SIDE, SIDE), 8, 259, 48, conventions=PRESETS["huggingface"]
)


def shapes() -> Data:
    """Captioned shapes: a fifth of the combinations of colour, shape, size and place is held out."""
    order = np.random.default_rng(0).permutation(len(ALL))
    cut = len(ALL) // 5
    settings = {"steps": 1200, "batch": 128, "lr": 1e-3}
    return Data("shapes", _part(order[cut:]), _part(order[:cut]), MODEL, defaults=settings)


def _part(numbers: Array) -> Captioned:
    chosen = [ALL[number] for number in numbers]

    def caption(number: int, noise: Array) -> str:
        return TEMPLATES[int(noise[0] * len(TEMPLATES))].format(chosen[number], chosen[number][2])

    def picture(number: int, noise: Array) -> Array:
        colour, shape, size, row, column = chosen[number]
        return draw(colour, shape, size, row, column, 2 * np.asarray(noise) - 1)

    def captions(number: int) -> list[str]:
        return [template.format(chosen[number], chosen[number][2]) for template in TEMPLATES]

    def region(number: int, noise: Array) -> tuple[str, tuple[float, ...]]:
        colour, shape, size, row, column = chosen[number]
        return f"{size} {colour} {shape}", box(shape, size, row, column, 2 * np.asarray(noise) - 1)

    return Captioned(len(chosen), picture, caption, lambda number: " ".join(chosen[number]), None, captions, region)


def draw(colour: str, shape: str, size: str, row: str, column: str, vary: Array) -> Array:
    """One picture: uint8 (SIDE, SIDE, 3); vary: numbers from -1 to 1 that move, grow, tint it."""
    wide = SIDE * FINER
    x, y, radius = (wide * share for share in circle(size, row, column, vary))
    grey = int(70 + 40 * vary[4])
    tint = tuple(
        int(min(255, max(0, level + 20 * change))) for level, change in zip(COLOURS[colour], vary[5:8], strict=True)
    )
    image = Image.new("RGB", (wide, wide), (grey, grey, grey))
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tint)
    else:
        pen.polygon([(x + radius * a, y + radius * b) for a, b in corners(shape)], fill=tint)
    return np.asarray(image.reduce(FINER))


def circle(size: str, row: str, column: str, vary: Array) -> tuple[float, float, float]:
    """Centre and radius of what is drawn, in widths of the picture."""
    x, y = COLUMNS[column] + 0.05 * vary[2], ROWS[row] + 0.05 * vary[3]
    return x, y, SIZES[size] * (1 + 0.12 * vary[1])


def box(shape: str, size: str, row: str, column: str, vary: Array) -> tuple[float, ...]:
    """x1, y1, x2, y2 of what is drawn, in widths of the picture."""
    x, y, radius = circle(size, row, column, vary)
    reach = np.array(corners(shape) if shape != "circle" else [(-1, -1), (1, 1)])
    return tuple(float(end) for end in (*(reach.min(0) * radius + (x, y)), *(reach.max(0) * radius + (x, y))))


def corners(shape: str) -> list[tuple[float, float]]:
    """Of a shape of radius 1 round the origin, y downwards."""
    if shape == "cross":
        a, b = 1.0, 0.35
        quarter = [(-b, -a), (b, -a), (b, -b)]
        return [turned for k in range(4) for turned in (_turn(x, y, k * math.pi / 2) for x, y in quarter)]
    number = SHAPES[shape]
    start = math.pi / 4 if shape == "square" else 0.0
    lengths = [1.0, 0.45] if shape == "star" else [1.0]
    return [_turn(0, -lengths[k % len(lengths)], start + 2 * math.pi * k / number) for k in range(number)]


def _turn(x: float, y: float, angle: float) -> tuple[float, float]:
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
