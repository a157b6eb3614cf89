"""Wrong losses over ranks (and two right ones), written on 2026-11-29 by somebody who has not read the checker.

Truths: rank r of W holds b images x_r and b texts y_r; B = W b. block(r, q) = 1/b sum_{i in r, j in q} softplus(-z_ij l_ij)
with z = 1 on the diagonal of q = r, else -1; none(r, q) is the same with z = -1 everywhere.
SigLIP's local loss: L_r = sum_q block(r, q), averaged over ranks, as the gradients are (reduce="mean", value="local").
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from mpi.comm import ThreadComm


def pairs(logits, own):
    """The sum of a block's costs, not yet divided."""
    z = -torch.ones_like(logits)
    if own:
        z = z + 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    return -F.logsigmoid(z * logits).sum()


def send_and_receive(rows, to, source):
    rows = rows.contiguous()
    received = torch.empty_like(rows)
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, rows, to), dist.P2POp(dist.irecv, received, source)]):
        work.wait()
    return received


class Shift(torch.autograd.Function):
    """Rows go `by` ranks on; gradients come back the same way."""

    @staticmethod
    def forward(ctx, rows, by):
        rank, size = dist.get_rank(), dist.get_world_size()
        ctx.ends = (rank + by) % size, (rank - by) % size
        return send_and_receive(rows, *ctx.ends)

    @staticmethod
    def backward(ctx, grad):
        return send_and_receive(grad, *ctx.ends[::-1]), None


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


# ----------------------------------------------------------------------------------------------------------- torch
def own_first_labels_by_rank(image_shard, text_shard, log_scale, bias, rank, world_size):
    """[own, others] as SimCLR has it, but labels as if gathered in the order of ranks."""
    b = len(image_shard)
    everyone = Gather.apply(text_shard)
    texts = torch.cat([everyone[rank], *(everyone[q] for q in range(world_size) if q != rank)])
    logits = log_scale.exp() * image_shard @ texts.T + bias
    labels = -torch.ones_like(logits)
    labels[torch.arange(b), rank * b + torch.arange(b)] = 1
    return -F.logsigmoid(labels * logits).sum() / b


def neighbour_again_and_again(image_shard, text_shard, log_scale, bias, rank, world_size):
    """The loop sends text_shard, instead of what came."""
    scale = log_scale.exp()
    total = pairs(scale * image_shard @ text_shard.T + bias, True)
    for _ in range(world_size - 1):
        texts = Shift.apply(text_shard, 1)
        total = total + pairs(scale * image_shard @ texts.T + bias, False)
    return total / len(image_shard)


def remote_scalars_as_numbers(image_shard, text_shard, log_scale, bias, rank, world_size):
    scale = log_scale.exp()
    total = pairs(scale * image_shard @ text_shard.T + bias, True)
    texts, factor, offset = text_shard, scale.item(), bias.item()
    for _ in range(world_size - 1):
        texts = Shift.apply(texts, 1)
        total = total + pairs(factor * image_shard @ texts.T + offset, False)
    return total / len(image_shard)


