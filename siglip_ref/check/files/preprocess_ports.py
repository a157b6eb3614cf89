"""What ports of a preprocessing do otherwise, as arrays: filters that Pillow has not, pixels in another order."""

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from siglip_ref.mistakes.resample import cubic, resample_weights
from siglip_ref.use.pictures import Pixels

# name: what was done to an image (height, width, 3) that is square
ORDERS: dict[str, Callable[[Pixels], Pixels]] = {
    "rows and columns are exchanged": lambda x: x.swapaxes(0, 1),
    "flipped left to right": lambda x: x[:, ::-1],
    "upside down": lambda x: x[::-1],
    "reshaped to (3, S, S) where axes are to be moved": lambda x: x.reshape(3, *x.shape[:2]).transpose(1, 2, 0),
    "reshaped from (3, S, S) where axes are to be moved": lambda x: x.transpose(2, 0, 1).reshape(x.shape),
}


def area(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """The mean of the area under each pixel, uint8."""
    return np.asarray(image.resize(size[::-1], Image.Resampling.BOX))


def bicubic_without_antialias(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Four rows and four columns for each pixel, however far it shrinks, as torch and cv2 have it; uint8."""
    values, weights = (
        np.asarray(image, np.float64),
        partial(resample_weights, stretch=1.0, reach=2.0, kernel=cubic(-0.75)),
    )
    for axis in (0, 1):
        values = np.moveaxis(np.tensordot(weights(values.shape[axis], size[axis]), values, (1, axis)), 0, axis)
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
