"""Sigmoid losses over ranks as people write them, 2026-12-01, by somebody who has not read the checker.

Twelve wrong ones, two right ones. W ranks of b pairs, B = W b; rank r holds rows r b to r b + b - 1 of both.
l_ij = t s_ij + bias, t = exp(log_scale), z_ij = 1 for own pairs, else -1.
Right: L_r = 1/b sum_{i of r} sum_{all j} softplus(-z_ij l_ij), L = mean_r L_r; gradients averaged over ranks (as DDP
does) unless `reduce` says otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from mpi.comm import ThreadComm

# ---------------------------------------------------------------- torch: what they share


class GatherLayer(torch.autograd.Function):
    """The one of many SimCLR ports: backward keeps the slice of this rank."""

    @staticmethod
    def forward(ctx, rows):
        everybody = [torch.zeros_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everybody, rows.contiguous())
        return tuple(everybody)

    @staticmethod
    def backward(ctx, *grads):
        return grads[dist.get_rank()].clone()


class GatherWithGrad(torch.autograd.Function):
    """As torch.distributed.nn.all_gather: backward adds what all ranks have for this slice."""

    @staticmethod
    def forward(ctx, rows):
        everybody = [torch.zeros_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everybody, rows.contiguous())
        return tuple(everybody)

    @staticmethod
    def backward(ctx, *grads):
        grads = torch.stack(grads)
        dist.all_reduce(grads)
        return grads[dist.get_rank()]


def neighbour_exchange(from_rank, to_rank, tensor):
    received = torch.zeros_like(tensor)
    send = dist.P2POp(dist.isend, tensor.contiguous(), to_rank)
    receive = dist.P2POp(dist.irecv, received, from_rank)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return received


class NeighbourExchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, from_rank, to_rank, tensor):
        ctx.from_rank, ctx.to_rank = from_rank, to_rank
        return neighbour_exchange(from_rank, to_rank, tensor)

    @staticmethod
    def backward(ctx, grad):
        return None, None, neighbour_exchange(ctx.to_rank, ctx.from_rank, grad)


def block_loss(image, text, log_scale, bias, negative_only=False):
    logits = log_scale.exp() * image @ text.t() + bias
    labels = -torch.ones_like(logits)
    if not negative_only:
        labels = labels + 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    return -F.logsigmoid(labels * logits).sum() / len(image)


# ---------------------------------------------------------------- torch


def gather_layer(image, text, log_scale, bias, rank, world_size):
    """Own images, everybody's texts, through GatherLayer."""
    b = len(image)
    all_text = torch.cat(GatherLayer.apply(text))
    logits = log_scale.exp() * image @ all_text.t() + bias
    labels = -torch.ones_like(logits)
    labels[torch.arange(b), rank * b + torch.arange(b)] = 1
    return -F.logsigmoid(labels * logits).sum() / b


def gather_both_whole_matrix(image, text, log_scale, bias, rank, world_size):
    """gather_features of open_clip without --gather-with-grad and --local-loss, then the whole matrix everywhere."""
    gathered_image = [torch.zeros_like(image) for _ in range(world_size)]
    gathered_text = [torch.zeros_like(text) for _ in range(world_size)]
    with torch.no_grad():
        dist.all_gather(gathered_image, image.contiguous())
        dist.all_gather(gathered_text, text.contiguous())
    gathered_image[rank] = image
    gathered_text[rank] = text
    return block_loss(torch.cat(gathered_image), torch.cat(gathered_text), log_scale, bias)


