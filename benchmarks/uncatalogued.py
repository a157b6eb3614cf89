"""Mistakes that the catalogue does not have, as somebody makes them who never read it: an honest answer is "unknown".

Each with the tensors where an answer may say that it begins: the loss if its value is wrong, else a gradient.
"""

import math

import torch
import torch.distributed as dist
from torch.distributed import nn as collectives
from torch.nn import functional

VALUE = ("loss",)


def labels(x):
    return 2 * torch.eye(len(x)).to(x) - 1


def softplus(z):
    return functional.softplus(z, threshold=60)


def pairs(logits):
    return softplus(-labels(logits) * logits)


def smoothed(x, y, t, b):
    """Label smoothing, copied from a classifier."""
    logits = t.exp() * x @ y.T + b
    target = torch.eye(len(x)).to(x) * 0.9 + 0.05
    return (target * softplus(-logits) + (1 - target) * softplus(logits)).sum() / len(x)


def margin(x, y, t, b):
    """An additive margin on the matched similarities, as in CosFace."""
    similarity = x @ y.T - 0.2 * torch.eye(len(x)).to(x)
    return pairs(t.exp() * similarity + b).sum() / len(x)


def angles(x, y, t, b):
    """Angles in place of cosines."""
    similarity = 1 - torch.acos((x @ y.T).clamp(-0.999, 0.999)) * 2 / math.pi
    return pairs(t.exp() * similarity + b).sum() / len(x)


def temperature_on_texts_too(x, y, t, b):
    """The temperature multiplies the texts, and the product once more for the negatives."""
    y = y * t.exp()
    own = torch.eye(len(x), dtype=torch.bool)
    logits = torch.where(own, x @ y.T, 1.5 * (x @ y.T)) + b
    return pairs(logits).sum() / len(x)


def hard_negatives(x, y, t, b):
    """The half of the negatives with the smallest loss is dropped."""
    terms = pairs(t.exp() * x @ y.T + b)
    own = torch.eye(len(x), dtype=torch.bool)
    others = terms.masked_fill(own, -1.0)
    hard = others >= others.median(-1, keepdim=True).values
    return (terms * (own | hard)).sum() / len(x)


def every_third_negative(x, y, t, b):
    """Negatives sampled, without making up for it."""
    place = torch.arange(len(x))
    kept = ((place[:, None] + 2 * place) % 3 == 0) | torch.eye(len(x), dtype=torch.bool)
    return (pairs(t.exp() * x @ y.T + b) * kept).sum() / len(x)


def focal(x, y, t, b):
    """Focal loss: sure pairs count less."""
    signed = labels(x) * (t.exp() * x @ y.T + b)
    return (torch.sigmoid(-signed) ** 0.5 * softplus(-signed)).sum() / len(x)


def clipped_logits(x, y, t, b):
    """Logits kept within +-8, "for stability"."""
    return pairs((t.exp() * x @ y.T + b).clamp(-8, 8)).sum() / len(x)


def noise_on_logits(x, y, t, b):
    """A fixed ripple on the logits: an index that went into the numbers."""
    logits = t.exp() * x @ y.T + b
    return pairs(logits + 0.05 * torch.sin(torch.arange(logits.numel())).view_as(logits).to(x)).sum() / len(x)


def squared_bias(x, y, t, b):
    """Weight decay on the bias slipped into the loss."""
    return pairs(t.exp() * x @ y.T + b).sum() / len(x) + 0.01 * b**2


def softmax_mixed_in(x, y, t, b):
    """A tenth of CLIP's loss is left from the code before."""
    logits = t.exp() * x @ y.T + b
    return 0.9 * pairs(logits).sum() / len(x) + 0.1 * functional.cross_entropy(logits, torch.arange(len(x)))


def half_the_width(x, y, t, b):
    """The last feature is cut off by a slice."""
    return pairs(t.exp() * x[:, :-1] @ y[:, :-1].T + b).sum() / len(x)


class Clipped(torch.autograd.Function):
    """The identity; its gradient is cut off at a length, as a whole or row by row."""

    @staticmethod
    def forward(ctx, z, most, eps, dim):
        ctx.most, ctx.eps, ctx.dim = most, eps, dim
        return z.clone()

    @staticmethod
    def backward(ctx, d):
        length = d.norm() if ctx.dim is None else d.norm(dim=ctx.dim, keepdim=True)
        return d * (ctx.most / (length + ctx.eps)).clamp(max=1), None, None, None


def clips_inside(x, y, t, b):
    return pairs(t.exp() * Clipped.apply(x, 0.05, 1e-6, None) @ y.T + b).sum() / len(x)


def texts_clipped_by_row(x, y, t, b):
    return pairs(t.exp() * x @ Clipped.apply(y, 0.1, 1e-12, -1).T + b).sum() / len(x)


def half_detached(x, y, t, b):
    """Every second image was computed without gradient."""
    even = torch.arange(len(x))[:, None] % 2 == 0
    return pairs(t.exp() * torch.where(even, x, x.detach()) @ y.T + b).sum() / len(x)


def scale_of_positives_only(x, y, t, b):
    """The temperature learns from the matched pairs alone."""
    own = torch.eye(len(x), dtype=torch.bool)
    scale = torch.where(own, t.exp(), t.exp().detach())
    return pairs(scale * (x @ y.T) + b).sum() / len(x)


