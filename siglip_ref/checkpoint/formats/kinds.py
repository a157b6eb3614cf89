"""What weights may be: numbers with a fractional part, each in a place of its own; and whether they are finite."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from siglip_ref.checkpoint.formats.files import FLOATS, Store, unreadable
from siglip_ref.checkpoint.tables.mismatch import NARROW
from siglip_ref.checkpoint.tables.names import Tensor
from siglip_ref.errors import few


def require_floats(store: Store, names: Iterable[str], file: Path) -> None:
    """UsageError if any of these tensors is not numbers of `FLOATS`, each in a place of its own."""
    tensors = {name: store.tensors[name] for name in sorted(names)}
    broken = {name: tensor.why_not for name, tensor in tensors.items() if tensor.why_not}
    odd = {name: tensor for name, tensor in tensors.items() if tensor.kind not in FLOATS}
    if broken:
        why = next(iter(broken.values()))
        got = f"{few(list(broken))}, {why}"
        repair = why.split(": ", 1)[1] if ": " in why else "save the weights again"
        raise unreadable(file, "plain tensors", got, "tensors that are no rows of numbers", repair)
    if odd:
        kinds = sorted({tensor.kind for tensor in odd.values()})
        cause, repair = NARROW
        if all(kind.startswith(("bool", "complex", "a record", "str", "bytes", "void", "datetime")) for kind in kinds):
            cause, repair = "no weights: no model computes with such numbers", "save the float weights"
        raise unreadable(
            file, f"tensors of {', '.join(FLOATS)}", f"{', '.join(kinds)}: {few(list(odd))}", cause, repair
        )


def is_finite(array: Tensor) -> bool:
    """Without a temporary array where nothing is wrong: a sum of squares is finite only if every number is."""
    flat = array.ravel(order="K")
    with np.errstate(all="ignore"):
        if array.dtype.itemsize >= 4 and np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(array).all())
