"""The reference's side of a model check: values, gradients, and the terms of those that are zero by structure."""

from dataclasses import dataclass, replace

import numpy as np

from siglip_ref.architecture.conventions import Conventions
from siglip_ref.architecture.sizes import Config
from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.check.model.probe import Probe
from siglip_ref.check.model.tower import values_and_grads
from siglip_ref.model.specification import SPECIFICATION
from siglip_ref.ops.attention import AttentionCache
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.record import Ops, Pair

UNIT_ROUNDOFF = {name: FORMATS[name].unit for name in ("float64", "float32", "float16", "bfloat16")}
KEY_BIAS = "/attn/k/bias"


@dataclass(frozen=True)
class Reference:
    """Loss, activations and gradients by name; key_terms: for each key bias, the sum of its terms' absolute values."""

    loss: Array
    activations: dict[str, Array]
    grads: dict[str, Array]
    key_terms: dict[str, float]


def reference(probe: Probe, cfg: Config, conventions: Conventions, precision: type) -> Reference:
    """The specification's result on a probe, in float64 or float32; key_terms in float64 only."""
    params: dict[str, Array] = {name: np.asarray(value, precision) for name, value in probe.params.items()}
    given = replace(probe, images=np.asarray(probe.images, precision)).given
    ops, sums = _recording() if precision is np.float64 else (SPECIFICATION, {})
    activations, loss, grads = values_and_grads(params, given, probe.tokens, cfg, conventions, ops)
    owners = {id(params[name]): name for name in params if name.endswith("/k/kernel")}
    key_terms = {owners[kernel].replace("kernel", "bias"): total for kernel, total in sums.items()}
    return Reference(loss, activations, grads, key_terms)


def _recording() -> tuple[Ops, dict[int, float]]:
    """The specification, and a dict that it fills on the way back: id of a key kernel -> sum of the absolute values of
    the terms of its bias's gradient (largest over the features)."""
    sums: dict[int, float] = {}
    forward, backward = SPECIFICATION.attention

    def attention_backward(d_out: Array, cache: AttentionCache) -> tuple[Array, Array, dict[str, Array]]:
        sums[id(cache.key_cache.kernel)] = _sum_of_key_terms(d_out, cache)
        grads: tuple[Array, Array, dict[str, Array]] = backward(d_out, cache)
        return grads

    return replace(SPECIFICATION, attention=Pair(forward, attention_backward)), sums


def _sum_of_key_terms(d_out: Array, cache: AttentionCache) -> float:
    """The key bias's gradient is the sum over tokens of d_key, as `attention_backward` computes it."""
    query, value, probability = cache.query, cache.value, cache.probability
    batch, heads, length, size = query.shape
    d_mixed = (d_out @ cache.out_cache.kernel.T).reshape(batch, length, heads, size).swapaxes(1, 2)
    d_scores = SPECIFICATION.softmax.backward(d_mixed @ value.swapaxes(-1, -2), probability)
    return float(np.max((np.abs(d_scores).swapaxes(-1, -2) @ np.abs(query / cache.root)).sum((0, 2))))