class Packed(torch.autograd.Function):
    """What comes from others has been in bfloat16; gradients travel as they are."""

    @staticmethod
    def forward(ctx, rows):
        return rows.bfloat16().to(rows.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad


def remote_texts_in_bfloat16(image_shard, text_shard, log_scale, bias, rank, world_size):
    scale = log_scale.exp()
    total = pairs(scale * image_shard @ text_shard.T + bias, True)
    texts = Packed.apply(text_shard)
    for _ in range(world_size - 1):
        texts = Shift.apply(texts, -1)
        total = total + pairs(scale * image_shard @ texts.T + bias, False)
    return total / len(image_shard)


def own_node_only(image_shard, text_shard, log_scale, bias, rank, world_size):
    """LOCAL_RANK and a node of two devices, where the group should be the world."""
    per_node = 2
    everyone = Gather.apply(text_shard)
    first = rank // per_node * per_node
    total = 0.0
    for q in range(first, min(first + per_node, world_size)):
        total = total + pairs(log_scale.exp() * image_shard @ everyone[q].T + bias, q == rank)
    return total / len(image_shard)


def own_negatives_twice(image_shard, text_shard, log_scale, bias, rank, world_size):
    """The own block by itself; then all gathered texts as negatives, own pairs masked, the own block not."""
    b = len(image_shard)
    scale = log_scale.exp()
    own = pairs(scale * image_shard @ text_shard.T + bias, True)
    logits = scale * image_shard @ Gather.apply(text_shard).flatten(0, 1).T + bias
    masked = torch.ones_like(logits)
    masked[torch.arange(b), rank * b + torch.arange(b)] = 0
    return (own - (masked * F.logsigmoid(-logits)).sum()) / b


def both_ways_without_the_last_hop(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Two neighbours a round; for an even number of ranks one is left, and forgotten."""
    scale = log_scale.exp()
    total = pairs(scale * image_shard @ text_shard.T + bias, True)
    right = left = text_shard
    for _ in range((world_size - 1) // 2):
        right, left = Shift.apply(right, 1), Shift.apply(left, -1)
        total = total + pairs(scale * image_shard @ right.T + bias, False)
        total = total + pairs(scale * image_shard @ left.T + bias, False)
    return total / len(image_shard)


class FusedRing(torch.autograd.Function):
    """One trip: texts and their gradients travel together. Nothing is kept but gradients."""

    @staticmethod
    def forward(ctx, x, y, log_scale, bias):
        rank, size, b = dist.get_rank(), dist.get_world_size(), len(x)
        scale = log_scale.exp()
        loss, d_x, d_y = 0.0, torch.zeros_like(x), torch.zeros_like(y)
        for hop in range(size):
            sim = x @ y.T
            z = -torch.ones_like(sim)
            if hop == 0:
                z = z + 2 * torch.eye(b, dtype=x.dtype, device=x.device)
            logits = z * (scale * sim + bias)
            loss = loss - F.logsigmoid(logits).sum() / b
            grad = -z * torch.sigmoid(-logits) / b
            d_x += scale * grad @ y
            d_y += scale * grad.T @ x
            d_log_scale, d_bias = scale * (grad * sim).sum(), grad.sum()
            both = send_and_receive(torch.stack([y, d_y]), (rank + 1) % size, (rank - 1) % size)
            y, d_y = both[0], both[1]
        ctx.save_for_backward(d_x, d_y, d_log_scale.reshape(log_scale.shape), d_bias.reshape(bias.shape))
        return loss.reshape(())

    @staticmethod
    def backward(ctx, grad_output):
        return tuple(grad_output * saved for saved in ctx.saved_tensors)


def scalars_of_the_last_block(image_shard, text_shard, log_scale, bias, rank, world_size):
    return FusedRing.apply(image_shard, text_shard, log_scale, bias)


# ------------------------------------------------------------------------------------------------------------- jax
def images_stopped_in_remote_blocks(image_shard, text_shard, log_scale, bias, *, axis_name):
    """The ring is 'only for the texts', so images are constants in it."""
    size = jax.lax.psum(1, axis_name)
    b = len(image_shard)
    scale = jnp.exp(log_scale)
    z = 2 * jnp.eye(b, dtype=image_shard.dtype) - 1
    total = -jax.nn.log_sigmoid(z * (scale * image_shard @ text_shard.T + bias)).sum()
    images, texts = jax.lax.stop_gradient(image_shard), text_shard
    for _ in range(size - 1):
        texts = jax.lax.ppermute(texts, axis_name, [(q, (q - 1) % size) for q in range(size)])
        total = total - jax.nn.log_sigmoid(-(scale * images @ texts.T + bias)).sum()
    return total / b


def gathered_interleaved(image_shard, text_shard, log_scale, bias, *, axis_name):
    """all_gather with axis=1, flattened: text k of all ranks, then text k + 1."""
    b = len(image_shard)
    texts = jax.lax.all_gather(text_shard, axis_name, axis=1).reshape(-1, text_shard.shape[-1])
    logits = jnp.exp(log_scale) * image_shard @ texts.T + bias
    own = jnp.arange(len(texts)) == (jax.lax.axis_index(axis_name) * b + jnp.arange(b))[:, None]
    return jax.nn.softplus(jnp.where(own, -logits, logits)).sum() / b


# ----------------------------------------------------------------------------------------------------------- numpy
def numpy_ring(image_shard, text_shard, log_scale, bias, comm, value_divisor, own_twice):
    """Texts travel with their gradients, which are final when they are home."""
    rank, size, b = comm.rank, comm.size, len(image_shard)
    scale, total = np.exp(log_scale), b * comm.size
    d_image, travelling = np.zeros_like(image_shard), np.stack([text_shard, np.zeros_like(text_shard)])
    sums = np.zeros(3)
    own = 0.0
    for hop in range(size):
        texts = travelling[0]
        sim = image_shard @ texts.T
        z = -np.ones_like(sim)
        if hop == 0:
            np.fill_diagonal(z, 1)
        signed = z * (scale * sim + bias)
        grad = -z * np.exp(-np.logaddexp(0, signed)) / total
        sums += np.logaddexp(0, -signed).sum() / value_divisor(b, size), scale * (grad * sim).sum(), grad.sum()
        d_image += scale * grad @ texts
        d_text = scale * grad.T @ image_shard
        travelling[1] += d_text
        if hop == 0 and own_twice:
            own = d_text
        received = np.empty_like(travelling)
        comm.Sendrecv(np.ascontiguousarray(travelling), (rank - 1) % size, 0, received, (rank + 1) % size, 0)
        travelling = received
    everywhere = np.empty_like(sums)
    comm.Allreduce(sums, everywhere)
    return everywhere[0], d_image, travelling[1] + own, everywhere[1], everywhere[2]


def value_of_local_means_summed(image_shard, text_shard, log_scale, bias, comm):
    """The value is the sum over ranks of means over the shard; gradients are divided by the global batch."""
    return numpy_ring(image_shard, text_shard, log_scale, bias, comm, lambda b, size: b, False)


def own_text_gradient_twice(image_shard, text_shard, log_scale, bias, comm):
    """The own block's gradient sets out with the texts, and is added once more to what comes home."""
    return numpy_ring(image_shard, text_shard, log_scale, bias, comm, lambda b, size: b * size, True)


# ------------------------------------------------------------------------------------------------------ right ones
def scale_travels_with_texts(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Rows are sent ready to use: scale y. The scale's gradient comes back with them, to the rank whose texts they are."""
    texts = log_scale.exp() * text_shard
    total = pairs(image_shard @ texts.T + bias, True)
    for _ in range(world_size - 1):
        texts = Shift.apply(texts, -1)
        total = total + pairs(image_shard @ texts.T + bias, False)
    return total / len(image_shard)


def everybody_computes_everything(image_shard, text_shard, log_scale, bias, rank, world_size):
    """Both sides gathered with gradient: each rank has the global loss."""
    images, texts = (Gather.apply(rows).flatten(0, 1) for rows in (image_shard, text_shard))
    return pairs(log_scale.exp() * images @ texts.T + bias, True) / len(images)


UNIT = {"scale": "log", "embeddings": "unit"}
WAY = {**UNIT, "reduce": "mean", "value": "local", "world_size": 4}
THREADS = {**UNIT, "reduce": "none", "value": "global", "world_size": 4, "ranks": ThreadComm.run}
PROGRAMS = {
    "own first, labels by rank": {
        "fn": own_first_labels_by_rank,
        "framework": "torch",
        "given": WAY,
        "truth": "the positives of rank r >= 1 are the texts of rank r - 1 (image k of r with text k of r - 1), and the own pairs are negative; rank 0 is right. All blocks are met once. L_r = none(r, r) + ... with z = 1 on the diagonal of (r, r - 1)",
        "same": ["labels are offset by rank * b in an order in which the own texts are first", "the positive of image k of rank r is text k of the rank before", "own block all negative, the previous rank's diagonal positive, but on rank 0"],
    },
    "the same neighbour again and again": {
        "fn": neighbour_again_and_again,
        "framework": "torch",
        "given": WAY,
        "truth": "L_r = block(r, r) + (W - 1) none(r, r - 1 mod W): the texts of the rank before are met in every hop, those of all others never (right for W = 2)",
        "same": ["each hop sends the own texts, not those that came", "one remote block counted W - 1 times, the W - 2 others missing", "each text's gradient is that of the own rank, plus W - 1 times that of the next rank"],
    },
    "remote scale and bias are numbers": {
        "fn": remote_scalars_as_numbers,
        "framework": "torch",
        "given": WAY,
        "truth": "value, d image, d text right; d log_scale and d bias are those of the own blocks only: 1/W sum_r d block(r, r)",
        "same": ["remote blocks (negatives of other ranks) give scale and bias no gradient", "scale and bias are detached in remote blocks", "d bias lacks sum of sigmoid(l) over pairs of two ranks"],
    },
    "remote texts in bfloat16": {
        "fn": remote_texts_in_bfloat16,
        "framework": "torch",
        "given": WAY,
        "truth": "remote blocks use bf16(y_q), the own block the exact y_r; gradients are those of that loss, straight through the rounding: d image = scale G bf16(y) for remote texts, too",
        "same": ["texts of other ranks are rounded to bfloat16 (8 bits)", "what travels is in bfloat16"],
    },
    "own node only": {
        "fn": own_node_only,
        "framework": "torch",
        "given": WAY,
        "truth": "ranks 2n and 2n + 1 meet each other only: L_r = block(r, r) + none(r, r xor 1); the last rank of an odd W meets itself only. Divided by b as it should",
        "same": ["negatives only from the own node of two ranks", "blocks (r, q) with r // 2 != q // 2 are missing"],
    },
    "own negatives twice": {
        "fn": own_negatives_twice,
        "framework": "torch",
        "given": WAY,
        "truth": "L_r plus the negatives of the own block once more: L_r + 1/b sum_{i != j in r} softplus(l_ij); positives once",
        "same": ["own block's negatives are counted twice", "pairs of two different rows of one rank have weight 2"],
    },
    "both ways, last hop missing": {
        "fn": both_ways_without_the_last_hop,
        "framework": "torch",
        "given": WAY,
        "truth": "for even W the block of rank r with the texts of rank r + W/2 is missing (value and gradients); right for odd W",
        "same": ["the opposite rank is never met if the number of ranks is even", "W = 2: only the own block"],
    },
    "scalars of the last block": {
        "fn": scalars_of_the_last_block,
        "framework": "torch",
        "given": WAY,
        "truth": "value, d image, d text right; d log_scale and d bias are those of the last block only, that is none(r, r + 1 mod W): (1/W) sum_r d none(r, r + 1)",
        "same": ["d log_scale and d bias are overwritten in each hop instead of added up", "only the negatives with the next rank's texts give scale and bias a gradient; own block missing"],
    },
    "images stopped in remote blocks": {
        "fn": images_stopped_in_remote_blocks,
        "framework": "jax",
        "given": WAY,
        "truth": "value, d text, d log_scale, d bias right; d image is that of the own block only: d block(r, r) / d x_r",
        "same": ["images get no gradient from other ranks' texts", "d image lacks the remote negatives"],
    },
    "gathered, interleaved": {
        "fn": gathered_interleaved,
        "framework": "jax",
        "given": WAY,
        "truth": "all texts are met once, but the positive of image k of rank r is text m // W of rank m mod W, m = r b + k; own pairs are negatives (but where both are the same)",
        "same": ["texts are gathered in the order (text, rank), labels are of the order (rank, text)", "positives are permuted: global image m has the text of rank m mod W, row m // W", "gathered along axis 1"],
    },
    "value of local means summed": {
        "fn": value_of_local_means_summed,
        "framework": "numpy",
        "given": THREADS,
        "truth": "the value is W times the right one, all gradients are right",
        "same": ["the value is divided by b instead of the global batch B = W b", "sum over ranks of L_r instead of the mean"],
    },
    "own text gradient twice": {
        "fn": own_text_gradient_twice,
        "framework": "numpy",
        "given": THREADS,
        "truth": "value, d image, d log_scale, d bias right; d text has the own block's part twice: right + (1/W) d block(r, r) / d y_r",
        "same": ["the own block is counted twice in d text", "d y_r = 2 (own rank's part) + parts of all others"],
    },
    "right: scale travels with texts": {"fn": scale_travels_with_texts, "framework": "torch", "given": WAY, "truth": "SigLIP's own"},
    "right: everybody computes everything": {
        "fn": everybody_computes_everything,
        "framework": "torch",
        "given": {**WAY, "value": "global"},
        "truth": "SigLIP's own",
    },
}