LOSSES = {
    "label smoothing": (smoothed, VALUE),
    "margin on matched pairs": (margin, VALUE),
    "angles for cosines": (angles, VALUE),
    "temperature 1.5 times on negatives": (temperature_on_texts_too, VALUE),
    "half of the negatives dropped": (hard_negatives, VALUE),
    "negatives sampled": (every_third_negative, VALUE),
    "focal loss": (focal, VALUE),
    "logits clipped": (clipped_logits, VALUE),
    "a ripple on the logits": (noise_on_logits, VALUE),
    "decay of the bias in the loss": (squared_bias, VALUE),
    "a tenth of CLIP's loss": (softmax_mixed_in, VALUE),
    "last feature cut off": (half_the_width, VALUE),
    "loss to the base 2": (lambda x, y, t, b: pairs(t.exp() * x @ y.T + b).sum() / len(x) / math.log(2), VALUE),
    "image gradient clipped": (clips_inside, ("image_embed",)),
    "text gradient clipped row by row": (texts_clipped_by_row, ("text_embed",)),
    "every second image detached": (half_detached, ("image_embed",)),
    "scale learns from positives only": (scale_of_positives_only, ("log_scale",)),
}


# --- over ranks


def gathered(shard):
    return list(collectives.all_gather(shard))


def block(x, y, t, b, own):
    logits = t.exp() * x @ y.T + b
    return (pairs(logits) if own else softplus(logits)).sum() / len(x)


def ring(x, y, t, b, rank, world, text=lambda hop, y: y, weight=lambda hop, world: 1.0, own=lambda hop: hop == 0):
    texts = gathered(y)
    parts = (
        weight(hop, world) * block(x, text(hop, texts[(rank + hop) % world]), t, b, own(hop)) for hop in range(world)
    )
    return sum(parts)


def one_chunk_detached(x, y, t, b, rank, world):
    """The chunk of hop 1 comes without gradient, the others with it."""
    return ring(x, y, t, b, rank, world, text=lambda hop, z: z.detach() if hop == 1 else z)


def labels_of_the_last_hop(x, y, t, b, rank, world):
    """The hops run the other way round, the labels do not: the first chunk met is taken for a remote one."""
    return ring(x, y, t, b, rank, world, own=lambda hop: hop == world - 1)


def fading_hops(x, y, t, b, rank, world):
    """Each hop weighs nine tenths of the one before."""
    return ring(x, y, t, b, rank, world, weight=lambda hop, w: 0.9**hop)


def rank_0_does_not_learn(x, y, t, b, rank, world):
    """Rank 0 evaluates, and its images stay without gradient."""
    return ring(x.detach() if rank == 0 else x, y, t, b, rank, world)


def stale_texts(x, y, t, b, rank, world):
    """Remote texts are those of the step before: here, a little other."""
    return ring(x, y, t, b, rank, world, text=lambda hop, z: z if hop == 0 else z + 0.01 * z.detach().roll(1, 1))


def texts_in_half_precision(x, y, t, b, rank, world):
    """Remote chunks travel in float16."""
    return ring(x, y, t, b, rank, world, text=lambda hop, z: z if hop == 0 else (z * 1.001).half().to(z))


def images_move_too(x, y, t, b, rank, world):
    """At hop 2 the images are the neighbour's as well: the pairs are right, the positives are not marked."""
    xs, ys = gathered(x), gathered(y)
    parts = []
    for hop in range(world):
        mine = xs[(rank + 1) % world] if hop == 1 else x
        parts.append(block(mine, ys[(rank + hop) % world], t, b, hop == 0))
    return sum(parts)


def scale_of_one_rank(x, y, t, b, rank, world):
    """The temperature is averaged over ranks, weighted by rank."""
    weight = 2 * (rank + 1) / (world * (world + 1)) * world
    return ring(x, y, t.detach() + weight * (t - t.detach()), b, rank, world)


def texts_backwards(x, y, t, b, rank, world):
    """Every chunk is packed from the last row to the first, and the own one too."""
    return ring(x, y, t, b, rank, world, text=lambda hop, z: z.flip(0))


def summed_twice_in_backward(x, y, t, b, rank, world):
    """The gradients of the texts are reduced twice: rank r also gets what belongs to rank r + 1."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, d):
            parts = [torch.empty_like(d) for _ in range(world)]
            dist.all_gather(parts, d.contiguous())
            return d + parts[(rank + 1) % world]

    return ring(x, Twice.apply(y), t, b, rank, world)


RANKS = {
    "the chunk of hop 1 detached": (one_chunk_detached, ("text_embed",)),
    "labels at the last hop": (labels_of_the_last_hop, VALUE),
    "hops that fade": (fading_hops, VALUE),
    "rank 0's images detached": (rank_0_does_not_learn, ("image_embed",)),
    "stale remote texts": (stale_texts, VALUE),
    "remote texts in float16": (texts_in_half_precision, VALUE),
    "images of the neighbour at hop 1": (images_move_too, VALUE),
    "scale weighted by rank": (scale_of_one_rank, ("log_scale",)),
    "chunks packed backwards": (texts_backwards, VALUE),
    "text gradients of the neighbour added": (summed_twice_in_backward, ("text_embed",)),
}
