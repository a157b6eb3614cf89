"""Wrong losses in Torch that are in no catalogue, of kinds that bug reports tell of, each with what it computes.

By name: the function, and the words that the derived formula must have; None: what it computes has no formula here, and
the answer must be "measured".
"""

import math

import torch
from torch.nn import functional


def labels(z):
    return 2 * torch.eye(len(z)).to(z) - 1


def logits(x, y, t, b):
    return t.exp() * x @ y.T + b


def terms(z):
    return -functional.logsigmoid(labels(z) * z)


def own(z):
    return torch.eye(len(z), dtype=torch.bool)


def over(z):
    return terms(z).sum() / len(z)


def bce(z, target, weight=None):
    return functional.binary_cross_entropy_with_logits(z, target, pos_weight=weight, reduction="sum") / len(z)


def distance(x, y, t, b):
    return over(-t.exp() * torch.cdist(x, y).square() / 2 + t.exp() + b)


def far(x, y, t, b):
    return over(t.exp() * (2 - 2 * x @ y.T + 1e-30).sqrt() + b)


def hardest(count):
    def fn(x, y, t, b):
        z = logits(x, y, t, b)
        off = z.masked_fill(own(z), -1e4)
        most = off.topk(min(count, len(z)), 1).values
        return (
            functional.softplus(-z.diagonal(), threshold=60).sum() + functional.softplus(most, threshold=60).sum()
        ) / len(z)

    return fn


def hardest_half(x, y, t, b):
    z = logits(x, y, t, b)
    most = z.masked_fill(own(z), -torch.inf).topk(max(1, (len(z) - 1) // 2), 1).values.flatten()
    return torch.cat([functional.softplus(u, threshold=60) for u in (-z.diagonal(), most)]).mean()


def triplet(x, y, t, b):
    z = t.exp() * x @ y.T
    most = z.masked_fill(own(z), -1e9).max(1).values
    return (0.2 + most - z.diagonal()).clamp(min=0).sum() / len(z)


def infonce(x, y, t, b):
    return functional.cross_entropy(t.exp() * x @ y.T, torch.arange(len(x)))


def both_losses(x, y, t, b):
    z = logits(x, y, t, b)
    place = torch.arange(len(x))
    return over(z) + 0.5 * (functional.cross_entropy(z, place) + functional.cross_entropy(z.T, place))


def shifted(x, y, t, b):
    return over(logits(x, y.roll(-1, 0), t, b))


def tiles(size):
    def fn(x, y, t, b):
        z = logits(x, y, t, b)
        tile = torch.arange(len(x)) // size
        return (terms(z) * (tile[:, None] == tile)).sum() / len(x)

    return fn


def by_tile_mean(x, y, t, b):
    """Tiles of two images, each averaged: only whole ones."""
    whole = len(x) // 2 * 2 or len(x)
    return terms(logits(x, y, t, b))[:whole].sum() / len(x)


def rows_dropped(x, y, t, b):
    return terms(logits(x, y, t, b))[1:].sum() / len(x)


def last_text_dropped(x, y, t, b):
    return terms(logits(x, y, t, b))[:, : max(len(x) - 1, 1)].sum() / len(x)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, change):
        ctx.change = change
        return z.clone()

    @staticmethod
    def backward(ctx, d):
        return ctx.change(d), None


def grad(z, change):
    return _Gradient.apply(z, change)


def squared(x, y, t, b):
    return over(t.exp() * (x @ y.T) ** 2 + b)


def sigmoid_outside(x, y, t, b):
    z = logits(x, y, t, b)
    return torch.sigmoid(-labels(z) * z).sum() / len(z)


def brier(x, y, t, b):
    z = logits(x, y, t, b)
    return (torch.sigmoid(z) - torch.eye(len(z)).to(z)).square().sum() / len(z)


def hinge(x, y, t, b):
    z = logits(x, y, t, b)
    return (1 - labels(z) * z).clamp(min=0).sum() / len(z)


def one_direction_stopped(x, y, t, b):
    z = t.exp() * x @ y.T.detach() + b
    other = t.exp() * x.detach() @ y.T + b
    return (over(z) + over(other)) / 2


def lower_half_of_rows_detached(x, y, t, b):
    half = len(x) // 2
    return over(torch.cat([x[:half], x[half:].detach()]) @ y.T * t.exp() + b)


def temperature_of_negatives_detached(x, y, t, b):
    z = logits(x, y, t, b)
    return over(torch.where(own(z), z, t.detach().exp() * x @ y.T + b))


def random_negatives(x, y, t, b):
    z = logits(x, y, t, b)
    return (terms(z) * torch.bernoulli(torch.full(z.shape, 0.5)).to(z)).sum() / len(z)


def running_mean(x, y, t, b):
    """Similarities less their mean over the batch."""
    similarity = x @ y.T
    return over(t.exp() * (similarity - similarity.mean()) + b)


def offset_by_row(x, y, t, b):
    return over(logits(x, y, t, b) + 0.1 * torch.arange(len(x))[:, None].to(x))


def equal_captions_left_out(x, y, t, b):
    same = (y[:, None] == y).all(-1) & ~own(x @ y.T)
    return terms(logits(x, y, t, b)).masked_fill(same, 0).sum() / len(x)


def without_the_size(x, y, t, b):
    z = logits(x, y, t, b)
    return (z.clamp(min=0) - z * own(z) + functional.softplus(-z, threshold=60)).sum() / len(z)


def kept(what, dtype):
    """Its backward reads images, texts or logits that are kept in fewer bits."""

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y, t, b):
            z = logits(x, y, t, b)
            ctx.save_for_backward(x, y, t, b)
            return over(z)

        @staticmethod
        def backward(ctx, upstream):
            x, y, t, b = ctx.saved_tensors
            x, y = (v.to(dtype).to(v) if name in what else v for name, v in (("images", x), ("texts", y)))
            z = logits(x, y, t, b)
            z = z.to(dtype).to(z) if what == "logits" else z
            slopes = upstream * (torch.sigmoid(z) - torch.eye(len(z)).to(z)) / len(z)
            of_scale = (slopes * (t.exp() * x @ y.T)).sum()
            return (
                t.exp() * slopes @ y,
                t.exp() * slopes.T @ x,
                of_scale.reshape(t.shape),
                slopes.sum().reshape(b.shape),
            )

    return Loss.apply


