"""Functions of one number that a loss is made of, with their slopes: of a pair's logit, of a similarity, of a logit."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from siglip_ref.check.diagnosis.functions.written import Of, size, slope, written
from siglip_ref.ops.elementary import Array, sigmoid, softplus
from siglip_ref.report.words import WORDS


@dataclass(frozen=True)
class Shape:
    """A function, by the name that reports write a formula for, or by formulas of SUMMANDS; with its parameters.

    >>> Shape("clamp", (-8.0, 8.0))(np.array([-9.0, 3.0]))
    array([-8.,  3.])
    """

    name: str
    parameters: tuple[float, ...] = ()

    def __call__(self, x: Array) -> Array:
        """Its values."""
        if self.sum:
            return sum((c * SUMMANDS[name](x) for name, c in self.sum), np.zeros_like(x))
        return function(self.name)(x, *self.parameters)

    def slope(self, x: Array) -> Array:
        """Its derivative."""
        return slope(self, 0, x) if self.sum else slope(function(self.name), 0, x, *self.parameters)

    @property
    def sum(self) -> tuple[tuple[str, float], ...]:
        """Of a sum of multiples of other functions, each with its factor; its name is theirs."""
        names = self.name.split(AND)
        return tuple(zip(names, self.parameters, strict=True)) if names[0] in SUMMANDS else ()


@lru_cache(maxsize=256)
def function(name: str) -> Of:
    """Of u, what a pair is wrong by (-logit for a positive pair, the logit for a negative one), of a logit, or of a
    similarity."""
    if name == "softplus":
        return softplus
    if name == "softplus, finite up to":
        return lambda u, c: np.where(u.real > c, np.inf * u, softplus(u))
    if name == "softplus, straight above":
        return lambda u, c: np.where(u.real > c, u, softplus(u))
    if name == "softplus, 0 below minus":  # softplus(-u) + u, straight above
        return lambda u, c: np.where(u.real < -c, 0.0, softplus(u))
    if name.startswith("slope of ") and name not in WORDS["functions"]:
        of = function(name.removeprefix("slope of "))
        return lambda u, *parameters: slope(of, 0, u, *parameters)
    words = WORDS["functions"].get(name, f"{name}({{u}})").replace(" where {u} > 0, else 0", " [u > 0]")
    of = written(words.format("a", "b", u="u", group="u", minus="-u"), "u", "a", "b")
    return lambda u, a=0.0, b=0.0: of(u, a, b)


# Of which sums are made: by how they are written.
AND = " & "
_BASES = {"2^": np.log(2), "10^": np.log(10), "exp 2": 2.0, "exp 1/2 ": 0.5}
VALUES = (
    "softplus({u})", "softplus(-{u})", "sigmoid({u})", "({u})", "sigmoid({u})^2", "sigmoid({u})^3", "softplus({u})^2",
    "sigmoid({u}) softplus({u})", "sigmoid(-{u}) softplus({u})", "entropy(sigmoid({u}))", "({u}) sigmoid({u})",
    "({u})^2", "max(0, {u})", "min(0, {u})", "elu({u})", "gelu({u})", "huber(max(0, {u}))", "|{u}|", "exp({u})",
    "tanh({u})", "log(1 + exp(-|{u}|))",
    *(form.format(base) for base in _BASES for form in ("log(1 + {}-|{{u}}|)", "log(1 + {}({{u}}))")),
    "sqrt(sigmoid({u}))",
)  # fmt: skip
_ALONE = (  # as slopes
    "[{u} > 0]", "1", "sigmoid({u}) sigmoid(-{u})", "sigmoid({u})^2 sigmoid(-{u})", "sigmoid({u}) sigmoid(-{u})^2",
    "({u}) sigmoid({u}) sigmoid(-{u})", "[{u} > 0] sigmoid({u})", "[{u} < 0] sigmoid({u})", "sigmoid({u}) tanh({u})",
)  # fmt: skip
SUMMANDS: dict[str, Of] = {name: written(name.format(u="u"), "u") for name in (*VALUES, *_ALONE) if "exp " not in name}
SUMMANDS |= {"1": np.ones_like, "entropy(sigmoid({u}))": lambda u: softplus(u) - u * sigmoid(u)}
for _base, _k in _BASES.items():  # without overflow
    SUMMANDS[f"log(1 + {_base}-|{{u}}|)"] = lambda u, k=_k: softplus(-k * size(u))
    SUMMANDS[f"log(1 + {_base}({{u}}))"] = lambda u, k=_k: softplus(k * u)

PAIR = (
    "softplus", "softplus + linear", "softplus + multiple", "log of sigmoid + eps", "log of sigmoid, at least", "focal",
    "sigmoid", "sigmoid squared", "softplus + sigmoid", "softplus + hinge", "softplus of the size",
    "generalised cross-entropy", "softplus squared", "hinge", "hinge squared", "exp", "identity", "square", "absolute",
    "tanh", "shifted probability", "focal of the shifted probability",
)  # fmt: skip
# What gradients may take for a derivative.
SLOPES = (
    *(f"slope of {name}" for name in PAIR), "sigmoid to a power", "sigmoid of the clamped", "sigmoid, at most",
    "sigmoid of the shifted", "sigmoid of a multiple", "sigmoid above one half", "loss",
)  # fmt: skip


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


# Of the scale that is given (s), the bias (b) and the number of pairs (B).
NUMBERS: dict[str, Of] = {
    name: written(name.replace("B - 1", "max(1, B - 1)"), "s", "b", "B")
    for name in (
        "1", "exp(s)", "b", "s", "exp(-s)", "1/s", "exp(s) b", "s b", "exp(-s) b", "b/s", "exp(b)", "exp(-b)",
        "softplus(s)", "exp(2 s)", "exp(s/2)", "s^2", "sqrt(s)", "log(s)", "exp(|s|)", "2^s", "10^s", "b^2", "|b|",
        "softplus(b)", "softplus(-b)", "tanh(b)", "sigmoid(s)", "log(B)", "log(B - 1)", "1/B", "B",
    )
}  # fmt: skip


def of_number(name: str, which: int, s: float, b: float, pairs: int) -> float:
    """A function of the table (0), or its slope by the scale (1) or the bias (2); what overflows is infinite."""
    with np.errstate(all="ignore"):
        values = np.float64(s), np.float64(b), np.float64(pairs)
        return float(slope(NUMBERS[name], which - 1, *values) if which else NUMBERS[name](*values))


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
