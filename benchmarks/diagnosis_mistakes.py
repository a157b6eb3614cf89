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


class Untransposed(torch.autograd.Function):
    """x @ y.T, whose second gradient takes the matrix as it is."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.given = x, y
        return x @ y.T

    @staticmethod
    def backward(ctx, d):
        x, y = ctx.given
        return d @ y, d @ x


def text_side_untransposed(x, y, t, b):
    logits = t.exp() * Untransposed.apply(x, y) + b
    return functional.softplus(
        torch.where(torch.eye(len(x), dtype=torch.bool), -logits, logits), threshold=60
    ).sum() / len(x)


def log_of_sigmoid(x, y, t, b):
    labels = 2 * torch.eye(len(x)).to(x) - 1
    return -torch.log(torch.sigmoid(labels * (t.exp() * x @ y.T + b))).sum() / len(x)


def accumulated(x, y, t, b):
    """Four passes of the right loss over kept embeddings, each of which counts scale and bias once more."""
    t, b = (Backward.apply(z, lambda d: 4 * d) for z in (t, b))
    return block(x, y, t.exp(), b)


def unit(z):
    return z / z.norm(dim=-1, keepdim=True)


# fn(image_embed, text_embed, log_scale, bias), given unit rows
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
    "text-grad-not-transposed": text_side_untransposed,
    "log-of-sigmoid": log_of_sigmoid,
    "logit-bias-init": lambda x, y, t, b: block(x, y, t.exp(), b - b.detach()),
    "accum-loss-not-divided": lambda x, y, t, b: 4 * block(x, y, t.exp(), b),
    "accum-cached-not-divided": accumulated,
}

# the same, given rows of any length
RAW_LOSSES = {
    "features-not-normalised": lambda x, y, t, b: block(x, y, t.exp(), b),
    "one-side-not-normalised": lambda x, y, t, b: block(x, unit(y), t.exp(), b),
    "normalised-by-whole-matrix": lambda x, y, t, b: block(x / x.norm(), y / y.norm(), t.exp(), b),
    "normalise-backward-missing": lambda x, y, t, b: block(
        x / x.norm(dim=-1, keepdim=True).detach(), y / y.norm(dim=-1, keepdim=True).detach(), t.exp(), b
    ),
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


def unequal(x, y, t, b, rank, world):
    """Right but for its divisor: every rank divides by its own number of pairs."""
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(y)]))
    most = max(int(size) for size in sizes)
    padded = torch.cat([y, torch.zeros(most - len(y), y.shape[1]).to(y)])
    texts = [part[: int(size)] for part, size in zip(gathered(padded, rank, world), sizes, strict=True)]
    return sum(block(x, texts[owner], t.exp(), b, owner == rank) for owner in range(world))


def outside_of_ddp(x, y, t, b, rank, world):
    """Gradients of the embeddings are final; those of scale and bias wait for a wrapper that does not know them."""
    x, y = (Backward.apply(z, lambda d: d / world) for z in (x, y))
    loss = hops(ring)(x, y, t, b, rank, world)
    dist.all_reduce(whole := loss.detach() / world)
    return loss + (whole - loss).detach()


# fn(image_shard, text_shard, log_scale, bias, rank, world_size); gradients are averaged afterwards, but see below
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
    "uneven-last-batch": unequal,
    "ddp-bypassed": outside_of_ddp,
}
UNEQUAL = {"uneven-last-batch"}
FINAL = {"ddp-bypassed"}