def wrapped_in_ddp(image, text, log_scale, bias, rank, world_size):
    """The single-GPU loss, put under DDP."""
    logits = log_scale.exp() * image @ text.t() + bias
    targets = torch.eye(len(logits), dtype=logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def labels_without_rank(image, text, log_scale, bias, rank, world_size):
    """open_clip's get_ground_truth of --local-loss, without its offset."""
    all_text = torch.cat(GatherWithGrad.apply(text))
    logits = log_scale.exp() * image @ all_text.t() + bias
    labels = 2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def both_ways_no_remainder(image, text, log_scale, bias, rank, world_size):
    """Texts go both ways at once; where W - 1 is odd, the last hop is left out."""
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    loss = block_loss(image, text, log_scale, bias)
    going_right = going_left = text
    for _ in range((world_size - 1) // 2):
        going_right = NeighbourExchange.apply(left, right, going_right)
        going_left = NeighbourExchange.apply(right, left, going_left)
        for other in (going_right, going_left):
            loss = loss + block_loss(image, other, log_scale, bias, negative_only=True)
    return loss


def own_block_again(image, text, log_scale, bias, rank, world_size):
    """dist_impl 'gather': the own block first, then all gathered ones as negatives."""
    loss = block_loss(image, text, log_scale, bias)
    for other in GatherWithGrad.apply(text):
        loss = loss + block_loss(image, other, log_scale, bias, negative_only=True)
    return loss


def positives_in_every_block(image, text, log_scale, bias, rank, world_size):
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    loss = block_loss(image, text, log_scale, bias)
    travelling = text
    for _ in range(world_size - 1):
        travelling = NeighbourExchange.apply(left, right, travelling)
        loss = loss + block_loss(image, travelling, log_scale, bias)
    return loss


def right_whole_matrix_everywhere(image, text, log_scale, bias, rank, world_size):
    """Everybody computes all of it; backward adds W equal gradients, and the mean over ranks divides by W."""
    image = torch.cat(GatherWithGrad.apply(image))
    text = torch.cat(GatherWithGrad.apply(text))
    logits = log_scale.exp() * image @ text.t() + bias
    off = F.softplus(logits.flatten()[1:].view(len(logits) - 1, -1)[:, :-1]).sum() if len(logits) > 1 else 0
    return (F.softplus(-logits.diagonal()).sum() + off) / len(logits)


# ---------------------------------------------------------------- JAX


def _jax_block(image, text, log_scale, bias, own):
    logits = jnp.exp(log_scale) * image @ text.T + bias
    z = 2 * own * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum() / image.shape[0]


def jax_global_divisor(image, text, log_scale, bias, axis_name):
    """Divided by the global batch, though a pmean of loss and gradients follows."""
    b = image.shape[0]
    everybody = jax.lax.all_gather(text, axis_name, tiled=True)
    logits = jnp.exp(log_scale) * image @ everybody.T + bias
    own = jnp.arange(everybody.shape[0])[None] == (jax.lax.axis_index(axis_name) * b + jnp.arange(b))[:, None]
    return jnp.where(own, jax.nn.softplus(-logits), jax.nn.softplus(logits)).sum() / everybody.shape[0]


def jax_same_neighbour(image, text, log_scale, bias, axis_name):
    """A ring whose every hop sends the texts of this rank, not those that came."""
    size = jax.lax.psum(1, axis_name)
    loss = _jax_block(image, text, log_scale, bias, 1)
    for _ in range(1, size):
        other = jax.lax.ppermute(text, axis_name, [(k, (k - 1) % size) for k in range(size)])
        loss = loss + _jax_block(image, other, log_scale, bias, 0)
    return loss


def jax_interleaved(image, text, log_scale, bias, axis_name):
    """Gathered along axis 1, so that texts of the ranks alternate; labels expect them rank after rank."""
    b, d = text.shape
    everybody = jax.lax.all_gather(text, axis_name, axis=1).reshape(-1, d)
    logits = jnp.exp(log_scale) * image @ everybody.T + bias
    index = jax.lax.axis_index(axis_name) * b + jnp.arange(b)
    z = 2 * jax.nn.one_hot(index, everybody.shape[0], dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(z * logits).sum(-1).mean()


def right_jax_images_travel(image, text, log_scale, bias, axis_name):
    """Texts stay, images go round in a scan; rank r has the columns of its texts. The mean over ranks is the loss."""
    size = jax.lax.psum(1, axis_name)
    t = jnp.exp(log_scale)
    ring = [(k, (k + 1) % size) for k in range(size)]
    own = t * image @ text.T + bias
    loss = jax.nn.softplus(own).sum(0).mean() - jnp.diagonal(own).mean()

    def hop(visitors, _):
        visitors = jax.lax.ppermute(visitors, axis_name, ring)
        return visitors, jax.nn.softplus(t * visitors @ text.T + bias).sum(0).mean()

    return loss + jax.lax.scan(hop, image, None, length=size - 1)[1].sum()


# ---------------------------------------------------------------- NumPy


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _all_reduced(x, comm):
    x = np.atleast_1d(np.asarray(x))
    total = np.empty_like(x)
    comm.Allreduce(x, total)
    return total


def _sent_on(array, comm, tag):
    received = np.empty_like(array)
    comm.Sendrecv(
        np.ascontiguousarray(array), (comm.rank - 1) % comm.size, tag, received, (comm.rank + 1) % comm.size, tag
    )
    return received


def _ring(image, text, log_scale, bias, comm, *, home):
    """Texts travel with their gradients; every rank's pairs are divided by B."""
    n = len(image) * comm.size
    t = np.exp(log_scale)
    loss, g_scale, g_bias = 0.0, 0.0, 0.0
    g_image, g_text, visitors = np.zeros_like(image), np.zeros_like(text), text
    for hop in range(comm.size):
        similarity = image @ visitors.T
        logits = t * similarity + bias
        labels = np.eye(len(image), dtype=image.dtype) if hop == 0 else np.zeros_like(similarity)
        loss += _softplus((1 - 2 * labels) * logits).sum() / n
        g = (np.exp(-_softplus(-logits)) - labels) / n
        g_image = g_image + (t * g @ visitors).astype(image.dtype)
        g_text = g_text + (t * g.T @ image).astype(text.dtype)
        g_scale += t * (g * similarity).sum()
        g_bias += g.sum()
        if hop < comm.size - 1 or home:
            visitors, g_text = _sent_on(visitors, comm, 1), _sent_on(g_text, comm, 2)
    return loss, g_image, g_text, g_scale, g_bias


def numpy_gradient_not_home(image, text, log_scale, bias, comm):
    """W - 1 hops: the loss needs no more, but the text gradients are still with a neighbour."""
    loss, g_image, g_text, g_scale, g_bias = _ring(image, text, log_scale, bias, comm, home=False)
    loss, g_scale, g_bias = (_all_reduced(x, comm)[0] for x in (loss, g_scale, g_bias))
    return loss, g_image, g_text, g_scale, g_bias


def numpy_scalars_of_own_rows(image, text, log_scale, bias, comm):
    """The loss is summed over ranks, the gradients of the two scalars are not."""
    loss, g_image, g_text, g_scale, g_bias = _ring(image, text, log_scale, bias, comm, home=True)
    return _all_reduced(loss, comm)[0], g_image, g_text, g_scale, g_bias


# ---------------------------------------------------------------- truths

LOG_UNIT = {"scale": "log", "embeddings": "unit"}


def _one(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": LOG_UNIT | given, "truth": truth, "same": list(same)}


PROGRAMS = {
    "GatherLayer keeps its slice": _one(
        gather_layer,
        "the value is right; text gradients that arise on other ranks are dropped: a text's gradient is only that "
        "from its own rank's images, "
        "divided by W in the mean over ranks (image, scale and bias gradients are right)",
        "no gradient through the texts gathered from other ranks",
        "remote texts are constants (detached); the text gradient comes from the own block only",
    ),
    "gathered without gradient, whole matrix": _one(
        gather_both_whole_matrix,
        "the value is right (global); after the mean over ranks, gradients of image and text embeddings are 1/W of"
        " the right ones; log_scale "
        "and bias are right",
        "embedding gradients are W times too small",
        "gathered embeddings of other ranks are detached and every rank divides by B, so that the mean over ranks "
        "divides by W once too often",
        value="global",
    ),
    "local negatives only": _one(
        wrapped_in_ddp,
        "negatives of the own rank only: 1/b sum over the b x b own block; pairs with other ranks' texts are missing",
        "no communication between ranks",
        "only the own block of every rank counts",
    ),
    "labels without the rank's offset": _one(
        labels_without_rank,
        "labels are 2 eye(b, B) - 1 without the offset rank*b: image i of every rank has text i of rank 0 as its "
        "positive; the own text is a negative on ranks > 0",
        "positives are at column i instead of rank*b + i",
        "right on rank 0 only; elsewhere positives are in the block of rank 0's texts",
    ),
    "both ways, no remainder": _one(
        both_ways_no_remainder,
        "the block of the opposite rank, (r + W/2) mod W, is missing when W is even; right when W is odd",
        "with W = 4 the texts of rank r + 2 are never met; with W = 2 only the own block counts",
        "one hop too few for an even number of ranks",
    ),
    "own block again as negatives": _one(
        own_block_again,
        "the own block is counted twice: once right, once more as negatives only: extra 1/b sum_{ij own} "
        "softplus(l_ij)",
        "own negatives have weight 2, and the own positives count as negatives, too",
        "the gathered own block is not left out",
    ),
    "positives in every block": _one(
        positives_in_every_block,
        "every block has positives on its diagonal: image i is positive with text i of every rank, W positives each",
        "remote blocks are labelled as the own one, negative_only is missing",
        "pairs (i of r, i of r') have label 1 for all r'",
    ),
    "JAX: divisor B, then the mean": _one(
        jax_global_divisor,
        "each rank divides its rows by B = W b, and loss and gradients are averaged: everything is 1/W of the "
        "right one",
        "the loss and all four gradients are W times too small",
        "divided by the global batch where the local one belongs (or: mean over ranks where a sum belongs)",
        framework="jax",
    ),
    "JAX: the same neighbour each hop": _one(
        jax_same_neighbour,
        "the own block is right; the texts of the next rank (r + 1) are counted W - 1 times as negatives, other "
        "ranks' texts never; with W = 2 it is right",
        "every hop sends the rank's own texts instead of the received ones",
        "block r + 1 has weight W - 1, the other remote blocks weight 0",
        framework="jax",
    ),
    "JAX: gathered along axis 1": _one(
        jax_interleaved,
        "gathered texts are interleaved (position j W + k holds text j of rank k) while labels expect rank after "
        "rank: the positive of image i of rank r is "
        "text (r b + i) div W of rank (r b + i) mod W",
        "labels do not match the order of the gathered texts",
        "the positives are at wrong texts (order of gathered texts permuted); the own text is a negative, but for few",
        framework="jax",
    ),
    "NumPy: gradients not sent home": _one(
        numpy_gradient_not_home,
        "the value, image, scale and bias gradients are right; each rank returns the finished text gradient of the"
        " rank before it, "
        "(r - 1) mod W, as it made W - 1 hops instead of W",
        "text gradients are at the wrong rank, shifted by one",
        "the last hop home of the text gradients is missing",
        framework="numpy",
        ranks=ThreadComm.run,
        reduce="none",
        value="global",
    ),
    "NumPy: scalars not reduced": _one(
        numpy_scalars_of_own_rows,
        "the value and the embedding gradients are right and final; the gradients of log_scale and bias are those "
        "of the rank's own images only, not summed over ranks",
        "scale and bias gradients lack the Allreduce, each rank has its part",
        "log_scale and bias gradients are of own rows only, about 1/W of the right ones, and differ between ranks",
        framework="numpy",
        ranks=ThreadComm.run,
        reduce="none",
        value="global",
    ),
    "right: whole matrix everywhere": _one(right_whole_matrix_everywhere, "SigLIP's own", value="global"),
    "right: JAX, images travel": _one(right_jax_images_travel, "SigLIP's own", framework="jax"),
}
