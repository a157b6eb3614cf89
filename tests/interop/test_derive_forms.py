"""Forms of losses that are derived by general means: factors of the whole, limits on both sides, other functions of a
logit, of a row's length, weights by position."""

import math

import pytest
import torch
from test_derive_torch import subject
from torch.nn import functional

from siglip_ref import check_loss
from siglip_ref.check.diagnosis.derive.derive import derive
from siglip_ref.check.diagnosis.derive.formula import siglip
from siglip_ref.report.computes import in_words
from siglip_ref.report.words import WORDS


def signs(x):
    return 2 * torch.eye(len(x), dtype=x.dtype) - 1


def logits(x, y, t, b):
    return t.exp() * x @ y.T + b


def over(z):
    return -functional.logsigmoid(signs(z) * z).sum() / len(z)


def scale_handed_to_a_division(x, y, t, b):
    s = t.exp().item()
    return over(s * x @ y.T + b) / s


def divided_by_the_scale(x, y, t, b):
    return over(logits(x, y, t, b)) / t.exp()


def kept_between(x, y, t, b):
    return over(t.exp().clamp(1, 50) * x @ y.T + b.clamp(-6, 3))


def kept_between_straight_through(x, y, t, b):
    return over(logits(x, y, t + (t.clamp(0.5, 3.5) - t).detach(), b))


def in_powers_of_two(x, y, t, b):
    u = -signs(x) * logits(x, y, t, b)
    return (functional.relu(u) + torch.log1p(torch.exp2(-u.abs()))).sum() / len(x)


def leaking(x, y, t, b):
    u = -signs(x) * logits(x, y, t, b)
    return (functional.leaky_relu(u, 0.02) + torch.log1p((-u.abs()).exp())).sum() / len(x)


def two_margins(x, y, t, b):
    return functional.relu(1 - signs(x) * logits(x, y, t, b)).sum() / len(x)


def smoothed_by_the_batch(x, y, t, b):
    z = logits(x, y, t, b)
    target = 0.8 * torch.eye(len(z), dtype=z.dtype) + 0.2 / len(z)
    return functional.binary_cross_entropy_with_logits(z, target, reduction="sum") / len(z)


def guarded(x, y, t, b):
    x, y = (rows / (rows.square().sum(-1, keepdim=True) + 0.05).sqrt() for rows in (x, y))
    return over(logits(x, y, t, b))


def by_all_images(x, y, t, b):
    return over(t.exp() * x @ y.T / x.norm() - b)


def tiles(x, y, t, b, size=4):
    """The last tile of images is moved back to end with the batch."""
    total, size = 0, min(size, len(x))
    for start in range(0, len(x), size):
        start = min(start, len(x) - size)
        z = logits(x[start : start + size], y, t, b)
        total = total - functional.logsigmoid(signs(y)[start : start + size] * z).sum()
    return total / len(x)


def whole_but_one(x, y, t, b):
    total = 0
    for start in range(0, len(x), 8):
        z, z_signs = logits(x, y[start : start + 7], t, b), signs(x)[:, start : start + 7]
        total = total - functional.logsigmoid(z_signs * z).sum()
    return total / len(x)


KNOWN = {
    scale_handed_to_a_division: ["d log_scale: no gradient arrives", "exp(-log_scale), a constant of the backward"],
    divided_by_the_scale: ["the whole loss is multiplied by exp(-log_scale), not 1"],
    kept_between: ["max(min(exp(log_scale), 50), 1)", "max(min(bias, 3), -6)"],
    kept_between_straight_through: [f"min(exp(log_scale), {math.exp(3.5):.6g})", "as those at the limit"],
    in_powers_of_two: ["max(0, u)", "log(1 + 2^-|u|)"],
    leaking: ["(softplus(u) + 0.02 min(0, u)) in place of softplus(u)"],
    two_margins: ["max(0, u) in place of softplus(u)", "bias - 1, not bias", "bias + 1, not bias"],
    smoothed_by_the_batch: ["0.8/B", "0.2/B^2", "labels are smoothed: 0.8 + 0.2/B where i = j, 0.2/B elsewhere"],
    guarded: ["divided by sqrt(length^2 + 0.05)"],
    by_all_images: ["image rows divided by the length of the whole matrix", "-bias, not bias"],
    tiles: ["images in two chunks, as the last chunk of 4 is moved back with weight 2/B"],
    whole_but_one: ["outside texts that are the last of a whole chunk of 8"],
}


