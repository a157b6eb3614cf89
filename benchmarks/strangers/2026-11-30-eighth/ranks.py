"""Losses over ranks: 12 wrong ones, 2 right ones. For sr.check_ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F  # noqa: N812

from mpi.comm import ThreadComm


def _pairs(image, text, log_scale, bias, offset=None):
    """The losses of all images with all texts, summed; text i + offset is image i's own, or none is."""
    logits = log_scale.exp() * image @ text.T + bias
    z = -torch.ones_like(logits)
    if offset is not None:
        z.diagonal(offset).fill_(1)
    return -F.logsigmoid(z * logits).sum()


def _gathered(tensor, rank, world_size):
    """Everybody's rows; only our own have a gradient."""
    rows = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(rows, tensor.detach().contiguous())
    rows[rank] = tensor
    return rows


def _exchange(tensor, to_rank, from_rank):
    got = torch.empty_like(tensor)
    work = [
        dist.P2POp(dist.isend, tensor.contiguous(), to_rank),
        dist.P2POp(dist.irecv, got, from_rank),
    ]
    for one in dist.batch_isend_irecv(work):
        one.wait()
    return got


# ---------------------------------------------------------------- wrong, torch


def own_slot_reinserted(image, text, log_scale, bias, rank, world_size):
    """Gather, and put our own back, since all_gather has no gradient."""
    texts = torch.cat(_gathered(text, rank, world_size))
    return _pairs(image, texts, log_scale, bias, rank * len(image)) / len(image)


def whole_matrix_on_every_rank(image, text, log_scale, bias, rank, world_size):
    images, texts = (torch.cat(_gathered(one, rank, world_size)) for one in (image, text))
    return _pairs(images, texts, log_scale, bias, 0) / len(images)


def wrapped_in_ddp_only(image, text, log_scale, bias, rank, world_size):
    """The loss of one GPU; DDP takes care of the rest."""
    return _pairs(image, text, log_scale, bias, 0) / len(image)


def global_batch_as_divisor(image, text, log_scale, bias, rank, world_size):
    texts = torch.cat(dist_nn.all_gather(text.contiguous()))
    return _pairs(image, texts, log_scale, bias, rank * len(image)) / (len(image) * world_size)


def local_batch_as_divisor(image, text, log_scale, bias, rank, world_size):
    images = torch.cat(dist_nn.all_gather(image.contiguous()))
    texts = torch.cat(dist_nn.all_gather(text.contiguous()))
    return _pairs(images, texts, log_scale, bias, 0) / image.shape[0]


class _Both(torch.autograd.Function):
    """One tensor to the left and one to the right at once."""

    @staticmethod
    def forward(ctx, left, right, to_left, to_right):
        ctx.sides = left, right
        got_right, got_left = torch.empty_like(to_left), torch.empty_like(to_right)
        work = [
            dist.isend(to_left.contiguous(), left, tag=1),
            dist.isend(to_right.contiguous(), right, tag=2),
            dist.irecv(got_right, right, tag=1),
            dist.irecv(got_left, left, tag=2),
        ]
        for one in work:
            one.wait()
        return got_right, got_left

    @staticmethod
    def backward(ctx, of_right, of_left):
        left, right = ctx.sides
        return None, None, *reversed(_Both.apply(left, right, of_left, of_right))


def both_directions(image, text, log_scale, bias, rank, world_size):
    left, right = (rank - 1) % world_size, (rank + 1) % world_size
    loss = _pairs(image, text, log_scale, bias, 0)
    to_left = to_right = text
    for _ in range((world_size - 1) // 2):
        to_left, to_right = _Both.apply(left, right, to_left, to_right)
        loss = loss + _pairs(image, to_left, log_scale, bias) + _pairs(image, to_right, log_scale, bias)
    return loss / len(image)


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, to_rank, from_rank):
        ctx.to_rank, ctx.from_rank = to_rank, from_rank
        return _exchange(tensor, to_rank, from_rank)

    @staticmethod
    def backward(ctx, grad):
        return _exchange(grad, ctx.to_rank, ctx.from_rank), None, None


