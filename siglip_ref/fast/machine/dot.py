"""The product of two rows, inside kernels."""

from typing import Any

from siglip_ref.fast.machine.compile import SUMS, inner
from siglip_ref.fast.machine.elementary import number


@inner(fastmath=SUMS)
def dot(a: Any, b: Any) -> Any:
    """Sum of a[j] * b[j], in any order."""
    total = number(0, a[0])
    for j in range(len(a)):
        total += a[j] * b[j]
    return total
