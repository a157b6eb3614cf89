"""Small pictures made from whole numbers: what the recorded arrays were made of, and what breaks readers."""

import numpy as np
from PIL import Image

SIZES = ((37, 53), (61, 29), (12, 90), (200, 131), (16, 16), (7, 5))


def picture(height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): fast and slow waves, and a checkerboard."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    red, green = (x * x * 7 + y * 13) % 256, (x * 31 + y * y * 3) % 256
    blue = ((x // 5 + y // 3) % 2) * 200 + (x * y) % 56
    return np.stack([red, green, blue], -1).astype(np.uint8)


def image(height: int, width: int) -> Image.Image:
    """The same as a Pillow image."""
    return Image.fromarray(picture(height, width))
