"""GELU in its three forms. They differ by up to 4.7e-4 (tanh, erf) and 2e-2 (quick): a convention, not a detail."""

from collections import namedtuple
from typing import Literal

import numpy as np

from siglip_ref.ops.elementary import Array, erf, number, pi
from siglip_ref.ops.record import Ops

GeluForm = Literal["tanh", "erf", "quick"]

CUBIC = 0.044715  # Hendrycks and Gimpel 2016, section 2: this very float64 number
QUICK = 1.702  # same place

GeluCache = namedtuple("GeluCache", "x form")


def gelu_forward(x: Array, form: GeluForm, *, ops: Ops) -> tuple[Array, GeluCache]:
    """Gaussian error linear unit, any shape.

    Parameters
    ----------
    x : array
    form : "tanh" (big_vision, Hugging Face), "erf" (exact; open_clip by model name) or "quick" (OpenAI's CLIP)

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    if form == "tanh":
        out = x / 2 * (1 + np.tanh(_tanh_argument(x)))
    elif form == "erf":
        out = x / 2 * (1 + erf(x / np.sqrt(number(2, x))))
    else:
        out = x * ops.sigmoid(QUICK * x)
    return out, GeluCache(x, form)


def gelu_backward(d_out: Array, cache: GeluCache, *, ops: Ops) -> Array:
    """Gradient of `gelu_forward`: d_x, of x's shape."""
    x, form = cache
    if form == "tanh":
        # out = x / 2 * (1 + tanh(u)), u = sqrt(2/pi) (x + CUBIC x^3)
        tanh = np.tanh(_tanh_argument(x))
        d_u = x / 2 * (1 - tanh * tanh)
        return d_out * ((1 + tanh) / 2 + d_u * _root_two_over_pi(x) * (1 + CUBIC * (3 * (x * x))))
    if form == "erf":
        # out = x / 2 * (1 + erf(x / sqrt(2))), and erf'(z) = 2 / sqrt(pi) exp(-z^2)
        density = np.exp(-(x * x) / 2) / np.sqrt(2 * pi(x))
        return d_out * ((1 + erf(x / np.sqrt(number(2, x)))) / 2 + x * density)
    # out = x * sigmoid(QUICK x), and sigmoid'(z) = sigmoid(z) sigmoid(-z)
    gate = ops.sigmoid(QUICK * x)
    return d_out * (gate + QUICK * x * gate * ops.sigmoid(-QUICK * x))


def _tanh_argument(x: Array) -> Array:
    return _root_two_over_pi(x) * (x + CUBIC * (x * x * x))


def _root_two_over_pi(like: Array) -> Array:
    return np.sqrt(2 / pi(like))
