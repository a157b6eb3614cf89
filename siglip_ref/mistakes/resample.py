"""How ports resize pictures and tables of positions: the weights of a resize along one axis."""

from collections.abc import Callable

import numpy as np

from siglip_ref.ops.elementary import Array


def resample_weights(
    size: int,
    to: float,
    stretch: float,
    reach: float,
    kernel: Callable[[Array], Array],
    aligned: bool = False,
    cut: bool = False,
    step: float | None = None,
) -> Array:
    """Of each old place in each new one, shape (to, size), rows summing to one.

    Parameters
    ----------
    to : new places; of a part of one the distances know, and no more: Torch, asked to scale by (size + 0.1) / size
    stretch, reach : of the kernel, and how far it reaches before it is stretched
    aligned : the first and the last places lie on one another
    step : between new places, in old ones; None: as `aligned` has it
    cut : places beyond the edge are left out, as a filter against aliasing does; else they count for the edge
    """
    if step is None:
        step = (size - 1) / max(to - 1, 1) if aligned else size / to
    places = np.arange(int(to))
    centre = places * step if aligned else (places + 0.5) * step - 0.5
    far = int(np.ceil(reach * stretch)) + 1
    old = np.floor(centre)[:, None] + np.arange(-far, far + 1)
    weight = kernel((old - centre[:, None]) / stretch)
    if cut:
        weight = weight * ((old >= 0) & (old < size))
    out = np.zeros((len(places), size))
    np.add.at(out, (places[:, None], np.clip(old, 0, size - 1).astype(int)), weight)
    return out / out.sum(-1, keepdims=True)


def tent(x: Array) -> Array:
    """The linear kernel."""
    return np.maximum(0, 1 - np.abs(x))


def cubic(a: float) -> Callable[[Array], Array]:
    """Keys' kernel: a is -0.5 in Pillow, -0.75 in torch and cv2."""

    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel
