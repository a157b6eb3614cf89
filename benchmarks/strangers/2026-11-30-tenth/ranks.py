"""Sigmoid losses over ranks as people write them: 12 wrong ones, 2 right ones. For sr.check_ranks.

In the truths: W ranks with b pairs each, B = W b; block (r, q) is the images of rank r with the texts of rank q, its
pairs are positives on the diagonal where r = q and negatives elsewhere. A right rank returns
L_r = 1/b (all pairs of its images with all texts), the gradients are averaged over ranks. "d text_r" and so on are the
gradients after what `reduce` says; G is the gradient by a block's logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F  # noqa: N812

from mpi.comm import ThreadComm


def _loss(image, text, log_scale, bias, negative_only=False):
    """OpenCLIP's `_loss`: a block, summed, over the number of images."""
    logits = log_scale.exp() * image @ text.T + bias
    labels = -torch.ones_like(logits)
    if not negative_only:
        labels = 2 * torch.eye(len(image), dtype=logits.dtype) + labels
    return -F.logsigmoid(labels * logits).sum() / image.shape[0]


def _rows(image, texts, log_scale, bias, first):
    """The images of one rank with all texts; image i's text is number first + i."""
    logits = log_scale.exp() * image @ texts.T + bias
    labels = torch.zeros_like(logits)
    index = torch.arange(len(image))
    labels[index, index + first] = 1.0
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(image)


def _gathered(tensor, world_size):
    """All ranks' rows, of which none has a gradient."""
    parts = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(parts, tensor.detach().contiguous())
    return parts


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
    def backward(ctx, grad_output):
        return None, None, neighbour_exchange(ctx.to_rank, ctx.from_rank, grad_output)


class NeighbourExchangeSameWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, from_rank, to_rank, tensor):
        ctx.from_rank, ctx.to_rank = from_rank, to_rank
        return neighbour_exchange(from_rank, to_rank, tensor)

    @staticmethod
    def backward(ctx, grad_output):
        return None, None, neighbour_exchange(ctx.from_rank, ctx.to_rank, grad_output)


# ---------------------------------------------------------------- gathered


def gather_without_gradient(image, text, log_scale, bias, rank, world_size):
    texts = _gathered(text, world_size)
    texts[rank] = text  # own ones keep their gradient
    return _rows(image, torch.cat(texts), log_scale, bias, rank * len(image))


def everything_on_every_rank(image, text, log_scale, bias, rank, world_size):
    images, texts = _gathered(image, world_size), _gathered(text, world_size)
    images[rank], texts[rank] = image, text
    return _loss(torch.cat(images), torch.cat(texts), log_scale, bias)


def times_world_size(image, text, log_scale, bias, rank, world_size):
    """DDP divides by the number of ranks, so the loss is multiplied by it."""
    images, texts = _gathered(image, world_size), _gathered(text, world_size)
    images[rank], texts[rank] = image, text
    return _loss(torch.cat(images), torch.cat(texts), log_scale, bias) * world_size


def eye_without_offset(image, text, log_scale, bias, rank, world_size):
    texts = torch.cat(dist_nn.all_gather(text.contiguous()))
    logits = log_scale.exp() * image @ texts.T + bias
    labels = 2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def global_divisor(image, text, log_scale, bias, rank, world_size):
    texts = torch.cat(dist_nn.all_gather(text.contiguous()))
    loss = _rows(image, texts, log_scale, bias, rank * len(image))
    return loss * len(image) / len(texts)  # over the global batch


def local_pairs(image, text, log_scale, bias, rank, world_size):
    """The Trainer wraps the model in DDP, which does the rest."""
    return _loss(image, text, log_scale, bias)


# ---------------------------------------------------------------- exchanged


def diagonal_of_every_block(image, text, log_scale, bias, rank, world_size):
    loss = _loss(image, text, log_scale, bias)
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    for _ in range(world_size - 1):
        text = NeighbourExchange.apply(left, right, text)
        loss = loss + _loss(image, text, log_scale, bias)
    return loss


def never_handed_on(image, text, log_scale, bias, rank, world_size):
    loss = _loss(image, text, log_scale, bias)
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    for _ in range(world_size - 1):
        text_from_left = NeighbourExchange.apply(left, right, text)
        loss = loss + _loss(image, text_from_left, log_scale, bias, negative_only=True)
    return loss


def gradient_the_same_way(image, text, log_scale, bias, rank, world_size):
    loss = _loss(image, text, log_scale, bias)
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    for _ in range(world_size - 1):
        text = NeighbourExchangeSameWay.apply(left, right, text)
        loss = loss + _loss(image, text, log_scale, bias, negative_only=True)
    return loss


