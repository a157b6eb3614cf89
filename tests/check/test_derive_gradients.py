"""Gradients that are not the value's derivative are put together from pieces, and terms that are added are told."""

import numpy as np
import pytest

from siglip_ref.check.diagnosis.derive.coupled import COUPLED
from siglip_ref.check.diagnosis.derive.derive import derive
from siglip_ref.check.diagnosis.derive.formula import Rows, siglip
from siglip_ref.check.diagnosis.derive.instrument import Subject
from siglip_ref.check.diagnosis.derive.rows import rows_of
from siglip_ref.check.diagnosis.functions.mapped import MAPS
from siglip_ref.check.diagnosis.functions.penalties import PENALTIES
from siglip_ref.check.diagnosis.functions.recorded import value_and_slopes
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


def right(x, y, s, b):
    own, t, sim = np.eye(len(x)), np.exp(s), x @ y.T
    g = (sigmoid(t * sim + b) - own) / len(x)
    value = softplus((1 - 2 * own) * (t * sim + b)).sum() / len(x)
    return LossAndGrads(value, t * g @ y, t * g.T @ x, (g * sim).sum() * t, g.sum())


def test_a_mean_of_losses_of_prefixes_is_told():
    def fn(x, y, s, b):
        kept = np.arange(x.shape[1]) < x.shape[1] // 2
        whole, half = right(x, y, s, b), right(x * kept, y * kept, s, b)
        half = half._replace(d_image_embed=half.d_image_embed * kept, d_text_embed=half.d_text_embed * kept)
        return LossAndGrads(*(0.5 * (one + other) for one, other in zip(whole, half, strict=True)))

    assert "0.5 times the loss of rows cut to the first half of the width" in told(fn)


def test_a_sigmoid_of_the_logits_before_the_loss_is_told():
    def fn(x, y, s, b):
        own, t, sim = np.eye(len(x)), np.exp(s), x @ y.T
        p = sigmoid(t * sim + b)
        g = (2 * own - 1) * -sigmoid((1 - 2 * own) * p) * p * (1 - p) / len(x)
        value = softplus((1 - 2 * own) * p).sum() / len(x)
        return LossAndGrads(value, t * g @ y, t * g.T @ x, (g * sim).sum() * t, g.sum())

    assert "sigmoid(u) in place of u, u = logit_ij" in told(fn)


@pytest.mark.parametrize("kind", [kind for kind in COUPLED if "held" not in kind and "times" not in kind])
def test_slopes_of_what_rows_share_are_derivatives(kind):
    rng = np.random.default_rng(3)
    z, step = 0.7 * rng.standard_normal((5, 5)), rng.standard_normal((5, 5))
    h = 1e-6
    (up, _), (down, _), (_, [slopes]) = (
        value_and_slopes(lambda at: COUPLED[kind](at, 0.5), z + move * step) for move in (h, -h, 0)
    )
    assert (up - down) / (2 * h) == pytest.approx((slopes * step).sum(), rel=1e-6, abs=1e-8)


def test_a_part_of_a_softmax_that_is_added_is_told():
    def fn(x, y, s, b):
        found, z = right(x, y, s, b), np.exp(s) * x @ y.T + b
        top = z.max(1, keepdims=True)
        each = np.exp(z - top)
        g = 2e-2 / len(z) * (np.log(each.sum(1, keepdims=True)) + top) * each / each.sum(1, keepdims=True)
        value = 1e-2 * np.mean((np.log(each.sum(1)) + top[:, 0]) ** 2)
        more = value, np.exp(s) * g @ y, np.exp(s) * g.T @ x, (g * (z - b)).sum(), g.sum()
        return LossAndGrads(*(one + other for one, other in zip(found, more, strict=True)))

    assert "0.01/B sum of the square of log sum exp of each row is added to the loss" in told(fn)


@pytest.mark.parametrize("name", [name for name in MAPS if "rounded" not in name and "signs" not in name])
def test_gradients_through_what_becomes_of_rows_are_derivatives(name):
    x, step, d = np.random.default_rng(5).standard_normal((3, 4, 16))
    h = 1e-6
    (up, _), (down, _), (_, back) = (rows_of(Rows(mapped=name), x + move * step) for move in (h, -h, 0))
    assert ((up - down) * d).sum() / (2 * h) == pytest.approx((back(d) * step).sum(), rel=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_of_what_is_added_are_derivatives(name):
    rng = np.random.default_rng(4)
    x, y, d, e = rng.standard_normal((4, 5, 3))
    h = 1e-6
    (up, _), (down, _), (_, [d_x, d_y]) = (
        value_and_slopes(PENALTIES[name], x + move * d, y + move * e) for move in (h, -h, 0)
    )
    assert (up - down) / (2 * h) == pytest.approx((d_x * d).sum() + (d_y * e).sum(), rel=1e-6)


def test_a_distance_that_is_added_is_told_beside_another_divisor():
    def fn(x, y, s, b):
        found, far = right(x, y, s, b), 0.2 / len(x) * (x - y)
        d_x, d_y = found.d_image_embed / len(x) + far, found.d_text_embed / len(x) - far
        value = found.loss / len(x) + 0.1 * np.mean(((x - y) ** 2).sum(-1))
        return LossAndGrads(value, d_x, d_y, found.d_log_scale / len(x), found.d_bias / len(x))

    said = told(fn)
    assert "0.1/B sum of |x - y|^2 over own pairs is added to the loss" in said
    assert "multiplied by 1/B^2, not 1/B" in said


def test_rows_that_are_centred_are_told_beside_another_divisor():
    def fn(x, y, s, b):
        found = right(x, y - y.mean(0), s, b)._replace()
        d_y = found.d_text_embed - found.d_text_embed.mean(0)
        found = found._replace(d_text_embed=d_y)
        return LossAndGrads(*(one / len(x) for one in found))

    said = told(fn)
    assert "less the mean of all rows" in said and "multiplied by 1/B^2, not 1/B" in said
