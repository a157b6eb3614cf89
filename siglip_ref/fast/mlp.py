"""The MLP: two linear layers; the activated hidden layer is computed again in the backward, not kept."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from siglip_ref import ops as specification
from siglip_ref.fast.gelu import FORMS, d_gelu_all, gelu_forward
from siglip_ref.fast.linear import LinearCache, inputs_backward, linear_backward, linear_forward, weights_backward
from siglip_ref.fast.machine.fit import empty, gradient_of, linear_fits, same_precision
from siglip_ref.fast.machine.pool import parts_for_elements
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm


class MlpCache(NamedTuple):
    """What the backward needs."""

    in_cache: LinearCache
    hidden: Array
    form: GeluForm
    out_kernel: Array


def mlp_forward(x: Array, weights: Mapping[str, Array], gelu: GeluForm, add: Array | None = None) -> tuple[Array, Any]:
    """Twin of `siglip_ref.ops.mlp_forward`; `add`, if given, is added to the result."""
    width, mlp = x.shape[-1], len(weights["in/bias"])
    fits = same_precision(x, *weights.values()) and linear_fits(width, weights["in/kernel"], weights["in/bias"])
    if not fits or not linear_fits(mlp, weights["out/kernel"], weights["out/bias"]):
        return specification.mlp_forward(x, weights, gelu)
    hidden, in_cache = linear_forward(x, weights["in/kernel"], weights["in/bias"])
    active, _ = gelu_forward(hidden, gelu)
    out, out_cache = linear_forward(active, weights["out/kernel"], weights["out/bias"], add)
    return out, MlpCache(in_cache, hidden, gelu, out_cache.kernel)


def mlp_backward(d_out: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
    """Twin of `siglip_ref.ops.mlp_backward`."""
    if not isinstance(cache, MlpCache):
        return specification.mlp_backward(d_out, cache)
    in_cache, hidden, form, out_kernel = cache
    d_out = gradient_of(d_out, (*hidden.shape[:-1], out_kernel.shape[1]), hidden)
    d: dict[str, Array] = {}
    d_hidden = inputs_backward(d_out, hidden, out_kernel)
    active = empty(hidden.shape, hidden)
    with parts_for_elements(hidden.size) as parts:
        d_gelu_all(d_hidden.reshape(-1), hidden.reshape(-1), FORMS[form], active.reshape(-1), parts)
    d["out/kernel"], d["out/bias"] = weights_backward(d_out, active)
    d_x, d["in/kernel"], d["in/bias"] = linear_backward(d_hidden, in_cache)
    return d_x, d
