"""Wrong losses over ranks (and two right ones), written on 2026-11-29 by somebody who has not read the checker.

Truths: rank r of W holds b images x_r and b texts y_r; the local loss of SigLIP is
L_r = 1/b sum_{i in r} sum_{j of all ranks} softplus(-z_ij l_ij), and gradients are averaged over ranks (reduce="mean").
block(r, q) = 1/b sum_{i in r, j in q} softplus(-z_ij l_ij), with z = 1 on the diagonal of q = r, else -1;
none(r, q) is the same with z = -1 everywhere. "Right" gradient of the own texts: sum_q dL_q / dy_r.
"""

import jax
import jax.numpy as jnp
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812


def block(x, y, log_scale, bias, positive):
    logits = log_scale.exp() * x @ y.T + bias
    z = -torch.ones_like(logits)
    if positive:
        z = z + 2 * torch.eye(len(x), dtype=x.dtype, device=x.device)
    return -F.logsigmoid(z * logits).sum() / len(x)


class Gather(torch.autograd.Function):
    """All ranks' rows, (W, b, d); gradients are summed over ranks."""

    @staticmethod
    def forward(ctx, rows):
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


class GatherMean(Gather):
    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank()] / dist.get_world_size()


class GatherOwnFirst(torch.autograd.Function):
    """All ranks' rows, the own first."""

    @staticmethod
    def forward(ctx, rows):
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.stack(parts).roll(-dist.get_rank(), 0)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[0]


def exchange(rows, send_to, receive_from):
    rows = rows.contiguous()
    received = torch.empty_like(rows)
    requests = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, rows, send_to), dist.P2POp(dist.irecv, received, receive_from)]
    )
    for request in requests:
        request.wait()
    return received


class Hop(torch.autograd.Function):
    """Texts move one rank to the right; their gradients move back."""

    @staticmethod
    def forward(ctx, rows):
        rank, size = dist.get_rank(), dist.get_world_size()
        return exchange(rows, (rank + 1) % size, (rank - 1) % size)

    @staticmethod
    def backward(ctx, grad):
        rank, size = dist.get_rank(), dist.get_world_size()
        return exchange(grad, (rank - 1) % size, (rank + 1) % size)


class HopOnwards(Hop):
    @staticmethod
    def backward(ctx, grad):
        rank, size = dist.get_rank(), dist.get_world_size()
        return exchange(grad, (rank + 1) % size, (rank - 1) % size)


class SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def positive_on_rank_zero(image_shard, text_shard, log_scale, bias, rank, world_size):
    loss = 0
    for owner, texts in enumerate(Gather.apply(text_shard)):
        loss = loss + block(image_shard, texts, log_scale, bias, owner == 0)
    return loss


def one_hop_too_many(image_shard, text_shard, log_scale, bias, rank, world_size):
    loss = block(image_shard, text_shard, log_scale, bias, True)
    texts = text_shard
    for _ in range(world_size):
        texts = Hop.apply(texts)
        loss = loss + block(image_shard, texts, log_scale, bias, False)
    return loss


def gather_with_mean_backward(image_shard, text_shard, log_scale, bias, rank, world_size):
    texts = GatherMean.apply(text_shard)
    return sum(block(image_shard, texts[q], log_scale, bias, q == rank) for q in range(world_size))


def rolled_gradient(image_shard, text_shard, log_scale, bias, rank, world_size):
    texts = GatherOwnFirst.apply(text_shard)
    return sum(block(image_shard, texts[k], log_scale, bias, k == 0) for k in range(world_size))


def remote_blocks_averaged(image_shard, text_shard, log_scale, bias, rank, world_size):
    own = block(image_shard, text_shard, log_scale, bias, True)
    remote, texts = 0 * own, text_shard
    for _ in range(world_size - 1):
        texts = Hop.apply(texts)
        remote = remote + block(image_shard, texts, log_scale, bias, False)
    return own + remote / max(world_size - 1, 1)


def xor_partner(image_shard, text_shard, log_scale, bias, rank, world_size):
    texts = Gather.apply(text_shard)
    loss = block(image_shard, texts[rank], log_scale, bias, True)
    hop = 1
    while hop < world_size:
        partner = rank ^ hop
        if partner < world_size:
            loss = loss + block(image_shard, texts[partner], log_scale, bias, False)
        hop += 1
    return loss


def scalars_summed_inside(image_shard, text_shard, log_scale, bias, rank, world_size):
    log_scale, bias = SumGradient.apply(log_scale), SumGradient.apply(bias)
    texts = Gather.apply(text_shard)
    return sum(block(image_shard, texts[q], log_scale, bias, q == rank) for q in range(world_size))