def bidirectional_without_remainder(image, text, log_scale, bias, rank, world_size):
    loss = _loss(image, text, log_scale, bias)
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    to_right = to_left = text
    for _ in range((world_size - 1) // 2):
        to_right = NeighbourExchange.apply(left, right, to_right)
        to_left = NeighbourExchange.apply(right, left, to_left)
        for other in (to_right, to_left):
            loss = loss + _loss(image, other, log_scale, bias, negative_only=True)
    return loss


def right_all_reduce(image, text, log_scale, bias, rank, world_size):
    """The texts of one rank at a time, by an all_reduce of zeros and them."""
    loss = _loss(image, text, log_scale, bias)
    for other in range(world_size):
        text_from_other = dist_nn.all_reduce(text * float(rank == other))
        loss = loss + float(rank != other) * _loss(image, text_from_other, log_scale, bias, negative_only=True)
    return loss


# ---------------------------------------------------------------- JAX


def open_chain(zimg, ztxt, t_prime, b, axis_name):
    """ppermute to the next rank."""
    size = jax.lax.psum(1, axis_name)
    n = zimg.shape[0]
    to_next = [(k, k + 1) for k in range(size - 1)]
    logits = zimg @ ztxt.T * jnp.exp(t_prime) + b
    loss = -jax.nn.log_sigmoid((2 * jnp.eye(n) - 1) * logits).sum()
    for _ in range(size - 1):
        ztxt = jax.lax.ppermute(ztxt, axis_name, to_next)
        loss -= jax.nn.log_sigmoid(-(zimg @ ztxt.T * jnp.exp(t_prime) + b)).sum()
    return loss / n


def right_rows_and_columns(zimg, ztxt, t_prime, b, axis_name):
    """Own images with all texts and own texts with all images, half of each."""
    n = zimg.shape[0]
    images = jax.lax.all_gather(zimg, axis_name, tiled=True)
    texts = jax.lax.all_gather(ztxt, axis_name, tiled=True)
    own = jax.lax.axis_index(axis_name) * n + jnp.arange(n)
    z = 2 * (own[:, None] == jnp.arange(len(texts))) - 1

    def half(rows, others):
        return -jax.nn.log_sigmoid(z * (rows @ others.T * jnp.exp(t_prime) + b)).sum(1).mean()

    return (half(zimg, texts) + half(ztxt, images)) / 2


# ---------------------------------------------------------------- NumPy


def scalars_stay_at_home(image, text, log_scale, bias, comm):
    """Divided by the global batch; loss and text gradients are summed over ranks."""
    n, width = text.shape
    total = n * comm.size
    mine = slice(comm.rank * n, (comm.rank + 1) * n)
    padded = np.zeros((total, width), text.dtype)
    padded[mine] = text
    texts = np.empty_like(padded)
    comm.Allreduce(padded, texts)

    scale = np.exp(log_scale)
    logits = scale * image @ texts.T + bias
    labels = np.zeros_like(logits)
    labels[:, mine] = np.eye(n)
    value = np.array([(np.logaddexp(0, logits) - labels * logits).sum() / total])
    grad = (0.5 * (1 + np.tanh(logits / 2)) - labels) / total
    d_texts, whole = np.empty_like(texts), np.empty_like(value)
    comm.Allreduce(np.ascontiguousarray(scale * grad.T @ image, dtype=texts.dtype), d_texts)
    comm.Allreduce(value, whole)
    return (
        whole[0],
        scale * grad @ texts,
        d_texts[mine],
        np.asarray((grad * (logits - bias)).sum()).reshape(np.shape(log_scale)),
        np.asarray(grad.sum()).reshape(np.shape(bias)),
    )


# ---------------------------------------------------------------- truths


def _wrong(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

PROGRAMS = {
    "gather without gradient": _wrong(
        gather_without_gradient,
        "value, d image, d log_scale, d bias are right; d text_r is only that of block (r, r), with its own images: "
        "the part of the images of the W - 1 other ranks is missing",
        "the gathered texts of other ranks are constants; text gradients do not go back to their owners",
        "d text lacks the negatives of other ranks' images: 1/B t G^T x of the own block only",
    ),
    "everything on every rank": _wrong(
        everything_on_every_rank,
        "the value (global), d log_scale and d bias are right; d image and d text, averaged over ranks, are 1/W of the "
        "right ones",
        "image and text gradients are too small by the factor W: every rank computes the whole loss, of which only the "
        "own shard gets a gradient, and the mean over ranks divides by W again",
        "embeddings' gradients would be right if they were summed over ranks instead of averaged",
        value="global",
    ),
    "times world size": _wrong(
        times_world_size,
        "d image and d text are right; the value, d log_scale and d bias are W times the right ones",
        "value and gradients of scale and bias are too large by the factor W",
        "the whole loss of the global batch, times W, on every rank; that makes up for the mean over ranks in the "
        "embeddings' gradients only",
        value="global",
    ),
    "eye without offset": _wrong(
        eye_without_offset,
        "image i of every rank has text i of rank 0 as its positive: on ranks 1 to W - 1 block (r, 0) has positives on "
        "its diagonal and the own block (r, r) has none. Rank 0 is right",
        "labels lack the offset r b in the gathered texts",
        "matching pairs are negatives on all ranks but 0; their positives are the texts of rank 0",
    ),
    "global divisor": _wrong(
        global_divisor,
        "each rank divides by the global batch B instead of its own b, and gradients are averaged: value (mean of the "
        "ranks' parts) and all four gradients are 1/W of the right ones",
        "everything too small by the factor W",
        "divided by W twice; right if the ranks were summed",
    ),
    "local pairs": _wrong(
        local_pairs,
        "ranks do not talk: each computes the loss of its own b x b block only; the W - 1 blocks (r, q), q != r, of "
        "negatives with other ranks' texts are missing",
        "only local negatives: the mean of the losses of W separate batches of b pairs",
        "pairs across ranks are missing in the value and in all gradients",
    ),
    "diagonal of every block": _wrong(
        diagonal_of_every_block,
        "every block has positives on its diagonal, those of other ranks' texts, too: image i of rank r is a positive "
        "with text i of all W ranks; W positives per image instead of 1",
        "the diagonals of the W - 1 foreign blocks are labelled 1 instead of -1",
        "negative_only is missing for texts received from other ranks",
        "value too large by 1/b sum over foreign blocks of -sum_i l_ii",
    ),
    "never handed on": _wrong(
        never_handed_on,
        "each of the W - 1 hops sends the own texts again: rank r meets the texts of rank r - 1 W - 1 times and those "
        "of ranks r - 2, ... never. Right with 2 ranks",
        "the left neighbour's block counts W - 1 times, the W - 2 other foreign blocks are missing",
        "what was received is not passed on",
    ),
    "gradient the same way": _wrong(
        gradient_the_same_way,
        "value, d image, d log_scale, d bias are right; the backward of the exchange sends on to the right instead of "
        "back to the left: the gradient of a text that was received after k hops arrives k ranks right of where it was "
        "used instead of k ranks left, so that rank r's texts get from distance k what belongs to rank r - 2k: the "
        "gradient of block (r - k, r - 2k) instead of (r + k, r). Right with 2 ranks; with 4 ranks right for k = 2, "
        "wrong for k = 1 and 3, where the gradients of the texts of rank r + 2 arrive",
        "text gradients of foreign blocks go to the wrong rank: that of texts of rank q met at distance k goes to rank "
        "q + 2k (mod W)",
        "to_rank and from_rank are not swapped in the backward pass; only d text is wrong, where W > 2",
    ),
    "bidirectional without remainder": _wrong(
        bidirectional_without_remainder,
        "with an even number of ranks the last one-way hop is missing: block (r, r + W/2) with the texts of the rank "
        "opposite is never met, W - 2 foreign blocks instead of W - 1. Right with an odd number of ranks; with 2 ranks "
        "nothing is exchanged",
        "the negatives with the texts of rank r + W/2 are missing (W = 4: at distance 2; W = 2: at distance 1)",
        "floor((W - 1) / 2) two-way rounds and no remainder",
    ),
    "open chain": _wrong(
        open_chain,
        "ppermute lacks the pair (W - 1, 0): rank 0 receives zeros, which travel on. At hop k a rank r >= k meets the "
        "texts of rank r - k rightly; a rank r < k meets zero texts, b x b pairs with the logit b (the bias) alone. "
        "Blocks (r, q) with q > r are missing: rank 0 has no foreign block, rank W - 1 all",
        "the ring is not closed: for every block (r, q) with q > r there stands b^2 softplus(bias) in its place, with no "
        "gradient but the bias'",
        "texts never go from the last rank to the first",
        framework="jax",
    ),
    "scalars stay at home": _wrong(
        scalars_stay_at_home,
        "value (global), d image and d text are right; d log_scale and d bias, which are to be final, are those of the "
        "own rank's rows only: 1/B sum over the pairs of its own images; the sum over ranks is missing",
        "the gradients of scale and bias are not summed over ranks (no Allreduce): each rank has another number, which "
        "add up to the right one",
        "d log_scale and d bias lack the rows of the W - 1 other ranks",
        framework="numpy",
        ranks=ThreadComm.run,
        reduce="none",
        value="global",
    ),
    "right: all reduce": _right(right_all_reduce, "SigLIP's own"),
    "right: rows and columns": _right(right_rows_and_columns, "SigLIP's own", framework="jax"),
}
