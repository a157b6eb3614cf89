"""The block's two-layer perceptron."""

from collections import namedtuple
from collections.abc import Mapping

from siglip_ref.ops.elementary import Array
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.ops.record import Ops

MlpCache = namedtuple("MlpCache", "in_cache gelu_cache out_cache")


def mlp_forward(x: Array, weights: Mapping[str, Array], gelu: GeluForm, *, ops: Ops) -> tuple[Array, MlpCache]:
    """out = gelu(x @ in + bias) @ out + bias.

    Parameters
    ----------
    x : array, shape (..., C)
    weights : in/kernel (C, F), in/bias (F,), out/kernel (F, C), out/bias (C,), F the hidden width
    gelu : the form of the activation
    """
    hidden, in_cache = ops.linear.forward(x, weights["in/kernel"], weights["in/bias"])
    active, gelu_cache = ops.gelu.forward(hidden, gelu)
    out, out_cache = ops.linear.forward(active, weights["out/kernel"], weights["out/bias"])
    return out, MlpCache(in_cache, gelu_cache, out_cache)


def mlp_backward(d_out: Array, cache: MlpCache, *, ops: Ops) -> tuple[Array, dict[str, Array]]:
    """Gradients of `mlp_forward`: d_x (..., C), and a dict with the keys of `weights`."""
    in_cache, gelu_cache, out_cache = cache
    d = {}
    # out = active @ out/kernel + out/bias
    d_active, d["out/kernel"], d["out/bias"] = ops.linear.backward(d_out, out_cache)
    # active = gelu(hidden)
    d_hidden = ops.gelu.backward(d_active, gelu_cache)
    # hidden = x @ in/kernel + in/bias
    d_x, d["in/kernel"], d["in/bias"] = ops.linear.backward(d_hidden, in_cache)
    return d_x, d