def gradient_travels_onwards(image_shard, text_shard, log_scale, bias, rank, world_size):
    loss = block(image_shard, text_shard, log_scale, bias, True)
    texts = text_shard
    for _ in range(world_size - 1):
        texts = HopOnwards.apply(texts)
        loss = loss + block(image_shard, texts, log_scale, bias, False)
    return loss


def images_travel(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Right: the roles exchanged, as a loss on logits_per_text has it."""
    loss = block(text_shard, image_shard, log_scale, bias, True)
    images = image_shard
    for _ in range(world_size - 1):
        images = Hop.apply(images)
        loss = loss + block(text_shard, images, log_scale, bias, False)
    return loss


# -------------------------------------------------------------------------------------------------------------- JAX
def jax_block(x, y, log_scale, bias, positive):
    logits = jnp.exp(log_scale) * x @ y.T + bias
    z = -jnp.ones_like(logits)
    if positive:
        z = z + 2 * jnp.eye(len(x), dtype=logits.dtype)
    return -jax.nn.log_sigmoid(z * logits).sum() / len(x)


def ring_without_wrap(image_shard, text_shard, log_scale, bias, *, axis_name):
    size = jax.lax.axis_size(axis_name)
    loss = jax_block(image_shard, text_shard, log_scale, bias, True)
    texts = text_shard
    for _ in range(size - 1):
        texts = jax.lax.ppermute(texts, axis_name, [(i, i + 1) for i in range(size - 1)])
        loss = loss + jax_block(image_shard, texts, log_scale, bias, False)
    return loss


def strided_labels(image_shard, text_shard, log_scale, bias, *, axis_name):
    size = jax.lax.axis_size(axis_name)
    texts = jax.lax.all_gather(text_shard, axis_name, tiled=True)
    logits = jnp.exp(log_scale) * image_shard @ texts.T + bias
    own = jnp.arange(len(image_shard)) * size + jax.lax.axis_index(axis_name)
    z = jnp.where(own[:, None] == jnp.arange(len(texts)), 1.0, -1.0).astype(logits.dtype)
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def both_travel(image_shard, text_shard, log_scale, bias, *, axis_name):
    size = jax.lax.axis_size(axis_name)
    right = [(i, (i + 1) % size) for i in range(size)]
    loss = jax_block(image_shard, text_shard, log_scale, bias, True)
    pair = (image_shard, text_shard)
    for _ in range(size - 1):
        pair = jax.lax.ppermute(pair, axis_name, right)
        loss = loss + jax_block(*pair, log_scale, bias, False)
    return loss


def texts_travel_in_bfloat16(image_shard, text_shard, log_scale, bias, *, axis_name):
    size = jax.lax.axis_size(axis_name)
    right = [(i, (i + 1) % size) for i in range(size)]
    loss = jax_block(image_shard, text_shard, log_scale, bias, True)
    texts = text_shard.astype(jnp.bfloat16)
    for _ in range(size - 1):
        texts = jax.lax.ppermute(texts, axis_name, right)
        loss = loss + jax_block(image_shard, texts.astype(image_shard.dtype), log_scale, bias, False)
    return loss


def both_directions_at_once(image_shard, text_shard, log_scale, bias, *, axis_name):
    """Right: a ring in both directions, with a last single hop where the number of other ranks is odd."""
    size = jax.lax.axis_size(axis_name)
    right = [(i, (i + 1) % size) for i in range(size)]
    left = [(j, i) for i, j in right]
    loss = jax_block(image_shard, text_shard, log_scale, bias, True)
    from_left = from_right = text_shard
    for _ in range((size - 1) // 2):
        from_left = jax.lax.ppermute(from_left, axis_name, right)
        from_right = jax.lax.ppermute(from_right, axis_name, left)
        loss = loss + jax_block(image_shard, from_left, log_scale, bias, False)
        loss = loss + jax_block(image_shard, from_right, log_scale, bias, False)
    if (size - 1) % 2:
        from_left = jax.lax.ppermute(from_left, axis_name, right)
        loss = loss + jax_block(image_shard, from_left, log_scale, bias, False)
    return loss


WAY = {"scale": "log", "embeddings": "unit", "reduce": "mean", "value": "local"}

PROGRAMS = {
    "positives in rank 0's block": {
        "fn": positive_on_rank_zero,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "on every rank the diagonal of the block with rank 0's texts is positive, and the own diagonal negative (rank 0 is right): L_r = 1/b sum softplus(-z l) with z = 1 for text k of rank 0 and image k of rank r",
        "same": ["labels are offset: the positive of image k on every rank is global text k", "the offset rank * b of the labels is missing"],
    },
    "a hop too many": {
        "fn": one_hop_too_many,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "L_r plus none(r, r): the own texts come home and are counted a second time, as negatives",
        "same": ["W hops instead of W - 1", "own block counted twice, the second time all negative, own pairs included"],
    },
    "gather's backward takes the mean": {
        "fn": gather_with_mean_backward,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "d text_embed is 1/W times the right one; loss, d image_embed, d log_scale, d bias are right",
        "same": ["text gradients averaged over ranks twice", "text gradients too small by W"],
    },
    "gradients of rolled texts reduced": {
        "fn": rolled_gradient,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "d text_embed on every rank is sum_q d block(q, q) / d y_q, row by row: the sum over ranks of the gradients of their own blocks' texts, the same on all ranks; everything else is right",
        "same": ["the all-reduce adds up gradients of different ranks' texts, since they were rolled by the rank", "text gradients from other ranks' images are lost, and those of other ranks' own texts mixed in"],
    },
    "remote blocks averaged": {
        "fn": remote_blocks_averaged,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "block(r, r) + 1/(W-1) sum_{q != r} block(r, q)",
        "same": ["negatives of other ranks weigh 1/(W-1)", "right for W = 2"],
    },
    "partner by exclusive or": {
        "fn": xor_partner,
        "framework": "torch",
        "given": {"world_size": 3, **WAY},
        "truth": "rank r meets only those texts whose rank is r ^ h < W for 1 <= h < W: all for W a power of 2; for W = 3 ranks 1 and 2 never meet each other",
        "same": ["blocks (1, 2) and (2, 1) are missing at three ranks", "right where the number of ranks is a power of two"],
    },
    "scale and bias summed inside, too": {
        "fn": scalars_summed_inside,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "d log_scale and d bias are W times the right ones (each rank already has the sum over ranks before the mean); all else right",
        "same": ["gradients of scale and bias are all-reduced within the loss"],
    },
    "the hop's backward travels onwards": {
        "fn": gradient_travels_onwards,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "d text_embed on rank q is d block(q, q)/d y_q + sum_{h=1}^{W-1} d block(q-h, q-2h) / d y_{q-2h} (ranks modulo W); all else right",
        "same": ["gradients travel in the texts' direction and arrive at the wrong ranks", "the exchange's backward is not the reverse exchange", "right for W = 2", "gradient of the texts of rank p arrives, from h hops, at rank p + 2h"],
    },
    "right: images travel, texts stay": {
        "fn": images_travel,
        "framework": "torch",
        "given": {"world_size": 4, **WAY},
        "truth": "SigLIP's own",
        "same": ["the sum is cut by texts: rank r's part is of its own texts with all images; the mean over ranks and all gradients are SigLIP's"],
    },
    "ring without wrap-around": {
        "fn": ring_without_wrap,
        "framework": "jax",
        "given": {"world_size": 4, **WAY},
        "truth": "rank r meets the texts of ranks 0 .. r only; for each of the other W-1-r it sees zeros: b softplus(bias) (that is, b^2 pairs with similarity 0, over b), so no images or texts but a part of the bias's gradient",
        "same": ["ppermute without the pair (W-1, 0): blocks of ranks above are replaced by zero rows", "blocks q > r are missing, with softplus(bias) for each of their pairs"],
    },
    "labels strided over ranks": {
        "fn": strided_labels,
        "framework": "jax",
        "given": {"world_size": 4, **WAY},
        "truth": "the positive of image k on rank r is global text k W + r instead of r b + k",
        "same": ["labels as if pairs were dealt round-robin", "positives at the wrong texts"],
    },
    "images and texts both travel": {
        "fn": both_travel,
        "framework": "jax",
        "given": {"world_size": 4, **WAY},
        "truth": "on every rank block(r, r) + sum_{q != r} none(q, q): images meet only the texts of their own rank, W times, once with labels and W-1 times as all negatives",
        "same": ["no negatives from other ranks; own blocks counted W - 1 times more with own pairs as negatives", "global: mean over r of block(r, r) + (W-1) none(r, r)"],
    },
    "texts travel in bfloat16": {
        "fn": texts_travel_in_bfloat16,
        "framework": "jax",
        "given": {"world_size": 4, **WAY},
        "truth": "block(r, r) + sum_{q != r} block(r, q) with y_q rounded to bfloat16, and their gradients rounded to bfloat16 at every hop (and added in it)",
        "same": ["remote texts and the gradients that come back have 8 bits"],
    },
    "right: both directions at once": {
        "fn": both_directions_at_once,
        "framework": "jax",
        "given": {"world_size": 4, **WAY},
        "truth": "SigLIP's own",
        "same": [],
    },
}
