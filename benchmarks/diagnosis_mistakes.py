"""The catalogue's mistakes of a loss, alone and over ranks, in torch code as people write it."""

import torch
import torch.distributed as dist
from torch.distributed import nn as collectives
from torch.nn import functional


def block(x, y, scale, bias, positives=True, sign=1):
    logits = scale * x @ y.T + bias
    own = torch.eye(len(x), len(y), dtype=torch.bool) if positives else torch.zeros(len(x), len(y), dtype=torch.bool)
    return functional.softplus(sign * torch.where(own, -logits, logits), threshold=60).sum() / len(x)


class Backward(torch.autograd.Function):
    """The identity, with a gradient of its own."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return ctx.change(d), None


class NegativesOfTheWrongSign(torch.autograd.Function):
    """softplus, whose derivative is taken at the negated logit."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return functional.softplus(z, threshold=60)

    @staticmethod
    def backward(ctx, d):
        return d * torch.sigmoid(-ctx.saved_tensors[0])


def sigmoid_of_negatives(x, y, t, b):
    logits = t.exp() * x @ y.T + b
    own = torch.eye(len(x), dtype=torch.bool)
    terms = torch.where(own, functional.softplus(-logits, threshold=60), NegativesOfTheWrongSign.apply(logits))
    return terms.sum() / len(x)


def rounded_logits(x, y, t, b):
    logits = (t.exp() * x @ y.T + b).bfloat16().to(x.dtype)
    own = torch.eye(len(x), dtype=torch.bool)
    return functional.softplus(torch.where(own, -logits, logits), threshold=60).sum() / len(x)


def twice(change):
    return lambda x, y, t, b: block(change(x), change(y), t.exp(), b)


def scale_gradient_of_t(x, y, t, b):
    scale = t.detach().exp()
    return block(x, y, Backward.apply(t, lambda d: d) - t.detach() + scale, b)


def no_scale(z, t):
    return Backward.apply(z, lambda d: d / t.detach().exp())


# right: fn(image_embed, text_embed, log_scale, bias)
LOSSES = {
    "sum-vs-mean-vs-b2": lambda x, y, t, b: block(x, y, t.exp(), b) / len(x),
    "loss-not-divided": lambda x, y, t, b: block(x, y, t.exp(), b) * len(x),
    "both-directions-summed": lambda x, y, t, b: block(x, y, t.exp(), b) + block(y, x, t.exp(), b),
    "label-sign": lambda x, y, t, b: block(x, y, t.exp(), b, sign=-1),
    "negatives-missing": lambda x, y, t, b: functional.softplus(-((x * y).sum(1) * t.exp() + b), threshold=60).mean(),
    "logit-scale-not-exp": lambda x, y, t, b: block(x, y, t, b),
    "dscale-wrt-t": scale_gradient_of_t,
    "temperature-inverted": lambda x, y, t, b: block(x, y, (-t).exp(), b),
    "logit-scale-init": lambda x, y, t, b: block(x, y, 0 * t + 1 / 0.07, b),
    "scale-clamped": lambda x, y, t, b: block(x, y, t.exp().clamp(max=100), b),
    "logit-bias-dropped": lambda x, y, t, b: block(x, y, t.exp(), 0),
    "bias-subtracted": lambda x, y, t, b: block(x, y, t.exp(), -b),
    "normalised-again": twice(lambda z: z / z.norm(dim=-1, keepdim=True)),
    "log-one-plus-exp": lambda x, y, t, b: (
        (1 + ((1 - 2 * torch.eye(len(x))).to(x) * (t.exp() * x @ y.T + b)).exp()).log().sum() / len(x)
    ),
    "logits-low-precision": rounded_logits,
    "sigmoid-grad-of-negatives": sigmoid_of_negatives,
    "grad-without-scale": lambda x, y, t, b: block(no_scale(x, t), no_scale(y, t), t.exp(), b),
}


def gathered(shard, rank, world, grad=True):
    """Every rank's shard; with the gradient's way back, or without."""
    if grad:
        return list(collectives.all_gather(shard))
    parts = [torch.empty_like(shard) for _ in range(world)]
    dist.all_gather(parts, shard.detach())
    return parts


def hops(owners, grad=True, positives=None, change=None, divide=None):
    """A ring: owners(rank, world) -> whose texts are scored, hop by hop."""

    def loss(x, y, t, b, rank, world):
        texts = gathered(y, rank, world, grad)
        texts[rank] = y if not grad else texts[rank]
        total = 0
        for hop, owner in enumerate(owners(rank, world)):
            own = owner == rank if positives is None else positives(hop, owner, rank)
            other = change(hop, texts[owner]) if change else texts[owner]
            total = total + block(x, other, t.exp(), b, own) / (divide(x, world) if divide else 1)
        return total

    return loss


def ring(rank, world):
    return [(rank + hop) % world for hop in range(world)]


def own_slot(x, y, t, b, rank, world):
    xs, ys = gathered(x, rank, world, grad=False), gathered(y, rank, world, grad=False)
    xs[rank], ys[rank] = x, y
    return block(torch.cat(xs), torch.cat(ys), t.exp(), b)


def times_w(*tensors, world):
    return [Backward.apply(z, lambda d: d * world) for z in tensors]


def all_times_w(x, y, t, b, rank, world):
    return hops(ring)(*times_w(x, y, t, b, world=world), rank, world)


def embeds_times_w(x, y, t, b, rank, world):
    return hops(ring)(*times_w(x, y, world=world), t, b, rank, world)


def scalars_over_w(x, y, t, b, rank, world):
    t, b = (Backward.apply(z, lambda d: d / world) for z in (t, b))
    return hops(ring)(x, y, t, b, rank, world)


def to_the_neighbour(d, rank, world):
    parts = [torch.empty_like(d) for _ in range(world)]
    dist.all_gather(parts, d.contiguous())
    return parts[(rank + 1) % world]


def text_gradient_astray(x, y, t, b, rank, world):
    return hops(ring)(x, Backward.apply(y, lambda d: to_the_neighbour(d, rank, world)), t, b, rank, world)


# fn(image_shard, text_shard, log_scale, bias, rank, world_size); gradients are averaged afterwards
RANKS = {
    "gather-own-slot-one-over-w": own_slot,
    "gather-detached-cross-terms": hops(ring, grad=False),
    "grad-times-w": all_times_w,
    "embed-grad-times-w": embeds_times_w,
    "label-rank-offset": hops(ring, positives=lambda hop, owner, rank: owner == 0),
    "ring-received-buffer-zero": hops(ring, change=lambda hop, texts: texts * (hop != 1)),
    "ring-hop-missing": hops(lambda rank, world: ring(rank, world)[:-1]),
    "ring-hop-repeated": hops(lambda rank, world: ring(rank, world)[:-1] + ring(rank, world)[-2:-1]),
    "ring-own-block-double-counted": hops(
        lambda rank, world: [*ring(rank, world), rank], positives=lambda hop, owner, rank: hop == 0
    ),
    "text-grad-to-wrong-rank": text_gradient_astray,
    "remote-diagonal-as-positive": hops(ring, positives=lambda hop, owner, rank: True),
    "ring-local-b2": hops(ring, divide=lambda x, world: len(x)),
    "no-cross-rank-negatives": hops(lambda rank, world: [rank]),
    "scalar-grads-one-over-w": scalars_over_w,
}
