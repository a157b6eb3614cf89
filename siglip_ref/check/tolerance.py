"""How far a correct loss may lie from the exact one: an error model, per tensor, element and dtype.

First-order running error analysis, with the reference's own numbers. Let u be the unit roundoff of the dtype and l the
logits. A correct program rounds the similarity, its product with the scale, the sum with the bias (or the embeddings,
normalised or times the scale, before their product), so a logit is off by

    dl^2 = u^2 (2 (t s)^2 + l^2 + 3 t^2 sum_k x_k^2 y_k^2) + accumulation

Through the sigmoid this becomes an error of d_logits (the secant over SAFETY * dl, not the tangent: in bfloat16 a logit
of 100 may be off by 0.5, and the tail of the sigmoid is not straight there), plus its own rounding. Rounding errors of
different pairs are independent, so products with the embeddings add them in squares. What all pairs share (the
rounding of exp(log_scale), of 1/B) is added plainly. Correct programs may sum positives and negatives apart,
as in sum softplus(l) - sum l_ii, so the rounding of either sum counts too.

In 16 bits products accumulate in float32 but results are rounded to 16 bits; autocast rounds at no more places than
the pure dtype. Allowed is SAFETY times this noise. SAFETY is calibrated in tests/interop/test_loss_torch.py and
test_loss_jax.py: the worst element of the worst of 13 correct Torch forms reaches 0.24 of what is allowed, in float64,
float32, bfloat16, float16 and autocast alike; the tests hold them to half.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from siglip_ref.loss import LossAndGrads, sigmoid_loss
from siglip_ref.ops.elementary import Array, sigmoid, softplus

SAFETY = 4.0


class Arithmetic(NamedTuple):
    """A floating-point format: u of results, u of accumulators, largest number, and what may be flushed to zero."""

    roundoff: float
    accumulator: float
    largest: float
    smallest: float


ARITHMETIC = {
    "float64": Arithmetic(2.0**-53, 2.0**-53, 1.7976931348623157e308, 2.0**-1022),
    "float32": Arithmetic(2.0**-24, 2.0**-24, 3.4028234663852886e38, 2.0**-126),
    "bfloat16": Arithmetic(2.0**-8, 2.0**-24, 3.3895313892515355e38, 2.0**-126),
    "float16": Arithmetic(2.0**-11, 2.0**-24, 65504.0, 2.0**-24),
}


@dataclass(frozen=True)
class Noise:
    """Expected rounding noise, absolute, element by element; overflows: where even correct rounding leaves the range,
    in the sum over all pairs before it is divided by B."""

    by_tensor: LossAndGrads
    overflows: frozenset[str]


def expected_noise(image_embed: Array, text_embed: Array, log_scale: float, bias: float, dtype: str) -> Noise:
    """Noise of a correct implementation in `dtype`, for its loss and four gradients.

    Parameters
    ----------
    image_embed, text_embed : float64 arrays (B, D), exact in `dtype`
    log_scale, bias : as the loss uses them
    dtype : a key of ARITHMETIC
    """
    arithmetic = ARITHMETIC[dtype]
    u = arithmetic.roundoff
    pairs, width = image_embed.shape
    # roundings of sums of n terms grow like sqrt(n); in 16 bits the accumulator is float32
    acc = arithmetic.accumulator
    carry = u + acc * np.sqrt(pairs + width)
    x, y, t = image_embed, text_embed, np.exp(log_scale)
    match = np.eye(pairs, dtype=np.bool_)

    similarity = x @ y.T
    logits = t * similarity + bias
    terms = t * np.sqrt((x * x) @ (y * y).T)  # of one product
    d_logit = np.sqrt(u**2 * (2 * (t * similarity) ** 2 + logits**2) + 3 * (carry * terms) ** 2)

    probability = sigmoid(logits)
    reach = SAFETY * d_logit
    secant = np.maximum(sigmoid(logits + reach) - probability, probability - sigmoid(logits - reach)) / SAFETY
    # sigmoid - 1 where the pair matches: its rounding is one of numbers near 1, in the subtracting form. JAX takes
    # exp(l - softplus(l)), which rounds a number of the size of l until softplus(l) rounds to l itself.
    own = (2 * u + acc * np.minimum(np.abs(logits), -np.log(acc))) * np.maximum(probability, match)
    noise = np.sqrt(secant**2 + own**2) + pairs * arithmetic.smallest

    apart = _apart(x, y, t, probability, similarity, logits)
    shared = _shared(x, y, log_scale, bias, u)
    square = noise**2
    gradient = np.where(match, probability - 1, probability)
    sums = {
        "d_image_embed": t * np.sqrt(square @ y**2 + (carry**2) * (gradient**2 @ y**2)),
        "d_text_embed": t * np.sqrt(square.T @ x**2 + (carry**2) * (gradient.T**2 @ x**2)),
        "d_log_scale": t * np.sqrt((square * similarity**2).sum() + ((gradient * terms / t * carry) ** 2).sum()),
        "d_bias": np.sqrt(square.sum() + carry**2 * (gradient**2).sum()),
        "loss": _loss_noise(logits, d_logit, match, carry),
    }
    # elementary functions of float32 and float64 may all err to one side, by up to 4 units
    aside = 2 * u + 4 * acc
    by_tensor = {name: (sums[name] + aside * apart[name]) / pairs + shared[name] + arithmetic.smallest for name in sums}
    everywhere = max(t, np.abs(logits).max(), np.abs(terms).max())
    tops = {name: max(everywhere, np.max(np.abs(size))) for name, size in apart.items()}
    tops["loss"] = max(tops["loss"], softplus(np.where(match, -logits, logits)).sum())
    overflows = frozenset(name for name, top in tops.items() if top * (1 + 4 * u) >= arithmetic.largest)
    return Noise(LossAndGrads(**by_tensor), overflows)


def _loss_noise(logits: Array, d_logit: Array, match: Array, carry: float) -> Array:
    signed = np.where(match, -logits, logits)
    terms = softplus(signed)
    secant = (softplus(signed + SAFETY * d_logit) - terms) / SAFETY
    return np.sqrt((secant**2 + (carry * terms) ** 2).sum()) + carry * terms.sum()


def _apart(x: Array, y: Array, t: float, probability: Array, similarity: Array, logits: Array) -> dict[str, Array]:
    """Sizes of the sums over positives and negatives, each on its own, before they cancel."""
    matched = np.diag(similarity)
    return {
        "loss": np.abs(np.diag(logits)).sum(),
        "d_image_embed": t * (np.abs(probability @ y) + np.abs(y)),
        "d_text_embed": t * (np.abs(probability.T @ x) + np.abs(x)),
        "d_log_scale": t * (np.abs((probability * similarity).sum()) + np.abs(matched.sum())),
        "d_bias": probability.sum() + len(x),
    }


def _shared(x: Array, y: Array, log_scale: float, bias: float, u: float) -> dict[str, Array]:
    """What one rounding of the scale does to every tensor, and one of the whole gradient."""
    exact = sigmoid_loss(x, y, np.array(log_scale), np.array(bias))
    moved = sigmoid_loss(x, y, np.array(log_scale + SAFETY * u), np.array(bias))
    pairs = zip(LossAndGrads._fields, exact, moved, strict=True)
    return {name: np.abs(b - a) / SAFETY + 2 * u * np.abs(a) for name, a, b in pairs}


def noise_of_normalising(
    noise: LossAndGrads, raw: tuple[Array, Array], exact: LossAndGrads, dtype: str
) -> LossAndGrads:
    """The noise of gradients by embeddings that the loss divides by their length n itself: d_raw = (g - x (x g)) / n.

    Parameters
    ----------
    noise, exact : by the unit rows x; raw : image and text rows as given
    """
    u = ARITHMETIC[dtype].roundoff
    out = []
    for rows, spread, g in zip(raw, noise[1:3], exact[1:3], strict=True):
        n = np.sqrt((rows * rows).sum(-1, keepdims=True))
        x = rows / n
        along = np.sqrt((x * x * (spread**2 + (2 * u * g) ** 2)).sum(-1, keepdims=True))
        out.append(
            (spread + np.abs(x) * (along + 2 * u * np.abs((x * g).sum(-1, keepdims=True))) + 4 * u * np.abs(g)) / n
        )
    return noise._replace(d_image_embed=out[0], d_text_embed=out[1])
