"""The reference's side of a model check: values, gradients, and how much rounding shows in each tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from siglip_ref import ops as specification
from siglip_ref.check.adapters import Dtype
from siglip_ref.check.model_probe import Probe
from siglip_ref.conventions import Conventions
from siglip_ref.ops.elementary import Array
from siglip_ref.sizes import Config
from siglip_ref.towers.model import forward, loss_and_grads

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-9}
# How far beyond the reference's own rounding a correct implementation may go. Wide formats cost nothing here (every
# mistake shows a hundred times over); in narrow ones each factor of two hides mistakes.
MARGIN = {"float64": 32.0, "float32": 32.0, "float16": 8.0, "bfloat16": 12.0}
LARGEST = 0.5  # no tolerance reaches 1, at which a gradient of zeros would pass
KEY_BIAS = "/attn/k/bias"


@dataclass(frozen=True)
class Reference:
    """Loss, activations and gradients by name; key_terms: for each key bias, the sum of its terms' absolute values."""

    loss: Array
    activations: dict[str, Array]
    grads: dict[str, Array]
    key_terms: dict[str, float]


def reference(probe: Probe, cfg: Config, conventions: Conventions, precision: type) -> Reference:
    """The specification's result on a probe, in float64 or float32."""
    params: dict[str, Array] = {name: np.asarray(value, precision) for name, value in probe.params.items()}
    images: Array = np.asarray(probe.images, precision)
    activations = forward(params, images, probe.tokens, cfg, conventions, activations=True).activations
    ops, sums = _recording_ops()
    loss, grads = loss_and_grads(params, images, probe.tokens, cfg, conventions, ops=ops)
    owners = {id(params[name]): name for name in params if name.endswith("/k/kernel")}
    key_terms = {owners[kernel].replace("kernel", "bias"): total for kernel, total in sums.items()}
    return Reference(loss, activations, grads, key_terms)


def amplification(exact: Mapping[str, Array], rounded: Mapping[str, Array]) -> dict[str, float]:
    """How many unit roundoffs of float32 each tensor of the float32 run is away from the float64 run, at least the
    median of all: one number that came out well by luck says nothing about other programs."""
    off = {}
    for name, value in exact.items():
        largest = np.max(np.abs(value))
        if largest != 0 and not name.endswith(KEY_BIAS):
            off[name] = float(np.max(np.abs(rounded[name] - value)) / largest / UNIT_ROUNDOFF["float32"])
    middle = float(np.median(list(off.values())))
    return {name: max(off.get(name, middle), middle) for name in exact}


def model_tolerance(amplified: float, dtype: Dtype) -> float:
    """The largest error, relative to a tensor's maximum, that a correct implementation in `dtype` may show.

    Rounding errors grow on their way through the network, by a factor that depends on the network, its weights and the
    tensor, hardly on the format. So the factor is taken from the reference itself: `amplified` is its own float32 error
    in unit roundoffs. In another format the error scales with that format's unit roundoff, times a margin for other
    orders of summation and for rounding where the reference does not round.

    Examples
    --------
    >>> model_tolerance(8.0, "float32")
    1.52587890625e-05
    """
    return min(MARGIN[dtype] * amplified * UNIT_ROUNDOFF[dtype], LARGEST)


def _recording_ops() -> tuple[ModuleType, dict[int, float]]:
    """The specification, and a dict that it fills on the way back: id of a key kernel -> sum of the absolute values of
    the terms of its bias's gradient (largest over the features)."""
    sums: dict[int, float] = {}

    def attention_backward(d_out: Array, cache: tuple[Any, ...]) -> tuple[Array, Array, dict[str, Array]]:
        kernel = cache[1][1]
        sums[id(kernel)] = _sum_of_key_terms(d_out, cache)
        return specification.attention_backward(d_out, cache)

    def map_head_backward(d_pooled: Array, cache: tuple[Any, ...]) -> tuple[Array, dict[str, Array]]:
        attn_cache, norm_cache, mlp_cache = cache
        d_normed, _ = specification.mlp_backward(d_pooled[:, None], mlp_cache)
        d_read, _, _ = specification.layer_norm_backward(d_normed, norm_cache)
        sums[id(attn_cache[1][1])] = _sum_of_key_terms(d_pooled[:, None] + d_read, attn_cache)
        return specification.map_head_backward(d_pooled, cache)

    ops = ModuleType("siglip_ref.ops, recording")
    vars(ops).update({name: getattr(specification, name) for name in specification.__all__})
    vars(ops).update(attention_backward=attention_backward, map_head_backward=map_head_backward)
    return ops, sums


def _sum_of_key_terms(d_out: Array, cache: tuple[Any, ...]) -> float:
    """The key bias's gradient is the sum over tokens of d_key, as `attention_backward` computes it."""
    _, _, _, (_, out_kernel), query, _, value, root, probability = cache
    batch, heads, length, size = query.shape
    d_mixed = (d_out @ out_kernel.T).reshape(batch, length, heads, size).swapaxes(1, 2)
    d_scores = specification.softmax_backward(d_mixed @ value.swapaxes(-1, -2), probability)
    return float(np.max((np.abs(d_scores).swapaxes(-1, -2) @ np.abs(query / root)).sum((0, 2))))
