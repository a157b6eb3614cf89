"""How far a correct loss may lie from the exact one: the noise that the specification itself shows at the probe.

See `siglip_ref.noise.measure`: the specification runs in rounded arithmetic in every form and order that correct
programs choose. Allowed is SAFETY times the largest error seen, row by row. SAFETY is calibrated in tests/interop:
test_loss_torch.py and test_loss_jax.py hold correct forms, which the measurement does not know, to half of that.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from siglip_ref.arithmetic.rounded import FORMATS
from siglip_ref.arithmetic.variants import Variant
from siglip_ref.check.engine.expected.convention import SIGMOID, Objective, as_given, unit_rows
from siglip_ref.check.engine.expected.probes import WIDE_FORMATS
from siglip_ref.model.loss import LossAndGrads
from siglip_ref.noise.measure import TIMES, Noise, measure
from siglip_ref.noise.quick import PAIRS, quick_noise
from siglip_ref.ops.elementary import Array
from siglip_ref.ops.normalize import NormKind

SAFETY = TIMES
ARITHMETIC = {name: FORMATS[name] for name in ("float64", "float32", "bfloat16", "float16")}
MANY_PAIRS = 2**15  # from here on one run of each kind holds enough elements
DECLARED = 2.0  # times what the few quick runs show of a declared variant, also at the smallest batches
_FINE = ("float32", "tf32", "bfloat16 products")  # where rows are unit to rounding, not exactly


@dataclass(frozen=True)
class Given:
    """What a loss is given and computes in.

    norm : how it normalises its inputs, None: not at all; linear : the scale itself instead of its logarithm
    regime : a key of `siglip_ref.noise.measure.REGIMES`, or "float64"; scalars : format of scale and bias
    objective : what it computes
    """

    norm: NormKind | None
    linear: bool
    regime: str
    scalars: str
    objective: Objective = SIGMOID


def loss_noise(
    given: Given, image_embed: Array, text_embed: Array, scale: float, bias: float, exact: LossAndGrads
) -> Noise:
    """Noise of a correct loss, absolute, by the names of `LossAndGrads`; one number per row of an embedding's gradient.
    Measured, once a process.

    Parameters
    ----------
    image_embed, text_embed : float64 arrays (B, D), exact in the regime's format
    scale : as given to the loss: the logarithm, or the scale itself
    exact : loss and gradients without rounding
    """
    if is_quick(given, len(image_embed)):
        numbers = {"scale": np.array(scale), "bias": np.array(bias)}
        inputs = {"image_embed": image_embed, "text_embed": text_embed} | numbers
        in_any_order = not given.objective.extras and given.objective.per_image == 1  # what fn is given has places
        found = quick_noise(partial(_loss, given), inputs, exact._asdict(), given.regime, moves=in_any_order)
        times = 1.0 if given.objective.ships else DECLARED
        return Noise({name: times * level for name, level in found.absolute.items()}, found.overflows)
    return measured_noise(given, image_embed, text_embed, scale, bias, exact)


def is_quick(given: Given, pairs: int) -> bool:
    """Whether the machine itself computes so, and need not be emulated; few pairs of what ships are all the same."""
    native = given.regime in WIDE_FORMATS and scalars_of(given) in ("float32", given.regime)
    return native and (pairs >= PAIRS or not given.objective.ships)


def measured_noise(
    given: Given,
    image_embed: Array,
    text_embed: Array,
    scale: float,
    bias: float,
    exact: LossAndGrads,
    few: bool | None = None,
) -> Noise:
    """The same, measured now. few : one run of each kind; None: where there are enough elements."""
    exact_bytes = tuple(np.asarray(value, np.float64).tobytes() for value in exact)
    rows = image_embed.tobytes(), text_embed.tobytes()
    return _measured(given, (image_embed.shape, text_embed.shape), *rows, scale, bias, exact_bytes, few)


def way_of(given: Given) -> str:
    """How a loss is given its numbers, and what it computes in: half of a key."""
    scalars = "" if given.regime == "float64" else scalars_of(given)
    objective = "" if given.objective.plain else f", {given.objective}"
    return f"{given.norm or 'unit'}, {'linear' if given.linear else 'log'}, {given.regime}, {scalars}{objective}"


def scalars_of(given: Given) -> str:
    """The scale itself has no rounding of exp: its logarithm, which the specification wants, is taken in float32."""
    return "float32" if given.linear and given.regime != "float64" else given.scalars


@lru_cache(maxsize=1024)  # the same probes are asked for again and again, by every loss that is checked
def _measured(
    given: Given,
    of_rows: tuple[tuple[int, int], tuple[int, int]],
    image: bytes,
    text: bytes,
    scale: float,
    bias: float,
    exact: tuple[bytes, ...],
    few: bool | None,
) -> Noise:
    arrays = {
        "image_embed": np.frombuffer(image).reshape(of_rows[0]),
        "text_embed": np.frombuffer(text).reshape(of_rows[1]),
        "scale": np.array(scale),
        "bias": np.array(bias),
    }
    shapes = ((), *of_rows, (), ())
    right = {n: np.frombuffer(v).reshape(s) for n, v, s in zip(LossAndGrads._fields, exact, shapes, strict=True)}
    few = of_rows[0][0] * of_rows[1][0] > MANY_PAIRS if few is None else few
    compute = partial(_loss, given)
    return measure(compute, arrays, right, given.regime, scalars=scalars_of(given), by_row=True, few=few)


def _loss(given: Given, a: dict[str, Array], ops: Variant) -> dict[str, Array]:
    x, y = unit_rows_again(given, a["image_embed"], a["text_embed"], ops)
    plain = partial(given.objective.computed, captions=a["text_embed"], ops=ops, tiles=ops.tiles)
    return as_given(plain, given.norm, given.linear, ops.normalize)(x, y, a["scale"], a["bias"])._asdict()


def unit_rows_again(given: Given, x: Array, y: Array, ops: Variant) -> tuple[Array, Array]:
    """Unit rows, normalised all the same in some runs: a loss may do so for safety, and moves nothing but rounding."""
    if given.norm or not ops.normalises_again or given.regime not in _FINE or (_exact(x) and _exact(y)):
        return x, y
    return unit_rows(x, "clamp", ops.normalize).rows, unit_rows(y, "clamp", ops.normalize).rows


def _exact(rows: Array) -> bool:
    """Whether rows are exactly unit, or zero: normalising them again changes nothing."""
    plain = np.asarray(rows).view(np.ndarray)
    return bool(np.isin((plain * plain).sum(-1), (0.0, 1.0)).all())
