"""exp, log1p, the logistic function and the normal distribution as polynomials, which become vector instructions.

exp and log1p are correct within 2 ulp (tested on dense samples, nightly on every float32); everything keeps NaN, has
the right limits at +-inf, and does not flush small results to zero. Coefficients: Remez's exchange and Chebyshev
series, in 50 digits.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from siglip_ref.fast.machine.compile import STRICT

f32 = np.float32
INLINED: Any = {"fastmath": STRICT, "forceinline": True}  # a call in a loop would keep it from being vectorised

# Adding and subtracting 1.5 * 2^(digits - 1) rounds to an integer, and leaves it in the low bits.
ROUND_32, ROUND_BITS_32 = f32(12582912.0), np.int32(0x4B400000)
ROUND_64, ROUND_BITS_64 = 6755399441055744.0, np.int64(0x4338000000000000)
# log 2 in two parts: the first has zeros at its end, so that its product with an integer below 2^11 is exact.
LOG2_HIGH_32, LOG2_LOW_32, ONE_OVER_LOG2_32 = (
    f32(0.693145751953125),
    f32(1.428606765330187e-06),
    f32(1.4426950408889634),
)
LOG2_HIGH_64, LOG2_LOW_64, ONE_OVER_LOG2_64 = 0.6931471803691238, 1.9082149292705877e-10, 1.4426950408889634
# Below these exp is zero, even rounded to the smallest denormal.
LEAST_32, LEAST_64 = f32(-110.0), -760.0


def number(value: Any, like: Any) -> Any:
    """The number in the precision of `like`, inside kernels: a bare 1 would make float32 float64."""
    raise NotImplementedError("only inside kernels")


def exp_nonpositive(x: Any) -> Any:
    """exp(x) for x <= 0, inside kernels."""
    raise NotImplementedError("only inside kernels")


def normal_tail(x: Any) -> Any:
    """The probability beyond x >= 0 under the standard normal distribution, inside kernels; |error| <= 2 eps of 1."""
    raise NotImplementedError("only inside kernels")


def log1p_unit(x: Any) -> Any:
    """log(1 + x) for x from 0 to 1, inside kernels."""
    raise NotImplementedError("only inside kernels")


def _exp32(x: Any) -> Any:
    x = LEAST_32 if x < LEAST_32 else x
    shifted = x * ONE_OVER_LOG2_32 + ROUND_32
    k = shifted - ROUND_32  # x = k log 2 + r, |r| <= log 2 / 2
    r = x - k * LOG2_HIGH_32
    r = r - k * LOG2_LOW_32
    p = f32(0.0013836811995133758)
    p = p * r + f32(0.008374824188649654)
    p = p * r + f32(0.04166822507977486)
    p = p * r + f32(0.16666419804096222)
    p = p * r + f32(0.49999991059303284)
    p = p * r + f32(1.0)
    p = p * r + f32(1.0)
    # 2^(k + 64) * 2^-64: 2^k alone could not reach the denormals
    power = np.int32((np.float32(shifted).view(np.int32) - ROUND_BITS_32 + 127 + 64) << 23).view(np.float32)
    return p * power * f32(2.0**-64)


def _exp64(x: Any) -> Any:
    x = LEAST_64 if x < LEAST_64 else x
    shifted = x * ONE_OVER_LOG2_64 + ROUND_64
    k = shifted - ROUND_64
    r = x - k * LOG2_HIGH_64
    r = r - k * LOG2_LOW_64
    p = 2.499429955511975e-08
    p = p * r + 2.763230857660223e-07
    p = p * r + 2.7557622631306277e-06
    p = p * r + 2.480148648022903e-05
    p = p * r + 0.00019841269432459649
    p = p * r + 0.0013888888951262331
    p = p * r + 0.008333333333559439
    p = p * r + 0.04166666666649262
    p = p * r + 0.1666666666666617
    p = p * r + 0.5000000000000018
    p = p * r + 1.0
    p = p * r + 1.0
    power = np.int64((np.float64(shifted).view(np.int64) - ROUND_BITS_64 + 1023 + 128) << 52).view(np.float64)
    return p * power * 2.0**-128


def _log1p32(x: Any) -> Any:
    u = x - f32(0.5)  # log1p(x) = x - x^2 p: p's error counts little, and around the middle its terms fall fast
    p = f32(0.003519049845635891)
    p = p * u + f32(-0.0070580774918198586)
    p = p * u + f32(0.01013111136853695)
    p = p * u + f32(-0.01662006601691246)
    p = p * u + f32(0.02890644781291485)
    p = p * u + f32(-0.05109187588095665)
    p = p * u + f32(0.09323196113109589)
    p = p * u + f32(-0.17922483384609222)
    p = p * u + f32(0.37813955545425415)
    return x - x * x * p


def _log1p64(x: Any) -> Any:
    u = x - 0.5
    p = 4.204347704696271e-05
    p = p * u + -8.045739586106868e-05
    p = p * u + 8.077780992714581e-05
    p = p * u + -0.00011282023871224387
    p = p * u + 0.00020059970919443252
    p = p * u + -0.000326573484726682
    p = p * u + 0.0005175508092238397
    p = p * u + -0.0008308954966356456
    p = p * u + 0.0013443929414169663
    p = p * u + -0.002187685805991187
    p = p * u + 0.003585675763081918
    p = p * u + -0.00592900968757923
    p = p * u + 0.009909900281607526
    p = p * u + -0.01678874253948643
    p = p * u + 0.02894318317501791
    p = p * u + -0.05108344610485981
    p = p * u + 0.09323036636358124
    p = p * u + -0.17922493693603886
    p = p * u + 0.37813956756734257
    return x - x * x * p


def _tail32(x: Any) -> Any:
    t = f32(4.0) / (f32(4.0) + x)  # from 1 at x = 0 to 0 at infinity, where the tail is exp(-x^2 / 2) times t
    u = t + t - f32(1.0)
    p = f32(3.9330141589744017e-05)
    p = p * u + f32(3.233141978853382e-05)
    p = p * u + f32(-0.0003909467195626348)
    p = p * u + f32(-0.000869041949044913)
    p = p * u + f32(0.0018780578393489122)
    p = p * u + f32(0.01509882416576147)
    p = p * u + f32(0.04663167893886566)
    p = p * u + f32(0.09678439050912857)
    p = p * u + f32(0.15197409689426422)
    p = p * u + f32(0.18882128596305847)
    return exp_nonpositive(f32(-0.5) * x * x) * t * p


def _tail64(x: Any) -> Any:
    t = 4.0 / (4.0 + x)
    u = t + t - 1.0
    p = -4.221644241696684e-10
    p = p * u + 3.19308785823943e-10
    p = p * u + 4.01684673933235e-09
    p = p * u + -4.892402234993512e-09
    p = p * u + -1.9695900856734096e-08
    p = p * u + 4.055790802133918e-08
    p = p * u + 6.61834320494967e-08
    p = p * u + -2.5674601753579823e-07
    p = p * u + -1.5623877693912945e-07
    p = p * u + 1.480723444385482e-06
    p = p * u + 1.7865053828168654e-07
    p = p * u + -8.78640058976113e-06
    p = p * u + -4.769190076797745e-07
    p = p * u + 5.7773784446822336e-05
    p = p * u + 3.3336052290036945e-05
    p = p * u + -0.0004077046213683964
    p = p * u + -0.0008699230891628756
    p = p * u + 0.0018850472422229046
    p = p * u + 0.01509914372259023
    p = p * u + 0.04663046448989468
    p = p * u + 0.09678435018555664
    p = p * u + 0.15197416049297324
    p = p * u + 0.18882128260393785
    return exp_nonpositive(-0.5 * x * x) * t * p


@overload(exp_nonpositive, jit_options=INLINED)
def _exp_nonpositive(x: Any) -> Any:
    return _exp32 if x == types.float32 else _exp64


@overload(log1p_unit, jit_options=INLINED)
def _log1p_unit(x: Any) -> Any:
    return _log1p32 if x == types.float32 else _log1p64


@overload(normal_tail, jit_options=INLINED)
def _normal_tail(x: Any) -> Any:
    return _tail32 if x == types.float32 else _tail64


@overload(number, jit_options=INLINED)
def _number(value: Any, like: Any) -> Any:
    def single(value: Any, like: Any) -> Any:
        return np.float32(value)

    def double(value: Any, like: Any) -> Any:
        return np.float64(value)

    return single if like == types.float32 else double


@register_jitable(**INLINED)
def normal_cdf(x: Any) -> Any:
    """The standard normal distribution function, inside kernels: (1 + erf(x / sqrt(2))) / 2, without cancellation."""
    tail = normal_tail(-x if x < 0 else x)
    return tail if x < 0 else number(1, x) - tail


@register_jitable(**INLINED)
def sigmoid(z: Any) -> Any:
    """1 / (1 + exp(-z)), inside kernels."""
    decay = exp_nonpositive(-z if z > 0 else z)
    return (number(1, z) if z > 0 else decay) / (number(1, z) + decay)


@register_jitable(**INLINED)
def softplus_and_sigmoid(z: Any) -> Any:
    """log(1 + exp(z)) and its derivative, inside kernels: they share an exponential."""
    one, zero = number(1, z), number(0, z)
    decay = exp_nonpositive(-z if z > 0 else z)
    return (z if z > 0 else zero) + log1p_unit(decay), (one if z > 0 else decay) / (one + decay)
