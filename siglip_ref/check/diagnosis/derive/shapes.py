"""Functions of one number that a loss is made of, with their slopes: of a pair's logit, of a similarity, of a logit."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from siglip_ref.ops.elementary import Array, sigmoid, softplus

Of = Callable[..., Array]


@dataclass(frozen=True)
class Shape:
    """A function of the table below, with its parameters.

    >>> Shape("clamp", (-8.0, 8.0))(np.array([-9.0, 3.0]))
    array([-8.,  3.])
    """

    name: str
    parameters: tuple[float, ...] = ()

    def __call__(self, x: Array) -> Array:
        """Its values."""
        if self.sum:
            return sum((c * SUMMANDS[name][0](x) for name, c in self.sum), np.zeros_like(x))
        return (SLOPES.get(self.name) or FUNCTIONS[self.name][0])(x, *self.parameters)

    def slope(self, x: Array) -> Array:
        """Its derivative."""
        if self.sum:
            return sum((c * SUMMANDS[name][1](x) for name, c in self.sum), np.zeros_like(x))
        return FUNCTIONS[self.name][1](x, *self.parameters)

    @property
    def sum(self) -> tuple[tuple[str, float], ...]:
        """Of a sum of multiples of other functions, each with its factor; its name is theirs."""
        names = self.name.split(AND)
        return tuple(zip(names, self.parameters, strict=True)) if names[0] in SUMMANDS else ()


# --- of what a pair is wrong by: u = -logit for a positive pair, the logit for a negative one


def _eps(u: Array, eps: float) -> Array:
    return -np.log(sigmoid(-u) + eps)


def _eps_slope(u: Array, eps: float) -> Array:
    return sigmoid(u) * sigmoid(-u) / (sigmoid(-u) + eps)


def _cut(u: Array, limit: float) -> Array:
    return np.where(u > limit, u, softplus(u))


def _focal_slope(u: Array, power: float) -> Array:
    return power * sigmoid(u) ** power * sigmoid(-u) * softplus(u) + sigmoid(u) ** (power + 1)


def _shifted(u: Array, shift: float, power: float) -> Array:
    p = np.maximum(sigmoid(u) - shift, 0)
    return -(p**power) * np.log(1 - p)


def _shifted_slope(u: Array, shift: float, power: float) -> Array:
    p = np.maximum(sigmoid(u) - shift, 0)
    rest = -power * p ** (power - 1) * np.log(1 - p) if power else 0.0
    return np.where(p > 0, (rest + p**power / (1 - p)) * sigmoid(u) * sigmoid(-u), 0.0)


def _angle(similarity: Array) -> Array:
    return 1 - np.arccos(np.clip(similarity, -1, 1)) * 2 / np.pi


def _angle_slope(similarity: Array) -> Array:
    return 2 / np.pi / np.sqrt(np.maximum(1 - similarity * similarity, 1e-300))


def _far(similarity: Array) -> Array:
    return np.sqrt(np.maximum(2 - 2 * similarity, 0))


FUNCTIONS: dict[str, tuple[Of, Of]] = {
    "softplus": (softplus, sigmoid),
    "softplus + linear": (lambda u, e: softplus(u) - e * u, lambda u, e: sigmoid(u) - e),
    "softplus + multiple": (lambda u, e: softplus(u) + e * u, lambda u, e: sigmoid(u) + e),
    "softplus + hinge": (lambda u: softplus(u) + np.maximum(u, 0), lambda u: sigmoid(u) + (u > 0)),
    "softplus of the size": (lambda u: softplus(np.abs(u)), lambda u: np.sign(u) * sigmoid(np.abs(u))),
    "cut softplus": (_cut, lambda u, c: np.where(u > c, 1.0, sigmoid(u))),
    "softplus, finite up to": (
        lambda u, c: np.where(u > c, np.inf, softplus(u)),
        lambda u, c: np.where(u > c, np.nan, sigmoid(u)),
    ),
    "log of sigmoid + eps": (_eps, _eps_slope),
    "log of sigmoid, at least": (
        lambda u, e: -np.log(np.maximum(sigmoid(-u), e)),
        lambda u, e: np.where(sigmoid(-u) > e, sigmoid(u), 0.0),
    ),
    "focal": (lambda u, g: sigmoid(u) ** g * softplus(u), _focal_slope),
    "softplus + sigmoid": (
        lambda u, e: softplus(u) + e * sigmoid(u),
        lambda u, e: sigmoid(u) + e * sigmoid(u) * sigmoid(-u),
    ),
    "generalised cross-entropy": (
        lambda u, q: (1 - sigmoid(-u) ** q) / q,
        lambda u, q: sigmoid(-u) ** q * sigmoid(u),
    ),
    "shifted probability": (lambda u, m: _shifted(u, m, 0.0), lambda u, m: _shifted_slope(u, m, 0.0)),
    "focal of the shifted probability": (_shifted, _shifted_slope),
    "softplus squared": (lambda u: softplus(u) ** 2, lambda u: 2 * softplus(u) * sigmoid(u)),
    "hinge": (lambda u: np.maximum(u, 0), lambda u: np.where(u > 0, 1.0, 0.0)),
    "hinge squared": (lambda u: np.maximum(u, 0) ** 2, lambda u: 2 * np.maximum(u, 0)),
    "exp": (np.exp, np.exp),
    "sigmoid": (sigmoid, lambda u: sigmoid(u) * sigmoid(-u)),
    "sigmoid squared": (lambda u: sigmoid(u) ** 2, lambda u: 2 * sigmoid(u) ** 2 * sigmoid(-u)),
    "identity": (lambda u: u, np.ones_like),
    "square": (lambda u: u * u, lambda u: 2 * u),
    "absolute": (np.abs, np.sign),
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    # of a logit
    "clamp": (lambda z, a, b: np.clip(z, a, b), lambda z, a, b: np.where((z >= a) & (z <= b), 1.0, 0.0)),
    "soft cap": (lambda z, c: c * np.tanh(z / c), lambda z, c: 1 - np.tanh(z / c) ** 2),
    # of a similarity
    "cube": (lambda x: x**3, lambda x: 3 * x * x),
    "angle": (_angle, _angle_slope),
    "distance": (_far, lambda x: -1 / np.maximum(_far(x), 1e-300)),
}


def _normal(u: Array) -> Array:
    """The share of a normal distribution below u."""
    return 0.5 * np.vectorize(math.erfc, otypes=[float])(-u / np.sqrt(2))


# Of which sums are made: by how they are written, with their slopes.
AND = " & "
SUMMANDS: dict[str, tuple[Of, Of]] = {
    "softplus({u})": (softplus, sigmoid),
    "softplus(-{u})": (lambda u: softplus(-u), lambda u: -sigmoid(-u)),
    "sigmoid({u})": (sigmoid, lambda u: sigmoid(u) * sigmoid(-u)),
    "({u})": (lambda u: u, np.ones_like),
    "sigmoid({u})^2": (lambda u: sigmoid(u) ** 2, lambda u: 2 * sigmoid(u) ** 2 * sigmoid(-u)),
    "sigmoid({u})^3": (lambda u: sigmoid(u) ** 3, lambda u: 3 * sigmoid(u) ** 3 * sigmoid(-u)),
    "softplus({u})^2": (lambda u: softplus(u) ** 2, lambda u: 2 * softplus(u) * sigmoid(u)),
    "sigmoid({u}) softplus({u})": (
        lambda u: sigmoid(u) * softplus(u),
        lambda u: sigmoid(u) * sigmoid(-u) * softplus(u) + sigmoid(u) ** 2,
    ),
    "sigmoid(-{u}) softplus({u})": (
        lambda u: sigmoid(-u) * softplus(u),
        lambda u: sigmoid(u) * sigmoid(-u) * (1 - softplus(u)),
    ),
    "entropy(sigmoid({u}))": (lambda u: softplus(u) - u * sigmoid(u), lambda u: -u * sigmoid(u) * sigmoid(-u)),
    "({u}) sigmoid({u})": (lambda u: u * sigmoid(u), lambda u: sigmoid(u) * (1 + u * sigmoid(-u))),
    "({u})^2": (lambda u: u * u, lambda u: 2 * u),
    "max(0, {u})": (lambda u: np.maximum(u, 0), lambda u: np.where(u > 0, 1.0, 0.0)),
    "min(0, {u})": (lambda u: np.minimum(u, 0), lambda u: np.where(u < 0, 1.0, 0.0)),
    "elu({u})": (lambda u: np.where(u > 0, u, np.expm1(np.minimum(u, 0))), lambda u: np.exp(np.minimum(u, 0))),
    "gelu({u})": (lambda u: u * _normal(u), lambda u: _normal(u) + u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)),
    "huber(max(0, {u}))": (
        lambda u: np.where(u > 1, u - 0.5, np.maximum(u, 0) ** 2 / 2),
        lambda u: np.clip(u, 0, 1),
    ),
    "|{u}|": (np.abs, np.sign),
    "exp({u})": (np.exp, np.exp),
    "tanh({u})": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "log(1 + exp(-|{u}|))": (lambda u: softplus(-np.abs(u)), lambda u: -np.sign(u) * sigmoid(-np.abs(u))),
    **{  # in powers of another base than e
        form.format(words): (
            lambda u, k=k, a=a: softplus(k * (-np.abs(u) if a else u)),
            lambda u, k=k, a=a: k * (-np.sign(u) if a else 1) * sigmoid(k * (-np.abs(u) if a else u)),
        )
        for words, k in (("2^", np.log(2)), ("10^", np.log(10)), ("exp 2", 2.0), ("exp 1/2 ", 0.5))
        for form, a in (("log(1 + {}-|{{u}}|)", True), ("log(1 + {}({{u}}))", False))
    },
    "sqrt(sigmoid({u}))": (lambda u: np.sqrt(sigmoid(u)), lambda u: np.sqrt(sigmoid(u)) * sigmoid(-u) / 2),
}


def _unknown(u: Array) -> Array:
    return np.full_like(u, np.nan)


# As slopes alone.
_ALONE: dict[str, Of] = {
    "[{u} > 0]": lambda u: np.where(u > 0, 1.0, 0.0),
    "1": np.ones_like,
    "sigmoid({u}) sigmoid(-{u})": lambda u: sigmoid(u) * sigmoid(-u),
    "sigmoid({u})^2 sigmoid(-{u})": lambda u: sigmoid(u) ** 2 * sigmoid(-u),
    "sigmoid({u}) sigmoid(-{u})^2": lambda u: sigmoid(u) * sigmoid(-u) ** 2,
    "({u}) sigmoid({u}) sigmoid(-{u})": lambda u: u * sigmoid(u) * sigmoid(-u),
    "[{u} > 0] sigmoid({u})": lambda u: np.where(u > 0, sigmoid(u), 0.0),
    "[{u} < 0] sigmoid({u})": lambda u: np.where(u < 0, sigmoid(u), 0.0),
    "sigmoid({u}) tanh({u})": lambda u: sigmoid(u) * np.tanh(u),
}
SUMMANDS |= {name: (function, _unknown) for name, function in _ALONE.items()}
VALUES = tuple(name for name, (_, slope) in SUMMANDS.items() if slope is not _unknown)

PAIR = (
    "softplus",
    "softplus + linear",
    "softplus + multiple",
    "log of sigmoid + eps",
    "log of sigmoid, at least",
    "focal",
    "sigmoid",
    "sigmoid squared",
    "softplus + sigmoid",
    "softplus + hinge",
    "softplus of the size",
    "generalised cross-entropy",
    "softplus squared",
    "hinge",
    "hinge squared",
    "exp",
    "identity",
    "square",
    "absolute",
    "tanh",
    "shifted probability",
    "focal of the shifted probability",
)
# What gradients may take for a derivative.
SLOPES: dict[str, Of] = {f"slope of {name}": FUNCTIONS[name][1] for name in PAIR} | {
    "sigmoid to a power": lambda u, a: sigmoid(u) ** a,
    "sigmoid of the clamped": lambda u, a, b: sigmoid(np.clip(u, a, b)),
    "sigmoid, at most": lambda u, c: np.minimum(sigmoid(u), c),
    "sigmoid of the shifted": lambda u, m: sigmoid(u + m),
    "sigmoid of a multiple": lambda u, k: sigmoid(k * u),
    "sigmoid above one half": lambda u: np.where(u > 0, sigmoid(u), 0.0),
    "loss": softplus,
}


_SOME = np.array([0.3, 1.1, 2.7, 6.0])


def is_even(shape: Shape) -> bool:
    """Whether it is the same of -u."""
    return bool(np.allclose(shape(_SOME), shape(-_SOME), rtol=1e-12))


def rises(shape: Shape) -> bool:
    """Whether it is higher far up than far down: so that it stands for what a pair is wrong by."""
    return bool(shape(_SOME)[-1] >= shape(-_SOME)[-1])


SIMILARITY = ("identity", "square", "absolute", "angle", "cube", "hinge", "distance")

# Where a search for parameters begins.
STARTS: dict[str, tuple[tuple[float, ...], ...]] = {
    "sigmoid to a power": ((2.0,), (0.5,)),
    "sigmoid, at most": ((0.5,),),
    "sigmoid of the shifted": ((1.0,),),
    "sigmoid of a multiple": ((2.0,), (0.5,)),
    "softplus + linear": ((0.05,), (0.3,)),
    "softplus + multiple": ((1.0,),),
    "log of sigmoid + eps": ((1e-8,), (1e-6,), (1e-10,), (1e-12,), (1e-3,)),
    "log of sigmoid, at least": ((1e-7,), (1e-4,), (1e-12,)),
    "focal": ((2.0,), (0.5,)),
    "shifted probability": ((0.05,), (0.2,)),
    "focal of the shifted probability": ((0.05, 2.0), (0.05, 4.0), (0.05, 1.0)),
    "softplus + sigmoid": ((1.0,),),
    "generalised cross-entropy": ((0.7,),),
    "clamp": ((-8.0, 8.0), (-20.0, 20.0), (-100.0, 2.0), (-2.0, 100.0)),
    "soft cap": ((5.0,), (20.0,)),
}


# --- of the scale that is given (s), the bias (b) and the number of pairs (B): value, slope by s, slope by b

_One = Callable[[float, float, float], float]


def _none(s: float, b: float, pairs: float) -> float:
    return 0.0


def _softplus(x: float) -> float:
    return float(softplus(np.float64(x)))


def _sigmoid(x: float) -> float:
    return float(sigmoid(np.float64(x)))


NUMBERS: dict[str, tuple[_One, _One, _One]] = {
    "1": (lambda s, b, n: 1.0, _none, _none),
    "exp(s)": (lambda s, b, n: np.exp(s), lambda s, b, n: np.exp(s), _none),
    "b": (lambda s, b, n: b, _none, lambda s, b, n: 1.0),
    "s": (lambda s, b, n: s, lambda s, b, n: 1.0, _none),
    "exp(-s)": (lambda s, b, n: np.exp(-s), lambda s, b, n: -np.exp(-s), _none),
    "1/s": (lambda s, b, n: 1 / s, lambda s, b, n: -1 / s**2, _none),
    "exp(s) b": (lambda s, b, n: np.exp(s) * b, lambda s, b, n: np.exp(s) * b, lambda s, b, n: np.exp(s)),
    "s b": (lambda s, b, n: s * b, lambda s, b, n: b, lambda s, b, n: s),
    "exp(-s) b": (lambda s, b, n: np.exp(-s) * b, lambda s, b, n: -np.exp(-s) * b, lambda s, b, n: np.exp(-s)),
    "b/s": (lambda s, b, n: b / s, lambda s, b, n: -b / s**2, lambda s, b, n: 1 / s),
    "exp(b)": (lambda s, b, n: np.exp(b), _none, lambda s, b, n: np.exp(b)),
    "exp(-b)": (lambda s, b, n: np.exp(-b), _none, lambda s, b, n: -np.exp(-b)),
    "softplus(s)": (lambda s, b, n: _softplus(s), lambda s, b, n: _sigmoid(s), _none),
    "exp(2 s)": (lambda s, b, n: np.exp(2 * s), lambda s, b, n: 2 * np.exp(2 * s), _none),
    "exp(s/2)": (lambda s, b, n: np.exp(s / 2), lambda s, b, n: np.exp(s / 2) / 2, _none),
    "s^2": (lambda s, b, n: s * s, lambda s, b, n: 2 * s, _none),
    "sqrt(s)": (lambda s, b, n: np.sqrt(s), lambda s, b, n: 0.5 / np.sqrt(s), _none),
    "log(s)": (lambda s, b, n: np.log(s), lambda s, b, n: 1 / s, _none),
    "exp(|s|)": (lambda s, b, n: np.exp(abs(s)), lambda s, b, n: np.sign(s) * np.exp(abs(s)), _none),
    "2^s": (lambda s, b, n: 2.0**s, lambda s, b, n: 2.0**s * np.log(2), _none),
    "10^s": (lambda s, b, n: 10.0**s, lambda s, b, n: 10.0**s * np.log(10), _none),
    "b^2": (lambda s, b, n: b * b, _none, lambda s, b, n: 2 * b),
    "|b|": (lambda s, b, n: abs(b), _none, lambda s, b, n: np.sign(b)),
    "softplus(b)": (lambda s, b, n: _softplus(b), _none, lambda s, b, n: _sigmoid(b)),
    "softplus(-b)": (lambda s, b, n: _softplus(-b), _none, lambda s, b, n: -_sigmoid(-b)),
    "tanh(b)": (lambda s, b, n: np.tanh(b), _none, lambda s, b, n: 1 - np.tanh(b) ** 2),
    "sigmoid(s)": (lambda s, b, n: _sigmoid(s), lambda s, b, n: _sigmoid(s) * _sigmoid(-s), _none),
    "log(B)": (lambda s, b, n: np.log(n), _none, _none),
    "log(B - 1)": (lambda s, b, n: np.log(max(n - 1, 1)), _none, _none),
    "1/B": (lambda s, b, n: 1 / n, _none, _none),
    "B": (lambda s, b, n: n, _none, _none),
}


def of_number(name: str, which: int, s: float, b: float, pairs: int) -> float:
    """A function of the table (0), or its slope by the scale (1) or the bias (2); what overflows is infinite."""
    with np.errstate(all="ignore"):
        return float(NUMBERS[name][which](np.float64(s), np.float64(b), np.float64(pairs)))


@dataclass(frozen=True)
class Number:
    """A number made of scale, bias and B: a sum of multiples of the functions above, kept within two limits.

    through : what its gradient is beyond a limit: none (""), that of the number without limits ("as without"), that at
        the limit ("as at it"); or that it is a constant of the backward ("held")

    >>> Number((("exp(s)", 1.0),), high=100.0)(7.0, -3.0, 4)
    100.0
    """

    parts: tuple[tuple[str, float], ...] = ()
    low: float = -np.inf
    high: float = np.inf
    through: str = ""

    def __call__(self, s: float, b: float, pairs: int) -> float:
        """Its value."""
        with np.errstate(all="ignore"):
            return float(np.clip(self._sum(0, s, b, pairs), self.low, self.high))

    def slopes(self, s: float, b: float, pairs: int) -> tuple[float, float]:
        """By the scale that is given, and by the bias."""
        with np.errstate(all="ignore"):
            inner = self._sum(0, s, b, pairs)
            if self.through == "held" or not (self.low <= inner <= self.high or self.through):
                return 0.0, 0.0
            grows = self.through == "as at it" and all(name.startswith("exp") for name, _ in self.parts)
            times = self(s, b, pairs) / inner if grows and inner else 1.0  # of an exponential, which is its own slope
            return times * self._sum(1, s, b, pairs), times * self._sum(2, s, b, pairs)

    def _sum(self, which: int, s: float, b: float, pairs: int) -> float:
        return float(sum(factor * of_number(name, which, s, b, pairs) for name, factor in self.parts))
