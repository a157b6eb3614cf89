"""Images, captions and kernels of patches as another program might read them, tried where a tower begins."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations, product

import numpy as np

from siglip_ref.check.model.diagnosis.stages.hypotheses import Whole, changed_weights, other_inputs
from siglip_ref.check.model.diagnosis.stages.stage_search import Stage
from siglip_ref.mistakes.resample import cubic, resample_weights, tent
from siglip_ref.ops.elementary import Array

Kernel = Callable[[Array], Array]
Weights = Callable[[int, int], Array]  # of one side, from so many pixels to so many


def of_images(stage: Stage) -> Iterator[Whole]:
    """The images resized, cropped or padded in another way, or mirrored, before they are cut into patches."""
    patch, (height, width) = stage.cfg.patch, stage.cfg.image_size
    rows, columns = height // patch * patch, width // patch * patch
    was = f"the upper left {rows} x {columns} pixels"
    if (rows, columns) != (height, width):
        for words, function in resizes():
            yield other_inputs(
                f"images are resized to {rows} x {columns} {words}, before they are cut into patches",
                was, images=partial(_resized, height=rows, width=columns, weights=function),
            )  # fmt: skip
        for down, right in product(range(height - rows + 1), range(width - columns + 1)):
            if down or right:
                centre = (down, right) == ((height - rows) // 2, (width - columns) // 2)
                told = f"{'the middle' if centre else f'pixels from row {down} and column {right} on'} of each image"
                yield other_inputs(
                    f"patches are cut from {told}", was, images=partial(_rolled, rows=-down, columns=-right)
                )
    for down, right in product((-1, 0, 1), (-1, 0, 1)):
        if down or right:
            told = f"patches are cut of images that are moved by {down} rows and {right} columns, "
            yield other_inputs(
                f"{told}zeros at the rim", "no such shift", images=partial(_moved, rows=down, columns=right)
            )
            yield other_inputs(f"{told}the other end at the rim", "no such shift",
                               images=partial(_rolled, rows=down, columns=right))  # fmt: skip
    for words, colours in _COLOURS:
        yield other_inputs(f"images are {words}", "images as they are given, from -1 to 1", images=colours)


def _turned(x: Array) -> Array:
    return x.swapaxes(1, 2) if x.shape[1] == x.shape[2] else x[:, :, ::-1]


_COLOURS = (
    ("turned by 180 degrees", lambda x: x[:, ::-1, ::-1]),
    ("read with rows and columns exchanged", _turned),
    ("less their own mean, over their own deviation",
     lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)),
    ("less each channel's own mean, over its own deviation",
     lambda x: (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)),
    ("grey: the mean of their channels", lambda x: 0 * x + x.mean(-1, keepdims=True)),
    ("grey, by ITU-R 601", lambda x: 0 * x + x @ np.array([[0.299], [0.587], [0.114]])),
    ("rounded to 256 steps", lambda x: np.round((x + 1) * 127.5) / 127.5 - 1),
    ("cut off to 256 steps", lambda x: np.floor((x + 1) * 127.5) / 127.5 - 1),
    ("clipped to -1 to 1", lambda x: np.clip(x, -1, 1)),
    ("clipped to 0 to 1", lambda x: np.clip(x, 0, 1)),
    ("read with channels before rows and columns",
     lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape)),
)  # fmt: skip


def resizes() -> Iterator[tuple[str, Weights]]:
    """Every kernel, with and without antialias, at places of either step, of either first place."""

    def made(kernel: Kernel, reach: float, wide: bool, ends: bool, corner: bool) -> Weights:
        def weights(size: int, to: int) -> Array:
            step = (size - 1) / max(to - 1, 1) if ends else size / to
            return resample_weights(size, to, max(1.0, step) if wide else 1.0, reach, kernel, corner, wide, step)

        return weights

    for (kind, kernel, reach), wide, ends, corner in product(_KERNELS, (False, True), (False, True), (False, True)):
        yield (f"{kind}, {'with' if wide else 'without'} antialias{_PLACES[ends, corner]}",
               made(kernel, reach, wide, ends, corner))  # fmt: skip
    yield "to the nearest neighbour", lambda size, to: np.eye(size)[np.arange(to) * size // to]


_KERNELS = (("bilinearly", tent, 1.0), ("bicubically (a = -0.75)", cubic(-0.75), 2.0),
            ("bicubically (a = -0.5)", cubic(-0.5), 2.0))  # fmt: skip
_PLACES = {  # by whether the last places lie on one another, if the first do; and whether the first do
    (False, False): "", (True, True): ", with aligned corners",
    (False, True): ", at places size / to apart from 0 on",
    (True, False): ", at places (size - 1) / (to - 1) apart, the first at step / 2 - 1/2",
}  # fmt: skip


def _resized(x: Array, height: int, width: int, weights: Weights) -> Array:
    down, across = weights(x.shape[1], height), weights(x.shape[2], width)
    small = np.einsum("hi,wj,bijc->bhwc", down, across, x)
    return np.pad(small, ((0, 0), (0, x.shape[1] - height), (0, x.shape[2] - width), (0, 0)))


def _rolled(x: Array, rows: int, columns: int) -> Array:
    return np.roll(x, (rows, columns), (1, 2))


def _moved(x: Array, rows: int, columns: int) -> Array:
    out, (height, width) = np.zeros_like(x), x.shape[1:3]
    to = [slice(max(by, 0), size + min(by, 0)) for by, size in ((rows, height), (columns, width))]
    of = [slice(max(-by, 0), size + min(-by, 0)) for by, size in ((rows, height), (columns, width))]
    out[:, to[0], to[1]] = x[:, of[0], of[1]]
    return out


def of_texts() -> Iterator[Whole]:
    """Captions padded in front, cut, or with other ids."""
    for words, function in (
        ("padding (id 1) stands before the text", _padded_in_front),
        ("the last id of each caption is replaced by padding (1)", lambda t: np.where(_last(t), 1, t)),
        ("repeated ids in a row are read once, with padding (1) behind", _merged),
    ):
        yield other_inputs(f"of the captions, {words}", "captions as they are given", tokens=function)


def _last(tokens: Array) -> Array:
    return np.arange(tokens.shape[1]) == tokens.shape[1] - 1


def _padded_in_front(tokens: Array) -> Array:
    return np.array([np.concatenate([row[row == 1], row[row != 1]]) for row in tokens])


def _merged(tokens: Array) -> Array:
    rows = [row[np.r_[True, row[1:] != row[:-1]]] for row in tokens]
    return np.array([np.pad(row, (0, tokens.shape[1] - len(row)), constant_values=1) for row in rows])


def of_kernels(stage: Stage) -> Iterator[Whole]:
    """The numbers of a patch laid out in another order of row, column and channel than those of the kernel."""
    patch = stage.cfg.patch
    sizes = {"channel": 3, "row": patch, "column": patch}
    for of_kernel, of_pixels in product(permutations(sizes), repeat=2):
        if of_kernel != of_pixels:

            def met(x: Array, of_kernel: tuple[str, ...] = of_kernel, of_pixels: tuple[str, ...] = of_pixels) -> Array:
                laid = x.reshape(*(sizes[name] for name in _AXES), -1).transpose(*map(_AXES.index, of_kernel), 3)
                read = laid.reshape(*(sizes[name] for name in of_pixels), -1)
                return read.transpose(*map(of_pixels.index, _AXES), 3).reshape(x.shape)

            words = f"patches laid out as {', '.join(of_pixels)} that meet kernels laid out as {', '.join(of_kernel)}"
            yield changed_weights(words, "one order for the numbers of both", ["image/patch/kernel"], met)


_AXES = ("row", "column", "channel")
