"""Gradients that are not the value's derivative are put together from pieces, and terms that are added are told."""

import numpy as np
import pytest

from siglip_ref.check.diagnosis.derive.derive import derive
from siglip_ref.check.diagnosis.derive.formula import Rows, siglip
from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.ops.elementary import sigmoid, softplus
from siglip_ref.ops.pair_block import LossAndGrads
from siglip_ref.report.computes import in_words


def told(fn, kind="as given"):
    derived = derive(Subject(fn), siglip(rows=Rows(kind)))
    assert derived.certain, in_words(derived)
    return " ".join(in_words(derived))


def along(d, rows):
    return (d * rows).sum(-1, keepdims=True) * rows


# Of slopes by the logit, the scale, similarities, logits, own pairs, rows: gradients, of which one is another's.
WRONG = {
    "its own, by the rows of its own side": lambda g, t, sim, z, own, x, y: (t * g @ x, None, None, None),
    "its own, by the other side's gradient": lambda g, t, sim, z, own, x, y: (None, t * t * g.T @ (g @ y), None, None),
    "the probabilities alone give": lambda g, t, sim, z, own, x, y: (
        None, t * (sigmoid(z) / len(z) - own).T @ x, None, None,
    ),
    "that of logits without a bias": lambda g, t, sim, z, own, x, y: (
        t * (sigmoid(t * sim) - own) @ y / len(z), None, None, None,
    ),
    "of the transposed pair": lambda g, t, sim, z, own, x, y: (None, None, t * np.trace(g @ sim), None),
    "the part along the other side's row": lambda g, t, sim, z, own, x, y: (
        t * g @ y - along(t * g @ y, y), None, None, None,
    ),
    "0.01 times the rows themselves": lambda g, t, sim, z, own, x, y: (None, t * g.T @ x + 0.01 * y, None, None),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_a_gradient_is_put_together(words):
    def fn(x, y, s, b):
        own, t, sim = np.eye(len(x)), np.exp(s), x @ y.T
        z = t * sim + b
        g = (sigmoid(z) - own) / len(x)
        right = t * g @ y, t * g.T @ x, (g * sim).sum() * t, g.sum()
        wrong = WRONG[words](g, t, sim, z, own, x, y)
        chosen = (a if b is None else b for a, b in zip(right, wrong, strict=True))
        return LossAndGrads(softplus((1 - 2 * own) * z).sum() / len(x), *chosen)

    assert words in told(fn)


def test_lengths_that_are_exchanged_are_told():
    def fn(x, y, s, b):
        long, other = (np.sqrt((rows * rows).sum(-1, keepdims=True)) for rows in (x, y))
        u, v, own, t = x / long, y / other, np.eye(len(x)), np.exp(s)
        z = t * u @ v.T + b
        g = (sigmoid(z) - own) / len(x)
        d_u, d_v = t * g @ v, t * g.T @ u
        d_x, d_y = (d_u - along(d_u, u)) / long, (d_v - along(d_v, v)) / long
        return LossAndGrads(softplus((1 - 2 * own) * z).sum() / len(x), d_x, d_y, (g * (z - b)).sum(), g.sum())

    assert "divided by the other side's length" in told(fn, "unit")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_term_that_goes_otherwise_with_the_batch_is_told_beside_another_scale(sign):
    def fn(x, y, s, b):
        own, t, sim = np.eye(len(x)), np.exp(sign * s), x @ y.T
        z = t * sim + b
        g = (sigmoid(z) - own) / len(x) + 2e-3 * z / z.size
        value = softplus((1 - 2 * own) * z).sum() / len(x) + 1e-3 * (z * z).mean()
        return LossAndGrads(value, t * g @ y, t * g.T @ x, sign * (g * sim).sum() * t, g.sum())

    said = told(fn)
    assert "0.001/B^2 sum over all pairs of" in said and "is added to the loss (take it out" in said
    assert ("exp(-log_scale), not exp(log_scale)" in said) == (sign < 0)


def test_a_logarithm_of_the_negatives_taken_off_each_logit_is_told():
    def fn(x, y, s, b):
        own, t, sim = np.eye(len(x)), np.exp(s), x @ y.T
        z = t * sim + b - np.log(max(len(x) - 1, 1))
        g = (sigmoid(z) - own) / len(x)
        value = softplus((1 - 2 * own) * z).sum() / len(x)
        return LossAndGrads(value, t * g @ y, t * g.T @ x, (g * sim).sum() * t, g.sum())

    assert "bias - log(B - 1), not bias" in told(fn)