def shift_with_backward(image, text, log_scale, bias, rank, world_size):
    loss = _pairs(image, text, log_scale, bias, 0)
    for _ in range(world_size - 1):
        text = _Shift.apply(text, (rank + 1) % world_size, (rank - 1) % world_size)
        loss = loss + _pairs(image, text, log_scale, bias)
    return loss / len(image)


class _Shared(torch.autograd.Function):
    """Numbers that all ranks share: their gradient is everybody's."""

    @staticmethod
    def forward(ctx, log_scale, bias):
        return log_scale.clone(), bias.clone()

    @staticmethod
    def backward(ctx, d_log_scale, d_bias):
        both = torch.stack([d_log_scale.reshape(()), d_bias.reshape(())])
        dist.all_reduce(both)
        return both[0].reshape(d_log_scale.shape), both[1].reshape(d_bias.shape)


def shared_numbers(image, text, log_scale, bias, rank, world_size):
    log_scale, bias = _Shared.apply(log_scale, bias)
    texts = torch.cat(dist_nn.all_gather(text.contiguous()))
    return _pairs(image, texts, log_scale, bias, rank * len(image)) / len(image)


def gathered_as_negatives(image, text, log_scale, bias, rank, world_size):
    """Own block with its positives, then what was gathered, block by block, negative only."""
    loss = _pairs(image, text, log_scale, bias, 0)
    for chunk in dist_nn.all_gather(text.contiguous()):
        loss = loss + _pairs(image, chunk, log_scale, bias)
    return loss / len(image)


# ---------------------------------------------------------------- wrong, JAX


def jax_eye_of_the_block(image, text, log_scale, bias, axis_name):
    texts = jax.lax.all_gather(text, axis_name, tiled=True)
    logits = jnp.exp(log_scale) * image @ texts.T + bias
    labels = 2 * jnp.eye(*logits.shape, dtype=logits.dtype) - 1
    return -jax.nn.log_sigmoid(labels * logits).sum() / image.shape[0]


def jax_ring(image, text, log_scale, bias, axis_name):
    size = jax.lax.psum(1, axis_name)
    ring = [(i, (i + 1) % size) for i in range(size)]

    def logits_with(texts):
        return jnp.exp(log_scale) * image @ texts.T + bias

    logits = logits_with(text)
    own = jnp.eye(image.shape[0], dtype=bool)
    loss = jnp.where(own, jax.nn.softplus(-logits), jax.nn.softplus(logits)).sum()
    for _ in range(size - 1):
        neighbour = jax.lax.ppermute(text, axis_name, ring)
        loss = loss + jax.nn.softplus(logits_with(neighbour)).sum()
    return loss / image.shape[0]


# ---------------------------------------------------------------- wrong, NumPy


def numpy_ring(image, text, log_scale, bias, comm):
    """Texts go round, their gradient with them."""
    n, scale, bias = len(image), np.exp(np.asarray(log_scale, image.dtype)), np.asarray(bias, image.dtype)
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    texts, d_texts, d_image = np.array(text, order="C"), np.zeros(text.shape, text.dtype), np.zeros_like(image)
    value = d_log_scale = d_bias = 0
    for hop in range(comm.size):
        if hop:
            for tag, rows in ((2 * hop, texts), (2 * hop + 1, d_texts)):
                got = np.empty_like(rows)
                comm.Sendrecv(np.ascontiguousarray(rows), to, tag, got, source, tag)
                rows[:] = got
        sim = image @ texts.T
        logits = scale * sim + bias
        z = -np.ones_like(logits)
        if not hop:
            np.fill_diagonal(z, 1)
        grad = -z * np.exp(-np.logaddexp(0, z * logits)) / n
        value = value + np.logaddexp(0, -z * logits).sum() / n
        d_image += scale * grad @ texts
        d_texts += scale * grad.T @ image
        d_log_scale, d_bias = d_log_scale + scale * (grad * sim).sum(), d_bias + grad.sum()
    return value, d_image, d_texts, d_log_scale, d_bias


