"""The projection head of a distillation: three layers, unit length, then the cosine with each prototype."""

from collections import namedtuple
from collections.abc import Mapping

from siglip_ref.ops.elementary import Array, prefixed, subtree
from siglip_ref.ops.gelu import GeluForm
from siglip_ref.siglip2.record import Recipe

LAYERS = ("layer0", "layer1", "layer2")

PrototypesCache = namedtuple("PrototypesCache", "z unit gain normalize")
HeadCache = namedtuple("HeadCache", "linears gelus normalize prototypes")


def prototypes_forward(z: Array, direction: Array, gain: Array, *, ops: Recipe) -> tuple[Array, PrototypesCache]:
    """out_k = z . gain_k direction_k / |direction_k|: weight norm, and no bias.

    Parameters
    ----------
    z : array, shape (..., D), unit rows
    direction : array, shape (K, D), any length
    gain : array, shape (K,)

    Returns
    -------
    out : array, shape (..., K)

    Source: Salimans and Kingma 2016, eq. 2; DINO vision_transformer.py, DINOHead.last_layer.
    """
    unit, normalize_cache = ops.normalize.forward(direction, "none", 0.0)
    return z @ (gain[:, None] * unit).T, PrototypesCache(z, unit, gain, normalize_cache)


def prototypes_backward(d_out: Array, cache: PrototypesCache, *, ops: Recipe) -> tuple[Array, Array, Array]:
    """Gradients of `prototypes_forward`: d_z (..., D), d_direction (K, D), orthogonal to direction, d_gain (K,)."""
    z, unit, gain, normalize_cache = cache
    rows, d_rows = z.reshape(-1, z.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    # out = z @ weight.T
    d_z = d_out @ (gain[:, None] * unit)
    d_weight = d_rows.T @ rows
    # weight = gain * unit
    d_gain = (d_weight * unit).sum(-1)
    d_direction = ops.normalize.backward(gain[:, None] * d_weight, normalize_cache)
    return d_z, d_direction, d_gain


def head_forward(
    x: Array, weights: Mapping[str, Array], gelu: GeluForm, eps: float, *, ops: Recipe
) -> tuple[Array, HeadCache]:
    """out = prototypes(y / max(|y|, eps)), y = layer2(gelu(layer1(gelu(layer0(x))))): no activation after the last.

    Parameters
    ----------
    x : array, shape (..., C), a pooled image or its tokens, not of unit length
    weights : layerI/kernel, layerI/bias for I = 0, 1, 2, and prototypes/direction (K, D), prototypes/gain (K,)
    gelu, eps : DINO's are "erf" and 1e-12

    Returns
    -------
    out : array, shape (..., K)

    Source: DINO vision_transformer.py, DINOHead.
    """
    linears, gelus = [], []
    for layer in LAYERS:
        x, linear_cache = ops.linear.forward(x, weights[f"{layer}/kernel"], weights[f"{layer}/bias"])
        linears.append(linear_cache)
        if layer != LAYERS[-1]:
            x, gelu_cache = ops.gelu.forward(x, gelu)
            gelus.append(gelu_cache)
    z, normalize_cache = ops.normalize.forward(x, "clamp", eps)
    own = subtree(weights, "prototypes")
    out, prototypes_cache = ops.prototypes.forward(z, own["direction"], own["gain"])
    return out, HeadCache(linears, gelus, normalize_cache, prototypes_cache)


def head_backward(d_out: Array, cache: HeadCache, *, ops: Recipe) -> tuple[Array, dict[str, Array]]:
    """Gradients of `head_forward`: d_x (..., C), a dict with the keys of `weights`."""
    # out = prototypes(z)
    d_z, d_direction, d_gain = ops.prototypes.backward(d_out, cache.prototypes)
    d = prefixed("prototypes", {"direction": d_direction, "gain": d_gain})
    # z = y / max(|y|, eps)
    d_x = ops.normalize.backward(d_z, cache.normalize)
    for i, layer in reversed(list(enumerate(LAYERS))):
        if layer != LAYERS[-1]:
            # x = gelu(y)
            d_x = ops.gelu.backward(d_x, cache.gelus[i])
        # y = x @ kernel + bias
        d_x, d[f"{layer}/kernel"], d[f"{layer}/bias"] = ops.linear.backward(d_x, cache.linears[i])
    return d_x, d
