"""The kernel that cuts an image into patches, when a file has its four axes in another order than its format."""

from dataclasses import replace
from itertools import permutations

from siglip_ref.checkpoint.formats.files import Store
from siglip_ref.checkpoint.tables.mismatch import Shape
from siglip_ref.checkpoint.tables.wrapped import Format, about
from siglip_ref.errors import UsageError

# Height before width in all of them: no library has it otherwise, and no shape could tell.
ORDERS = ["".join(order) for order in permutations("oihw") if order.index("h") < order.index("w")]


def in_order(store: Store, format_: Format, width: int | None) -> tuple[Store, list[str]]:
    """The same tensors with that kernel in its format's order, and a note if it was in another.

    width : of the image tower, as another tensor shows it; None: unknown
    """
    name, wanted = about(format_)["patch"]
    shape = store.shapes.get(name, ())
    if len(shape) != 4:
        return store, []
    possible = [order for order in ORDERS if _fits(shape, order, width)]
    if wanted in possible or not possible:
        return store, []
    if len(possible) > 1:
        raise UsageError(
            expected=f"the axes {', '.join(wanted)} of {name} (out, in, height, width)",
            got=f"shape {shape}, which may be {' or '.join(possible)}",
            cause="axes in another order, and two of them equally long",
            repair=f"transpose it to {', '.join(wanted)}",
        )
    axes = tuple(possible[0].index(axis) for axis in wanted)
    note = f"{name} has the axes {possible[0]} (o, i: out, in; h, w: height, width), read as {wanted}"
    turned = Store(
        store.tensors | {name: replace(store.tensors[name], shape=tuple(shape[axis] for axis in axes), mapped=False)},
        lambda asked: store.read(asked).transpose(axes) if asked == name else store.read(asked),
    )
    return turned, [note]


def _fits(shape: Shape, order: str, width: int | None) -> bool:
    size = dict(zip(order, shape, strict=True))
    return size["i"] == 3 and size["h"] == size["w"] and width in (None, size["o"])