# ---------------------------------------------------------------- right, torch


def right_whole_matrix(image, text, log_scale, bias, rank, world_size):
    images = torch.cat(dist_nn.all_gather(image.contiguous()))
    texts = torch.cat(dist_nn.all_gather(text.contiguous()))
    return _pairs(images, texts, log_scale, bias, 0) / len(images)


def right_sum_of_masked_texts(image, text, log_scale, bias, rank, world_size):
    """Each rank's texts in turn, as a sum to which the others add zeros."""
    loss = 0.0
    for turn in range(world_size):
        texts = dist_nn.all_reduce(text * float(turn == rank))
        loss = loss + _pairs(image, texts, log_scale, bias, 0 if turn == rank else None)
    return loss / len(image)


# ---------------------------------------------------------------- truths
# b pairs on each of W ranks, B = W b, t = exp(log_scale), l_ij = t s_ij + bias; right: rank r's value is 1/b times
# the sum
# over its images i and all texts j of softplus(-z_ij l_ij), gradients are averaged over ranks afterwards


def _wrong(fn, truth, *same, framework="torch", **given):
    return {"fn": fn, "framework": framework, "given": given, "truth": truth, "same": list(same)}


_right = _wrong

PROGRAMS = {
    "own slot reinserted": _wrong(
        own_slot_reinserted,
        "value, d image, d log_scale, d bias are right; d text of rank r has only what r's own images give it: "
        "the gradients "
        "from all other ranks' images are missing (all_gather without a gradient, own slot put back)",
        "d text_j = t sum over the images i of j's own rank of G_ij x_i, instead of over all images",
        "texts that come from other ranks are constants (detached)",
        "d text of the own block is right, the negatives' part from W - 1 ranks is lost",
    ),
    "whole matrix on every rank": _wrong(
        whole_matrix_on_every_rank,
        "every rank has the value of the whole batch (right) and d log_scale, d bias are right; d image and d "
        "text are 1/W "
        "of the right ones: only the own rank's copy of the loss has a gradient, and it is averaged over ranks",
        "both towers' gradients are too small by the number of ranks W, scale's and bias' are not",
        "images and texts gathered from other ranks are constants (detached) in the whole B x B matrix, divisor B",
        value="global",
    ),
    "wrapped in DDP only": _wrong(
        wrapped_in_ddp_only,
        "nothing is exchanged: each rank has the loss of its own b pairs, 1/b sum over its b x b block; "
        "negatives from other "
        "ranks are missing in value and all gradients",
        "only local negatives, b - 1 instead of B - 1 for each image",
        "the mean over ranks of the losses of batches of size b; only the diagonal blocks of the B x B matrix",
        "the texts of other ranks (all hops but the own block) are never met",
    ),
    "global batch as divisor": _wrong(
        global_batch_as_divisor,
        "rank r's sum is divided by the global B = W b instead of b, and gradients are averaged over ranks "
        "besides: local "
        "values and all four gradients are 1/W of the right ones",
        "divided by the number of ranks twice; everything is too small by W",
        "the convention of reduce='sum' (1/B) where gradients are averaged ('mean')",
    ),
    "local batch as divisor": _wrong(
        local_batch_as_divisor,
        "every rank has the whole batch's B x B sum, divided by its own b instead of B = W b: value and all "
        "four gradients are "
        "W times the right ones",
        "too large by the number of ranks; divisor is the local batch size for the global matrix",
        "1/b sum over all pairs of the whole batch",
        value="global",
    ),
    "both directions": _wrong(
        both_directions,
        "texts go both ways, (W - 1) // 2 rounds; for an even W the last, single hop is missing: the texts of "
        "rank r + W/2 "
        "(opposite) are never met by rank r. Right for odd W; for W = 2 nothing is exchanged at all",
        "for even W one of W blocks is missing in value and all gradients: images of rank r with texts of r + "
        "W/2 mod W",
        "the remainder of the bidirectional exchange is left out: each image has B - 1 - b negatives instead of B - 1 "
        "(W even)",
        "with 4 ranks the texts two ranks away are missing",
    ),
    "shift with backward": _wrong(
        shift_with_backward,
        "value, d image, d log_scale, d bias are right; texts' gradients are sent on to the next rank in the "
        "backward pass "
        "instead of back to the one they came from: d text_r = own block's part + sum over k = 1..W-1 of what "
        "the images of "
        "rank r - k give to the texts of rank r - 2k, where it should be what the images of r + k give to the "
        "texts of r",
        "backward of the exchange has to_rank and from_rank not swapped; text gradients arrive at the wrong rank",
        "right for W = 2; for W = 4 the part of k = 2 (and own block) is right, those of k = 1 and 3 belong to "
        "texts of the "
        "rank r + 2 and come from the images of r - 1, r + 1",
        "d text is permuted among ranks hop by hop, apart from the own block; the sum over all ranks is the same",
    ),
    "shared numbers": _wrong(
        shared_numbers,
        "value, d image, d text are right; d log_scale and d bias are W times the right ones: they are summed "
        "over ranks in "
        "the backward pass and then averaged over ranks (each rank already has the sum)",
        "d log_scale and d bias are the sum over ranks instead of the mean; too large by the number of ranks",
        "gradients of scale and bias are reduced twice (all_reduce in backward, and afterwards)",
    ),
    "gathered as negatives": _wrong(
        gathered_as_negatives,
        "the own block is counted twice: once with its positives, and once more among the gathered ones, all as "
        "negatives: "
        "rank r's value has 1/b sum over i, j of rank r of softplus(l_ij) too much",
        "positives are counted as negatives, too (softplus(l_ii) is added); negatives of the own rank count twice",
        "own rank's texts are not left out of the gathered ones; B + b texts for each image instead of B",
        "gradients: value's and all four's extra term is that of the b x b own block with label -1 everywhere",
    ),
    "jax: eye of the block": _wrong(
        jax_eye_of_the_block,
        "positives are at columns 0 to b - 1 of the gathered texts on every rank, the offset rank * b is "
        "missing: the images "
        "of rank r have rank 0's texts as positives and their own as negatives; rank 0 is right",
        "image k of any rank is matched with text k of rank 0",
        "labels are wrong on all ranks but 0; texts of rank 0 are positives of W images each, other ranks' "
        "texts of none",
        framework="jax",
    ),
    "jax: ring": _wrong(
        jax_ring,
        "every hop sends the rank's own texts instead of those that it got: at each of the W - 1 hops rank r "
        "meets the texts "
        "of rank r - 1 again; these negatives count W - 1 times, those of the W - 2 other ranks never",
        "the texts do not travel further than to the next rank; block (r, r - 1) is repeated W - 1 times",
        "right for W = 2; value and all gradients are wrong for W > 2",
        framework="jax",
    ),
    "numpy: ring": _wrong(
        numpy_ring,
        "value, d image, d log_scale, d bias are right; the texts' gradient is not sent home by a last hop: d "
        "text of rank r "
        "is the (complete, right) one of the texts of rank r + 1 mod W",
        "d text is shifted by one rank: rank r has rank r + 1's",
        "the travelling gradient makes W - 1 hops instead of W; it ends at the wrong owner",
        framework="numpy",
        ranks=ThreadComm.run,
    ),
    "right: whole matrix": _right(right_whole_matrix, "SigLIP's own", value="global"),
    "right: sum of masked texts": _right(right_sum_of_masked_texts, "SigLIP's own"),
}
