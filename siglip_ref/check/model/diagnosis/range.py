"""The same function with factors below the normal range of float16: tells it apart from tf32, whose bits are as many.

A norm's output is multiplied by 2^-16, and the kernels that read it by 2^16; queries and values by 2^-16, keys and the
output projection by 2^16. Powers of two are exact, and they cancel: what a model of float32 or float64 computes is the
same to the last bit. Numbers of 2^-16 have fewer bits in float16, and 2^16 is beyond it; tf32 and bfloat16 have the
range of float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from siglip_ref.check.model.diagnosis.products import ALL, LINEAR
from siglip_ref.check.model.diagnosis.rounding import Rounding
from siglip_ref.ops.elementary import Array

SHIFT = 16  # of the exponent
# what the last part of a block's parameter is multiplied by, as a power of 2^SHIFT
_POWERS = {
    "norm1/gamma": -1,
    "norm1/beta": -1,
    "attn/q/kernel": 0,  # what it reads is small, what it gives as well
    "attn/q/bias": -1,
    "attn/k/kernel": 2,
    "attn/k/bias": 1,
    "attn/v/kernel": 0,
    "attn/v/bias": -1,
    "attn/out/kernel": 1,
    "norm2/gamma": -1,
    "norm2/beta": -1,
    "mlp/in/kernel": 1,
}
# of the pooling head, which reads the tower's last norm, and whose probe stays as it is
_OF_POOL = {
    "image/norm/gamma": -1,
    "image/norm/beta": -1,
    "image/pool/attn/q/kernel": -1,
    "image/pool/attn/q/bias": -1,
    "image/pool/attn/k/kernel": 2,
    "image/pool/attn/k/bias": 1,
    "image/pool/attn/v/kernel": 0,
    "image/pool/attn/v/bias": -1,
    "image/pool/attn/out/kernel": 1,
    "image/pool/norm/gamma": -1,
    "image/pool/norm/beta": -1,
    "image/pool/mlp/in/kernel": 1,
}
# products and sides whose numbers leave the range of float16
_BOTH = ("inputs", "inputs and output")
MOVED = {
    *(("scores", side) for side in (*_BOTH, "first factor", "second factor")),
    ("kernel", "inputs and output"),
    *(("mix", side) for side in (*_BOTH, "second factor", "output")),
    *((name, side) for name in ("q", "k", "v") for side in (*_BOTH, "output")),
    *((name, "first factor") for name in ("k", "v", "out", "mlp/in")),
    *((name, side) for name in ("out", "mlp/in", LINEAR, ALL) for side in _BOTH),
}


def shifted(params: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters of the same function, with small and large factors."""
    return {name: _times(value, _power(name)) for name, value in params.items()}


def _power(name: str) -> int:
    rest = name.partition("/")[2]
    block, _, part = rest.partition("/")
    if block.startswith("block"):
        return _POWERS.get(part, 0)
    return _OF_POOL.get(name, 0)


def _times(value: Array, power: int) -> Array:
    return np.ldexp(value, SHIFT * power) if power else value


def can_be_shifted(params: Mapping[str, Array]) -> bool:
    """Whether nothing of it comes near the ends of float32's range."""
    moved = [value for name, value in params.items() if _power(name)]
    sizes = [np.abs(value[value != 0]) for value in map(np.asarray, moved)]
    return all(size.size == 0 or (size.min() >= 2.0**-90 and size.max() <= 2.0**60) for size in sizes)


def told_apart(
    rounded: Mapping[str, Sequence[Rounding]], usual: Mapping[str, Array], moved: Mapping[str, Array]
) -> dict[str, Sequence[Rounding]]:
    """The roundings, each to float16 or to tf32 where only these two are left and the range tells.

    Parameters
    ----------
    rounded : by stage, in the order of the network
    usual, moved : the model's activations on its usual weights, and on those of `shifted`
    """
    told: dict[str, Sequence[Rounding]] = {}
    found: dict[tuple[str, str], str] = {}  # later stages start from what the first one spoiled: they follow it
    for stage, alike in rounded.items():
        narrowed = []
        for one in alike:
            key = one.product, one.side
            if {"float16", "tf32"} <= set(one.formats) and key in MOVED and key not in found:
                tower = stage.split("/")[0]
                first = not any(name.startswith(tower) for name in told)
                found |= {key: "float16" if _differs(stage, usual, moved, one) else "tf32"} if first else {}
            formats = (found[key],) if key in found and found[key] in one.formats else one.formats
            narrowed.append(replace(one, formats=formats))
        told[stage] = narrowed
    return told


def _differs(stage: str, usual: Mapping[str, Array], moved: Mapping[str, Array], one: Rounding) -> bool:
    """Whether other numbers are rounded, by a good part of what rounding does at all."""
    with np.errstate(all="ignore"):
        by = np.sqrt(np.mean(np.square(np.asarray(moved[stage], np.float64)[:1] - usual[stage][:1])))
    return not by <= one.off / 4
