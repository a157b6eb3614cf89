"""Arrays that lie one after another in one: kernels go over all of them, readers find each by its name."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from siglip_ref.ops.elementary import Array

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Where each array lies: its name, and where it begins and ends, with its shape; shapes and ends also alone."""

    places: dict[str, tuple[int, int, Shape]]
    shapes: list[Shape]
    ends: list[int]


def layout(shapes: Mapping[str, Shape]) -> Layout:
    """One after another, in this order."""
    places, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape)
        places[name] = (begin, end, shape)
    return Layout(places, list(shapes.values()), [end for _, end, _ in places.values()])


def pieces(whole: Array, laid: Layout) -> dict[str, Array]:
    """Each array by its name; none is copied."""
    return {name: whole[begin:end].reshape(shape) for name, (begin, end, shape) in laid.places.items()}