@pytest.mark.parametrize("fn", KNOWN, ids=lambda fn: fn.__name__)
@pytest.mark.sampled(4)
def test_they_are_told(fn):
    derived = derive(subject(fn), siglip())
    said = "\n".join(in_words(derived))
    assert derived.certain and all(words in said for words in KNOWN[fn]), said
    assert "labels are negated" not in said and "none are summed" not in said


def test_where_a_loss_is_not_finite_the_rest_is_told():
    """A hard negative's loss without a guard beyond the range of exp."""

    def hardest(x, y, t, b):
        z = logits(x, y, t, b)
        most = z.masked_fill(torch.eye(len(z), dtype=torch.bool), -50.0).max(1).values
        return (torch.log1p((-z.diagonal()).exp()).sum() + torch.log1p(most.exp()).sum()) / len(z)

    derived = derive(subject(hardest), siglip())
    assert derived.formula is not None and "largest negative" in " ".join(in_words(derived))


def positives_without_bias(x, y, t, b):
    own, z = torch.eye(len(x), dtype=torch.bool), t.exp() * x @ y.T
    return (functional.softplus(-z[own]).sum() + functional.softplus(z[~own] + b).sum()) / len(x)


def labels_of_one_and_zero(x, y, t, b):
    return -functional.logsigmoid(torch.eye(len(x)).to(x) * logits(x, y, t, b)).sum() / len(x)


def sign_before_bias(x, y, t, b):
    return -functional.logsigmoid(signs(x) * (t.exp() * x @ y.T) + b).sum() / len(x)


def bias_left_over(x, y, t, b):
    taken_off = t.exp() * (x * y).sum()
    return (functional.softplus(logits(x, y, t, b)).sum() - taken_off) / len(x)


def negatives_without_scale(x, y, t, b):
    own, sim = torch.eye(len(x), dtype=torch.bool), x @ y.T
    return (functional.softplus(-(t.exp() * sim + b)[own]).sum() + functional.softplus(sim[~own] + b).sum()) / len(x)


@pytest.mark.parametrize(
    ("fn", "repair"),
    [
        (positives_without_bias, "add the bias to the logits of the positives, too"),
        (negatives_without_scale, "multiply the similarities of the negatives by log_scale.exp(), too"),
        (labels_of_one_and_zero, "labels are +1 on the diagonal and -1 elsewhere (not 1 and 0), and every pair counts"),
        (
            sign_before_bias,
            "the sign z is of the whole logit: -F.logsigmoid(z * (log_scale.exp() * similarity + bias))",
        ),
        (bias_left_over, WORDS["repair_place"]["left_over"]),
    ],
)
def test_what_only_a_part_of_the_pairs_lacks_is_not_called_unused(fn, repair):
    assert [finding.repair for finding in check_loss(fn).findings] == [repair]


@pytest.mark.parametrize("own", ["2.5", "len(z)"])
def test_weights_are_offered_where_two_numbers_give_them(own):
    """And then a declaration of these numbers is right."""

    def weighed(x, y, t, b):
        z = logits(x, y, t, b)
        losses, of_own = functional.softplus(-signs(x) * z), 2.5 if own == "2.5" else len(z)
        return (losses * torch.where(torch.eye(len(z), dtype=torch.bool), of_own, 1.0)).sum() / len(z) ** 2

    offered = [finding.repair.partition("check_loss(fn, ")[2] for finding in check_loss(weighed, explain=True).findings]
    assert offered == ['weights=(2.5, 1.0), reduction="mean")' if own == "2.5" else ""]
    assert own != "2.5" or check_loss(weighed, weights=(2.5, 1.0), reduction="mean").verdict == "PASS"