# ruff: noqa: E501  # a table: one loss a line


def pair_sum(z, function):
    return function(-labels(z) * z).sum() / len(z)


def padded_tiles(x, y, t, b):
    more = -len(x) % 32
    wide_x, wide_y = (functional.pad(rows, (0, 0, 0, more)) for rows in (x, y))
    return pair_sum(logits(wide_x, wide_y, t, b), functional.softplus) * (len(x) + more) / len(x)


def shift_held(x, y, t, b):
    def stable(u):
        return u.detach().clamp(min=0) + torch.log1p(torch.exp(-u.abs()))

    return pair_sum(logits(x, y, t, b), stable)


def ranked(x, y, t, b):
    z = logits(x, y, t, b)
    return functional.softplus(z - z.diagonal()[:, None])[~own(z)].sum() / len(z)


def less_largest(x, y, t, b):
    z = logits(x, y, t, b)
    return pair_sum(z - z.detach().max(1, keepdim=True).values, functional.softplus)


def by_largest(x, y, t, b):
    z = logits(x, y, t, b)
    signs = -torch.ones_like(z)
    signs[torch.arange(len(z)), z.argmax(1)] = 1
    return functional.softplus(-signs * z).sum() / len(z)


def hardest_quarter(x, y, t, b):
    z = logits(x, y, t, b)
    each = functional.softplus(-labels(z) * z).flatten()
    return each.topk(max(1, len(each) // 4)).values.mean() * len(z)


def by_softmax(x, y, t, b):
    z = logits(x, y, t, b)
    if len(z) == 1:
        return functional.softplus(-z).sum()
    weights = z.detach().masked_fill(own(z), -torch.inf).softmax(1) * (len(z) - 1)
    return (functional.softplus(-z.diagonal()).sum() + (weights * functional.softplus(z))[~own(z)].sum()) / len(z)


def cached_chunks(x, y, t, b):
    part = torch.arange(len(x)) // 16
    return over(t.exp() * grad(x @ y.T, lambda g: torch.where(part[:, None] == part, g, g / 2)) + b)


def value_halved(x, y, t, b):
    z = logits(x, y, t, b)
    each = functional.softplus(-labels(z) * z)
    return each.sum() / len(z) - each[16:].sum().detach() / len(z) / 2


def centred(rows):
    return functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def unit_half(rows):
    return functional.normalize(rows[:, : rows.shape[1] // 2], dim=1)


NEW = {
    "mean over B x B": (lambda x, y, t, b: terms(logits(x, y, t, b)).mean(), "1/B^2 sum_ij softplus(-z_ij (exp(log_scale)"),
    "tutorial": (lambda x, y, t, b: terms(10 * x @ y.T).mean(), "1/B^2 sum_ij softplus(-z_ij (10 sim_ij))"),
    "temperature of 20": (lambda x, y, t, b: over(20 * x @ y.T + b), "(20 sim_ij + bias)"),
    "two directions, each a mean": (lambda x, y, t, b: 2 * terms(logits(x, y, t, b)).mean(), "2/B^2 sum_ij"),
    "divided by B - 1": (lambda x, y, t, b: terms(logits(x, y, t, b)).sum() / max(len(x) - 1, 1), "1/(B - 1) sum_ij"),
    "divided by sqrt(B)": (lambda x, y, t, b: terms(logits(x, y, t, b)).sum() / math.sqrt(len(x)), "1/B^0.5 sum_ij"),
    "the mean, times B / log(B)": (lambda x, y, t, b: terms(logits(x, y, t, b)).mean() * len(x) / math.log(max(len(x), 2)), "1/(B log(B)) sum_ij"),
    "logits in float32": (lambda x, y, t, b: over(logits(x, y, t, b).float()), "something of it is computed in float32"),
    "divided by 32": (lambda x, y, t, b: terms(logits(x, y, t, b)).sum() / 32, "0.03125 sum_ij"),
    "in-batch softmax": (infonce, "1/B sum of cross-entropy of each row's softmax"),
    "sigmoid and softmax": (both_losses, "0.5/B sum of cross-entropy of each column's softmax"),
    "focal of 1.5": (lambda x, y, t, b: (torch.sigmoid(-labels(x @ y.T) * logits(x, y, t, b)) ** 1.5 * terms(logits(x, y, t, b))).sum() / len(x), "^1.5 softplus"),
    "margin of 0.3 on negatives": (lambda x, y, t, b: over(t.exp() * (x @ y.T + 0.3 * (1 - torch.eye(len(x)).to(x))) + b), "bias + 0.3 exp(log_scale)"),
    "margin after the scale": (lambda x, y, t, b: over(logits(x, y, t, b) - 2 * torch.eye(len(x)).to(x)), "bias - 2"),
    "smoothed by 0.1": (lambda x, y, t, b: bce(logits(x, y, t, b), torch.eye(len(x)).to(x) * 0.9 + 0.05), "- 0.05"),
    "smoothed positives": (lambda x, y, t, b: bce(logits(x, y, t, b), torch.eye(len(x)).to(x) * 0.9), "- 0.1"),
    "one hardest negative": (hardest(1), "each row's 1 largest"),
    "three hardest negatives": (hardest(3), "each row's 3 largest"),
    "hardest half of the others": (hardest_half, "1/(B (1 + max(1, floor((B - 1)/2)))) sum of softplus of each row's max(1, floor(0.5 (B - 1))) largest"),
    "triplet": (triplet, "max(0, 0.2 + each row's largest"),
    "wrong sign on the diagonal": (lambda x, y, t, b: functional.softplus(logits(x, y, t, b), threshold=60).sum() / len(x), "sum over all pairs of softplus(exp(log_scale) sim_ij + bias)"),
    "all pairs positive": (lambda x, y, t, b: -functional.logsigmoid(logits(x, y, t, b)).sum() / len(x), "sum over all pairs of softplus(-(exp(log_scale)"),
    "both directions": (lambda x, y, t, b: over(logits(x, y, t, b)) + over(logits(y, x, t, b)), "2/B sum_ij"),
    "temperature divides": (lambda x, y, t, b: over(x @ y.T / t.exp() + b), "exp(-log_scale) sim_ij + bias"),
    "temperature divides, bias too": (lambda x, y, t, b: over((x @ y.T + b) / t.exp()), "exp(-log_scale) bias"),
    "softplus of the scale": (lambda x, y, t, b: over(functional.softplus(t) * x @ y.T + b), "softplus(log_scale) sim_ij"),
    "sigmoid outside": (sigmoid_outside, "sigmoid(-z_ij"),
    "squared error of chances": (brier, "^2"),
    "hinge": (hinge, "max(0, "),
    "bias detached by half": (lambda x, y, t, b: over(logits(x, y, t, 0.5 * b + 0.5 * b.detach())), "d bias: 0.5 times the right one"),
    "text detached in negatives": (lambda x, y, t, b: over(torch.where(own(x @ y.T), logits(x, y, t, b), logits(x, y.detach(), t, b))), "d text_embed: each pair's part times 1 on i = j"),
    "lower half detached": (lower_half_of_rows_detached, "d image_embed: each pair's part times 1 on first half of the images"),
    "each product once detached": (one_direction_stopped, "d image_embed: 0.5 times the right one"),
    "temperature of negatives detached": (temperature_of_negatives_detached, "d log_scale"),
    "gradient times 8": (lambda x, y, t, b: over(logits(grad(x, lambda d: 8 * d), grad(y, lambda d: 8 * d), t, b)), "d image_embed: 8 times the right one"),
    "gradient of the scale clipped away": (lambda x, y, t, b: over(logits(x, y, grad(t, lambda d: 0 * d), b)), "d log_scale: no gradient arrives"),
    "gradients negated": (lambda x, y, t, b: over(logits(grad(x, lambda d: -d), y, t, b)), "d image_embed: -1 times the right one"),
    "bias kept from 0 up": (lambda x, y, t, b: over(logits(x, y, t, b.clamp(min=0))), "max(bias, 0)"),
    "bias kept above -5": (lambda x, y, t, b: over(logits(x, y, t, b.clamp(min=-5))), "max(bias, -5)"),
    "scale kept below 50": (lambda x, y, t, b: over(t.exp().clamp(max=50) * x @ y.T + b), "min(exp(log_scale), 50) sim_ij"),
    "logits kept in +-10": (lambda x, y, t, b: over(logits(x, y, t, b).clamp(-10, 10)), "clamp(exp(log_scale) sim_ij + bias, -10, 10)"),
    "logits kept below 30": (lambda x, y, t, b: over(logits(x, y, t, b).clamp(max=30)), "clamp("),
    "distance": (distance, None),  # SigLIP's own on unit rows, but for rows that are not
    "distance as similarity": (far, "sqrt(2 - 2 sim_ij)"),
    "squared cosine": (squared, "sim_ij^2"),
    "absolute cosine": (lambda x, y, t, b: over(t.exp() * (x @ y.T).abs() + b), "|sim_ij|"),
    "first row dropped": (rows_dropped, "outside first image"),
    "last text dropped": (last_text_dropped, None),  # at one pair another text is the last
    "whole tiles of rows": (by_tile_mean, "images of whole chunks of 2, or all"),
    "tiles of 4": (tiles(4), "i, j in the same chunk of 4"),
    "texts one further": (shifted, "j = i + 1 mod B"),
    "pos_weight of 3": (lambda x, y, t, b: bce(logits(x, y, t, b), torch.eye(len(x)).to(x), torch.tensor(3.0).to(x)), "3/B sum over i = j"),
    "pos_weight of B": (lambda x, y, t, b: bce(logits(x, y, t, b), torch.eye(len(x)).to(x), torch.tensor(float(len(x))).to(x)), "sum over i = j of softplus(-(exp"),
    "decay of the scale": (lambda x, y, t, b: over(logits(x, y, t, b)) + 0.05 * t**2, "0.05 log_scale^2"),
    "constant added": (lambda x, y, t, b: over(logits(x, y, t, b)) + 1, "+ 1"),
    "log(B) taken off": (lambda x, y, t, b: over(logits(x, y, t, b) - math.log(len(x))), "log(B)"),
    "targets of 1 and -1": (lambda x, y, t, b: bce(logits(x, y, t, b), labels(x @ y.T)), "(softplus(exp(log_scale) sim_ij + bias) + ("),
    "equal captions left out": (equal_captions_left_out, "pairs with equal texts are left out of the negatives"),
    "stable formula without |z|": (without_the_size, "negatives: softplus(|u|) in place of softplus(u)"),
    "texts kept in bfloat16": (kept("texts", torch.bfloat16), "gradients are computed from texts in bfloat16"),
    "images and texts kept in float16": (kept("images and texts", torch.float16), "computed from images and texts in float16"),
    "logits kept in float16": (kept("logits", torch.float16), "gradients are computed from logits in float16"),
    "scalars in bfloat16": (lambda x, y, t, b: over(t.bfloat16().double().exp() * x @ y.T + b.bfloat16().double()), "scale and bias are rounded to bfloat16"),
    "tiles of 32 padded with zeros": (padded_tiles, "(P^2 - B^2 - P + B, P: B up to a multiple of 32)/B softplus(bias)"),
    "shift of softplus held": (shift_held, "gradients take (sigmoid(u) - 1 [u > 0]) for the derivative"),
    "probability shifted by 0.05": (lambda x, y, t, b: functional.softplus(-logits(x, y, t, b).diagonal()).sum() / len(x) - (torch.sigmoid(-logits(x, y, t, b)) + 0.05).clamp(max=1).log()[~own(x @ y.T)].sum() / len(x), "-log(1 - max(0, sigmoid("),
    "polynomial of the probability": (lambda x, y, t, b: pair_sum(logits(x, y, t, b), lambda u: functional.softplus(u) + 0.5 * torch.sigmoid(u) ** 2), "+ 0.5 sigmoid("),
    "negatives over B^2, own pairs too": (lambda x, y, t, b: functional.softplus(-logits(x, y, t, b).diagonal()).mean() + functional.softplus(logits(x, y, t, b)).mean(), "1/B^2 sum over all pairs"),
    "ranked against the own pair": (ranked, "softplus of negatives' logits less its row's own logit"),
    "less the row's largest, held": (less_largest, "logits less its row's largest, held constant"),
    "positives of each row's largest": (by_largest, "positives are the largest logit of each row"),
    "the hardest quarter": (hardest_quarter, "the mean of the largest 25% of all pairs' parts"),
    "root of the sum": (lambda x, y, t, b: over(logits(x, y, t, b)).sqrt(), "the square root of the sum over all pairs"),
    "negatives by their softmax": (by_softmax, "each times its row's softmax over negatives"),
    "slopes less their row's mean": (lambda x, y, t, b: over(grad(logits(x, y, t, b), lambda g: g - g.mean(1, keepdim=True))), "1 times its own - 1 times the mean of its row"),
    "slopes made symmetric": (lambda x, y, t, b: over(t.exp() * grad(x @ y.T, lambda g: (g + g.T) / 2) + b), "0.5 times its own + 0.5 times that of the transposed pair"),
    "both sides cached by 16": (cached_chunks, "d image_embed: each pair's part times 1 on i, j in the same chunk of 16 and 0.5 on i, j not in the same chunk of 16"),
    "value alone halved from row 16": (value_halved, "with weight 0.5/B"),
    "texts to steps of 1/127": (lambda x, y, t, b: over(logits(x, y + ((y * 127).round() / 127 - y).detach(), t, b)), "text rows rounded to multiples of 1/127"),
    "images to steps of 1/128, no gradient": (lambda x, y, t, b: over(logits((x * 128).round() / 128, y, t, b)), "image rows rounded to multiples of 1/128, which lets no gradient through"),
    "rows centred, then unit": (lambda x, y, t, b: over(logits(centred(x), centred(y), t, b)), "image rows less each row's mean, then divided by their length"),
    "half of the width": (lambda x, y, t, b: over(logits(unit_half(x), unit_half(y), t, b)), "rows cut to the first half of the width, then divided by their length"),
    "less the batch's mean, held": (lambda x, y, t, b: over(logits(x - x.mean(0).detach(), y - y.mean(0).detach(), t, b)), "less the mean of all rows, of which gradients know nothing"),
    "random negatives": (random_negatives, None),
    "similarities centred": (running_mean, None),
    "offsets by row": (offset_by_row, None),
}  # fmt: skip
