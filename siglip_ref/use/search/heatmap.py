"""Where on a photo a text fits: the similarity of each patch, drawn over the photo."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from siglip_ref.errors import UsageError
from siglip_ref.ops.elementary import Array
from siglip_ref.use.pictures import open_image
from siglip_ref.use.zeroshot import Model

SIDE = 1024  # pixels of the longer side at most
LEAST = 384  # and at least: small pictures are shown larger
# From little to much: dark violet, red, orange, pale yellow; ever lighter, so that it is read without colours, too.
RAMP = np.array([(14, 8, 38), (74, 18, 106), (150, 38, 105), (221, 81, 58), (251, 155, 6), (252, 247, 178)], float)
LIGHT = np.array([0.299, 0.587, 0.114])  # of red, green, blue: ITU-R BT.601


def similarity_map(model: Model, photo: str | Path | Image.Image, text: str) -> Array:
    """The cosine of each patch with a text: (rows, columns)."""
    found = model.embed_patches([photo])
    if found.skipped:
        raise UsageError("an image", f"{photo}: {found.skipped[0][1]}", "", "open it with an image viewer to see")
    similarities: Array = found.embeddings[0] @ model.embed_texts([text])[0]
    return similarities


def smooth(similarities: Array, size: tuple[int, int]) -> Array:
    """The map at another size (height, width), bicubic between the middles of the patches."""
    image = Image.fromarray(similarities.astype(np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


def peak(similarities: Array) -> tuple[float, float]:
    """Where the smoothed map is largest: shares of width and height."""
    rows, columns = (16 * side for side in similarities.shape)
    y, x = np.unravel_index(int(smooth(similarities, (rows, columns)).argmax()), (rows, columns))
    return (int(x) + 0.5) / columns, (int(y) + 0.5) / rows


def as_png(photo: str | Path | Image.Image, similarities: Array) -> bytes:
    """The photo in grey, upright and in its own shape, under the colours of the map."""
    image = open_image(photo)
    factor = min(SIDE / max(image.size), max(1.0, LEAST / max(image.size)))
    width, height = (max(1, round(side * factor)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), float) / 255
    grey = (pixels @ LIGHT)[..., None]
    low, high = float(similarities.min()), float(similarities.max())
    level = ((smooth(similarities, (height, width)) - low) / max(high - low, 1e-9)).clip(0, 1)[..., None]
    colour = _coloured(level[..., 0])
    strength = 0.3 + 0.4 * level
    shaded = colour * (0.55 + 0.45 * grey)  # the photo shows through the colours, as light and shade
    mixed = (1 - strength) * (0.4 * pixels + 0.5 * grey) + strength * shaded
    content = io.BytesIO()
    Image.fromarray((255 * mixed).clip(0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def _coloured(level: Any) -> Array:
    places = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(level, places, RAMP[:, channel]) for channel in range(3)], -1) / 255
